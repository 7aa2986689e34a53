"""Labelled rows: what is refused, with file, line and value, and what is kept once."""

import json

import pytest

from demur.decision.errors import DataFileError
from demur.decision.labelled import parse_labelled, read_labelled, require_fixed_question
from demur.decision.question import Option, Question

TEAMS = Question("Which team?", (Option("billing"), Option("sales")))


def parse(*rows, **options):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return parse_labelled("\n".join(lines).encode(), "rows.jsonl", TEAMS, **options)


def good(text="refund", label="billing", **more):
    return {"input": text, "label": label, **more}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (good(label="support"), r"rows.jsonl:2: label \"support\" is not an option; the options are billing, sales"),
        (good(label=None), "rows.jsonl:2: `label` is missing"),
        ({"label": "sales"}, "rows.jsonl:2: `input` is missing"),
        ('{"input": NaN, "label": "sales"}', "rows.jsonl:2: NaN is not a number"),
        ('{"input": -Infinity, "label": "sales"}', "rows.jsonl:2: -Infinity is not a number"),
        ('{"input": 1e999, "label": "sales"}', "rows.jsonl:2: 1e999 is too large a number"),
        ('{"input": "x", "label": "sales", "label": "billing"}', 'rows.jsonl:2: "label" is given twice'),
        ('{"input": "\\ud800", "label": "sales"}', "rows.jsonl:2: a text holds half of a surrogate pair"),
        (f'{{"input": {"[" * 100_000 + "]" * 100_000}, "label": "sales"}}', "rows.jsonl:2: nested too deeply"),
        ('{"input": "a", ', "rows.jsonl:2: not JSON"),
        ("[1, 2]", r"rows.jsonl:2: a row is a JSON object, not \[1, 2\]"),
        (good(lable="sales"), "rows.jsonl:2: unknown field 'lable'"),
        (good(group=["a"]), "rows.jsonl:2: `group` must be a name or a number"),
        (good(options=["billing"]), "rows.jsonl:2: `options` must be 2 to 255 different names"),
        (good("hello", "sales"), "rows.jsonl:2: label 'sales', but line 1 has the same input labelled 'billing'"),
    ],
)
def test_a_fault_names_file_line_and_value(row, said):
    with pytest.raises(DataFileError, match=said):
        parse(good("hello"), row)


def test_all_faults_are_listed_together_and_a_file_of_faults_is_cut():
    with pytest.raises(DataFileError) as caught:
        parse(*[good(str(n), "support") for n in range(30)])
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 10 more"


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(DataFileError, match=r"rows\.jsonl:1: no rows"):
        parse("", "  ")
    with pytest.raises(DataFileError, match="cannot be read"):
        read_labelled(tmp_path / "missing.jsonl", TEAMS)


def test_rows_that_occur_twice_are_kept_once():
    data = parse(good("a"), good("a", id=7), good({"x": 1.0}), good({"x": 1}), "", good("b", "sales"))
    assert (data.read, data.duplicates) == (5, 2)
    assert [row.text for row in data.rows] == ["a", '{"x": 1}', "b"]
    assert [row.label for row in data.rows] == [0, 0, 1]


def test_a_group_is_one_unit_and_a_row_without_one_is_its_own():
    first, second, third = parse(good("a", group="x"), good("b", group="x"), good("c")).rows
    assert first.unit == second.unit != third.unit == third.hash


def test_rows_may_bring_their_own_question_but_not_into_a_bundle():
    data = parse({"input": "a", "label": "yes", "question": "Is it?", "options": ["yes", "no"]})
    assert data.options_vary
    assert data.rows[0].own.names == ("yes", "no")
    with pytest.raises(DataFileError, match=r"rows\.jsonl:1: has a question or options of its own"):
        require_fixed_question(data)


def test_one_input_in_two_slices_is_two_rows():
    rows = (good("hi", slice="de"), good("hi", "sales", slice="en"), good("hi", slice="de"))
    data = parse(*rows, slice_by="language")
    assert [(row.slice, row.label) for row in data.rows] == [("de", 0), ("en", 1)]
    assert data.duplicates == 1


def test_the_tasks_question_spelled_out_is_the_tasks():
    """Else a row would be another one, which no hash of rows that were seen leaves out."""
    plain = parse(good()).rows[0]
    for spelled in ({"question": "Which team?"}, {"options": ["billing", "sales"]}):
        assert parse(good(**spelled)).rows[0] == plain
    assert parse(good(options=["sales", "billing"])).rows[0].hash != plain.hash


def test_unlabelled_rows_need_no_label():
    assert [row.label for row in parse({"input": "a"}, good("b", "who knows"), labelled=False).rows] == [None, None]
