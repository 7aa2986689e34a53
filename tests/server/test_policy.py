"""From evidence to a verdict, rule by rule."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from demur.calibration import Identity
from demur.decision.task import PolicyKind, PolicySpec, ReadoutKind, Scale
from demur.server.calibrated import Applied, Calibrated, policy_hash
from demur.server.guarantee import Guarantee
from demur.server.policy import Evidence, judge
from demur.server.types import PolicyOverride, Standing

from .bundled import certificates

NOW = datetime(2026, 6, 1, tzinfo=UTC)
ISSUED = certificates(issued_at=NOW)
HASH = policy_hash(PolicySpec(), ReadoutKind.LETTER)
GUARANTEE = Guarantee("top_probability", ISSUED.trusted, ISSUED.not_deferred, HASH, NOW, NOW + timedelta(days=90))
THRESHOLD = ISSUED.trusted.threshold
NOTHING = certificates(right=False, issued_at=NOW)
COST = {"kind": PolicyKind.COST, "cost": ((0.0, 10.0), (10.0, 0.0)), "review_price": 1.0, "defer_price": 3.0}


def evidence(p_correct=0.9, score=None, *, guarantee=GUARANTEE, mass=0.9, reference=None, reference_mass=None):
    """Of a calibrated decision between two options."""
    calibrated = Calibrated(None, Identity(), None, guarantee, reference, reference_mass)
    probabilities = np.array([p_correct or 0.5, 1 - (p_correct or 0.5)])
    applied = Applied(0, probabilities, p_correct, p_correct if score is None else score)
    return Evidence(ReadoutKind.LETTER, 0.6, mass, calibrated, applied)


def raw(probability, mass=0.9):
    return Evidence(ReadoutKind.LETTER, probability, mass)


def ruled(policy, known, override=None, now=NOW):
    judgement = judge(PolicySpec(**policy), override, known, now=now)
    return judgement.verdict.value, judgement.reason.value, judgement.certificate is not None


@pytest.mark.parametrize(
    ("policy", "known", "expected"),
    [
        ({}, raw(0.99), ("review", "uncalibrated", False)),
        ({"trust_at": 0.9}, raw(0.99), ("review", "uncalibrated", False)),
        ({"trust_at": 0.9, "allow_uncalibrated": True}, raw(0.99), ("trust", "above_trust_threshold", False)),
        ({"trust_at": 0.9, "allow_uncalibrated": True}, raw(0.8), ("review", "below_trust_threshold", False)),
        ({"defer_below": 0.5}, raw(0.4), ("defer", "below_defer_threshold", False)),
        ({}, raw(0.99, mass=0.05), ("defer", "low_label_mass", False)),
        ({"trust_at": 0.9, "allow_uncalibrated": True}, raw(float("nan")), ("review", "below_trust_threshold", False)),
        ({"trust_at": 0.0, "allow_uncalibrated": True}, raw(1.0, float("nan")), ("defer", "low_label_mass", False)),
        # fixed thresholds on p_correct, and on the score
        ({"trust_at": 0.9}, evidence(0.95, 0.1), ("trust", "above_trust_threshold", False)),
        ({"trust_at": 0.9}, evidence(0.8, 0.99), ("review", "below_trust_threshold", False)),
        ({"trust_at": 0.9, "defer_below": 0.5}, evidence(0.4), ("defer", "below_defer_threshold", False)),
        ({"trust_at": 0.9, "scale": Scale.SCORE}, evidence(0.1, 0.95), ("trust", "above_trust_threshold", False)),
        ({"trust_at": THRESHOLD, "scale": Scale.SCORE}, evidence(0.1, 0.95), ("trust", "above_trust_threshold", True)),
        ({"trust_at": THRESHOLD}, evidence(0.95), ("trust", "above_trust_threshold", False)),
        ({"trust_at": 0.9}, evidence(None, 0.95), ("review", "uncalibrated", False)),
        # labels that were refused leave a score, and no idea of how often it is right
        ({"trust_at": 0.9, "scale": Scale.SCORE}, evidence(None, 0.95), ("review", "uncalibrated", False)),
        ({"allow_uncalibrated": True, "min_label_mass": 0.0}, raw(1.0, 0.0), ("defer", "low_label_mass", False)),
        # certified
        ({}, evidence(0.2, 0.95), ("trust", "above_trust_threshold", True)),
        ({}, evidence(0.99, 0.1), ("defer", "below_defer_threshold", True)),
        ({}, evidence(None, 0.95), ("trust", "above_trust_threshold", True)),
        ({}, evidence(0.9, guarantee=None), ("review", "nothing_certified", False)),
        ({}, evidence(float("nan"), float("nan")), ("defer", "below_defer_threshold", True)),
        ({"min_label_mass": 0.05}, evidence(0.95), ("trust", "above_trust_threshold", False)),
        ({}, evidence(0.95, mass=0.05), ("defer", "low_label_mass", True)),
        # costs: trusting costs 10 (1 - p)
        (COST, evidence(0.95), ("trust", "least_expected_cost", False)),
        (COST, evidence(0.9), ("review", "least_expected_cost", False)),
        ({**COST, "defer_price": 0.5}, evidence(0.5), ("defer", "least_expected_cost", False)),
        (COST, raw(0.99), ("review", "uncalibrated", False)),
        (COST, evidence(None, 0.9), ("review", "uncalibrated", False)),
    ],
)
def test_rules(policy, known, expected):
    assert ruled(policy, known) == expected


def test_a_budget_leaves_its_share_to_people():
    reference = np.linspace(0, 1, 101)
    policy = {"kind": PolicyKind.BUDGET, "to_people": 0.2}
    verdicts = [ruled(policy, evidence(0.5, score, reference=reference)) for score in reference]
    assert verdicts.count(("review", "below_trust_threshold", False)) == 20
    assert verdicts.count(("trust", "above_trust_threshold", False)) == 81
    assert ruled(policy, evidence(0.9)) == ("review", "uncalibrated", False)
    assert ruled(policy, evidence(None, 0.9, reference=reference)) == ("review", "uncalibrated", False)


def test_a_budget_counts_what_is_deferred_for_its_label_mass():
    """A third has too little, in no order: 30% to people is used up by it, and nothing else goes there."""
    score, mass = np.linspace(0, 1, 101), np.where(np.arange(101) % 3 == 0, 0.01, 0.9)
    policy = {"kind": PolicyKind.BUDGET, "to_people": 0.3}
    verdicts = [
        ruled(policy, evidence(0.5, one, mass=heavy, reference=score, reference_mass=mass))[0]
        for one, heavy in zip(score, mass, strict=True)
    ]
    assert (verdicts.count("defer"), verdicts.count("review"), verdicts.count("trust")) == (34, 0, 67)


def test_nothing_certified():
    nothing = Guarantee("top_probability", NOTHING.trusted, None, HASH, NOW, None)
    assert ruled({}, evidence(1.0, guarantee=nothing)) == ("review", "nothing_certified", False)
    nothing = Guarantee("top_probability", NOTHING.trusted, NOTHING.not_deferred, HASH, NOW, None)
    assert ruled({}, evidence(1.0, guarantee=nothing)) == ("defer", "nothing_certified", False)
    answers = Guarantee("top_probability", NOTHING.trusted, ISSUED.not_deferred, HASH, NOW, None)
    assert ruled({}, evidence(1.0, guarantee=answers)) == ("review", "nothing_certified", False)


def test_a_score_reaches_a_threshold_on_the_grid():
    """Noise below half a millionth changes nothing."""
    for noise in (-4e-7, 0, 4e-7):
        assert ruled({"trust_at": 0.9}, evidence(0.9 + noise))[0] == "trust"
        assert ruled({}, evidence(0.9, THRESHOLD + 5e-7 + noise))[0] == "trust"
        assert ruled({}, evidence(0.9, THRESHOLD - 5e-7 + noise))[0] != "trust"


@pytest.mark.parametrize("policy", [{}, {"trust_at": THRESHOLD, "scale": Scale.SCORE}])
def test_expiry(policy):
    late = NOW + timedelta(days=90)
    assert ruled(policy, evidence(0.95), now=late) == ("review", "certificate_expired", False)
    assert ruled(policy, evidence(0.95), PolicyOverride(defer_below=0.1), now=late)[0] == "review"
    assert ruled({"trust_at": 0.9}, evidence(0.95), now=late)[0] == "trust"
    assert ruled(policy, evidence(0.95, guarantee=replace(GUARANTEE, expires_at=None)), now=late)[0] == "review"


@pytest.mark.parametrize("policy", [{}, {"trust_at": THRESHOLD, "scale": Scale.SCORE}])
@pytest.mark.parametrize(
    ("standing", "reason", "late_reason"),
    [
        (Standing.WITHDRAWN, "certificate_withdrawn", "certificate_withdrawn"),
        (Standing.STARVED, "certificate_starved", "certificate_expired"),
        (Standing.UNKNOWN, "guarantee_unknown", "certificate_expired"),
    ],
)
def test_a_certificate_that_does_not_stand_takes_its_trust_along(policy, standing, reason, late_reason):
    known = replace(evidence(0.95), standing=standing)
    assert ruled(policy, known) == ("review", reason, False)
    assert ruled(policy, known, PolicyOverride(defer_below=0.1)) == ("review", reason, False)
    assert ruled(policy, known, now=NOW + timedelta(days=90)) == ("review", late_reason, False)
    # What rests on no certificate is as it was, and what was not trusted keeps its reason.
    assert ruled({"trust_at": 0.9}, known) == ("trust", "above_trust_threshold", False)
    assert ruled({}, replace(evidence(0.1), standing=standing)) == ("defer", "below_defer_threshold", False)


def test_the_trusted_set_is_the_same_whatever_became_of_its_certificate():
    keyed = replace(GUARANTEE, key="k")

    def key(policy, score, override=None, now=NOW, standing=Standing.VALID):
        known = replace(evidence(0.95, score, guarantee=keyed), standing=standing)
        return judge(PolicySpec(**policy), override, known, now=now).guarantee

    for standing in Standing:
        assert key({}, 0.95, standing=standing) == "k"
        assert key({}, 0.95, now=NOW + timedelta(days=90), standing=standing) == "k"
    assert key({}, 0.1) is None
    assert key({"trust_at": 0.9}, 0.95) is None
    # What a caller has picked out of it says nothing of the whole.
    assert key({}, 0.95, PolicyOverride(trust_at=0.5)) is None


def test_a_request_can_only_tighten():
    for loose in (PolicyOverride(trust_at=0.1), PolicyOverride(defer_below=0.1), PolicyOverride(min_label_mass=0.0)):
        assert ruled({"trust_at": 0.9}, evidence(0.8), loose)[0] == "review"
        assert ruled({}, raw(1.0), loose)[0] == "review"
    assert ruled({}, evidence(0.9, 0.95), PolicyOverride(trust_at=0.99)) == ("review", "below_trust_threshold", False)
    assert ruled({}, evidence(0.9, 0.95), PolicyOverride(defer_below=0.99)) == ("defer", "below_defer_threshold", False)
    assert ruled({}, evidence(0.9, 0.95), PolicyOverride(min_label_mass=0.95)) == ("defer", "low_label_mass", False)
    assert ruled({}, evidence(0.9, 0.95), PolicyOverride(min_label_mass=0.5)) == (
        "trust", "above_trust_threshold", False
    )  # fmt: skip


def test_a_mismatch_comes_before_everything():
    known = replace(raw(1.0), mismatches=("weights", "mode"))
    judgement = judge(PolicySpec(allow_uncalibrated=True, trust_at=0.0), None, known)
    assert (judgement.verdict, judgement.reason) == ("defer", "calibration_mismatch")
    assert "weights, mode" in judgement.detail
