import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.decision.canonical import canonical_bytes, canonical_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def reordered(value):
    if isinstance(value, dict):
        return {key: reordered(item) for key, item in reversed(value.items())}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(value=VALUES)
def test_the_order_of_keys_does_not_matter(value):
    assert canonical_text(reordered(value)) == canonical_text(value)
    assert canonical_bytes(reordered(value)) == canonical_bytes(value)


@given(value=VALUES)
def test_the_text_of_anything_but_a_string_is_its_json(value):
    text = canonical_text(value)
    assert text == value if isinstance(value, str) else json.loads(text) == value
    assert json.loads(canonical_bytes(value)) == value


def test_strings_pass_unchanged():
    assert canonical_text(' {"b": 1}\n\u0000é') == ' {"b": 1}\n\u0000é'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": [1, None, True], "a": {"y": "é", "x": 2.5}}, '{"a": {"x": 2.5, "y": "é"}, "b": [1, null, true]}'),
        (1.0, "1"),
        (-0.0, "0"),
        ([1e2, 1e-7, 1e300], "[100, 1e-07, 1e+300]"),
        (2**70, str(2**70)),
        ({}, "{}"),
    ],
)
def test_forms(value, text):
    assert canonical_text(value) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_what_is_not_a_number_is_refused(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_text(value)


@pytest.mark.parametrize("value", [{1: 2}, {"a": {None: 1}}, {"a": object()}])
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(TypeError):
        canonical_text(value)
