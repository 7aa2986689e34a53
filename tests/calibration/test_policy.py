import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from demur.calibration import (
    PolicyError,
    budget,
    budget_threshold,
    certified,
    certify,
    certify_verdicts,
    cheapest,
    cheapest_one,
    expected_cost,
    fixed_thresholds,
    is_trusted,
    reaches,
)


def test_fixed_thresholds():
    ruling = fixed_thresholds([0.95, 0.9, 0.6, 0.2], trust=0.9, defer=0.5)
    assert ruling.verdicts == ["trust", "trust", "review", "defer"]
    assert (ruling.rule, ruling.threshold) == ("fixed_thresholds", 0.9)
    for trust, defer in ((0.4, 0.5), (float("nan"), 0.5)):
        with pytest.raises(PolicyError):
            fixed_thresholds([0.5], trust=trust, defer=defer)
    with pytest.raises(PolicyError, match="NaN"):
        fixed_thresholds([float("nan")], trust=0.9, defer=0.5)


def test_a_certified_policy_trusts_the_list_and_nothing_without_one():
    rng = np.random.default_rng(0)
    score = rng.beta(2, 0.6, 3000)
    pair = certify_verdicts(score, rng.random(3000) < score, beta=0.15)
    ruling = certified(score, pair.trusted, pair.not_deferred)
    assert ruling.rule == "certified"
    assert pair.trusted.covers(ruling.threshold)
    assert set(ruling.verdicts) == {"trust", "review", "defer"}
    assert [v == "trust" for v in ruling.verdicts] == pair.trusted.trusts(score).tolist()
    nothing = certify(score[:50], np.ones(50))
    assert set(certified(score, nothing).verdicts) == {"review"}
    assert set(certified(score, nothing, nothing).verdicts) == {"defer"}


def test_expected_cost_takes_the_cheapest():
    cost = [[0, 10], [1, 0]]
    probabilities = np.array([[0.99, 0.01], [0.8, 0.2], [0.1, 0.9], [0.5, 0.5]])
    decision = np.array([0, 0, 1, 0])
    ruling = expected_cost(probabilities, decision, cost, review_price=0.5, defer_price=3.0)
    assert ruling.costs[:, 0] == pytest.approx([0.1, 2.0, 0.1, 5.0])
    assert ruling.verdicts == ["trust", "review", "trust", "review"]
    assert ruling.rule == "expected_cost"
    cheap_fallback = expected_cost(probabilities, decision, cost, review_price=0.5, defer_price=0.5)
    assert cheap_fallback.verdicts == ["trust", "defer", "trust", "defer"]


# Differences below, at and above half a step of the grid, where rounding decides.
_COST = st.one_of(st.sampled_from([0.5, 0.5 + 4e-7, 0.5 + 5e-7, 0.5 + 1e-6]), st.floats(0, 1e9))


@given(_COST, _COST, _COST)
def test_one_decision_costs_what_it_costs_among_many(trust, review, defer):
    assert cheapest_one(trust, review, defer) == cheapest([[trust, review, defer]])[0]


def test_a_cost_that_is_nan_is_not_trusted():
    assert cheapest_one(float("nan"), 0.5, 1.0) != 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cost": [[0, 1]]}, "shape"),
        ({"cost": [[0, -1], [1, 0]]}, "negative"),
        ({"cost": [[0, float("nan")], [1, 0]]}, "finite"),
        ({"review_price": -1.0}, "review_price"),
        ({"defer_price": float("inf")}, "defer_price"),
        ({"probabilities": [[0.9, 0.9]]}, "sum to 1"),
        ({"probabilities": [0.9, 0.1]}, "need"),
        ({"decision": [2]}, "between"),
        ({"decision": [0.5]}, "need"),
    ],
)
def test_what_is_no_cost_policy_is_refused(change, says):
    arguments = {
        "probabilities": [[0.9, 0.1]],
        "decision": [0],
        "cost": [[0, 1], [1, 0]],
        "review_price": 1.0,
        "defer_price": 1.0,
        **change,
    }
    columns = [arguments.pop(name) for name in ("probabilities", "decision", "cost")]
    with pytest.raises(PolicyError, match=says):
        expected_cost(*columns, **arguments)


@given(arrays(float, st.integers(1, 60), elements=st.floats(0, 1).map(lambda x: round(x, 2))), st.floats(0, 1))
def test_a_budget_is_kept_and_used(reference, to_people):
    threshold = budget_threshold(reference, to_people)
    sent = np.mean(~is_trusted(reference, threshold))
    assert sent <= to_people + 1e-9
    # The next stricter threshold would break it.
    trusted = reference[is_trusted(reference, threshold)]
    if trusted.size:
        assert sent + np.mean(reference == trusted.min()) > to_people - 1e-9


def test_a_budget_names_its_rule_and_refuses_what_is_none():
    reference = np.linspace(0, 1, 101)
    ruling = budget([0.1, 0.5], reference, 0.2)
    assert ruling.verdicts == ["review", "trust"]
    assert ruling.rule == "budget"
    for scores, share in (([], 0.2), (reference, 1.2), (reference, float("nan")), ([float("nan")], 0.2)):
        with pytest.raises(PolicyError):
            budget_threshold(scores, share)


@given(
    st.floats(-1e9, 1e9) | st.sampled_from([float("nan"), float("inf")]),
    st.floats(-2, 2),
    st.sampled_from([0.0, 5e-7, 1e-6, 4.9e-7]),
)
def test_one_number_reaches_a_threshold_as_an_array_does(anything, near, off):
    for score, threshold in ((anything, 0.5), (near, near + off), (near - off, near), (near, anything)):
        assert reaches(score, threshold) == bool(is_trusted(score, threshold))
