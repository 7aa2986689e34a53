import dataclasses
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from demur.calibration import (
    CalibrationError,
    Certificate,
    CertificateError,
    certify,
    certify_slices,
    certify_verdicts,
    is_trusted,
    labels_needed,
    most_slices,
    on_grid,
    threshold_above,
    threshold_below,
)
from demur.calibration.multiple_testing import (
    attempt_level,
    binomial_p_values,
    fallback,
    fewest_rows,
    most_errors,
)
from demur.calibration.thresholds import plan, sharpest_size


def rows(n, seed=0, a=6.0, b=0.6):
    rng = np.random.default_rng(seed)
    score = rng.beta(a, b, n)
    return score, rng.random(n) < score


@given(st.floats(0, 1), st.floats(-4e-7, 4e-7))
def test_noise_below_half_a_step_around_a_grid_point_changes_no_verdict(value, noise):
    point = float(on_grid(value)[()])
    for threshold in (float(threshold_below(point)[()]), float(threshold_above(point)[()])):
        assert is_trusted(point, threshold) == is_trusted(point + noise, threshold)


def test_thresholds_lie_on_either_side_of_their_score():
    assert is_trusted(0.25, float(threshold_below(0.25)[()]))
    assert not is_trusted(0.25, float(threshold_above(0.25)[()]))


def test_p_values_are_the_exact_binomial_test():
    for k, n in ((0, 59), (3, 160), (12, 200), (5, 5)):
        expected = binomtest(k, n, 0.05, alternative="less").pvalue
        assert binomial_p_values(k, n, 0.05) == pytest.approx(expected, rel=1e-9)
    assert binomial_p_values(0, 0, 0.05) == 1.0
    assert fewest_rows(0.05, 0.05) == 59


@given(st.integers(0, 60), st.sampled_from([0.02, 0.05, 0.3]), st.sampled_from([0.01, 0.03, 0.05]))
def test_sharpest_size_is_the_smallest_that_allows_so_many_errors(errors, alpha, level):
    size = int(sharpest_size(np.array([errors]), alpha, level)[0])
    assert binom.cdf(errors, size, alpha) <= level < binom.cdf(errors, size - 1, alpha)
    assert most_errors(size, alpha, level) == errors
    assert most_errors(size - 1, alpha, level) == errors - 1


def test_fallback_passes_a_level_on_and_stops_where_none_is_left():
    rejected, levels = fallback([0.03, 0.035, 0.2, 0.009, 0.02], [0.04, 0.0, 0.0, 0.01, 0.0])
    assert rejected.tolist() == [True, True, False, True, False]
    assert levels.tolist() == pytest.approx([0.04, 0.04, 0.04, 0.01, 0.01])


def test_levels_of_a_plan_sum_to_delta_and_of_attempts_to_no_more():
    for n in (80, 300, 2000, 10_000, 1_000_000):
        assert plan(n, 0.05, 0.05).sizes[0] >= 59
        assert plan(n, 0.05, 0.05).shares.sum() == pytest.approx(1.0)
        assert plan(n, 0.05, 0.05).sizes.size <= 1000
    assert plan(59, 0.05, 0.05).sizes.size == 0
    assert sum(attempt_level(0.05, j) for j in range(1, 10_000)) < 0.05
    with pytest.raises(CertificateError, match="attempt"):
        attempt_level(0.05, 0)


def test_a_certificate_lists_what_passed_and_the_loosest_is_its_threshold():
    score, correct = rows(3000)
    certificate = certify(score, correct, unlabelled=rows(2000, seed=1)[0])
    assert certificate.threshold == min(certificate.thresholds)
    for tested in certificate.evidence:
        trusted = is_trusted(score, tested.threshold)
        assert (tested.trusted, tested.errors) == (trusted.sum(), (trusted & ~correct).sum())
        assert tested.p_value == pytest.approx(float(binomial_p_values(tested.errors, tested.trusted, 0.05)))
        assert tested.certified == (tested.threshold in certificate.thresholds)
        assert not tested.certified or tested.p_value <= tested.level <= 0.05 + 1e-12
    assert certificate.trusts(score).mean() == pytest.approx(certificate.certified_coverage)


def test_a_threshold_off_the_list_is_not_covered_even_if_stricter():
    certificate = certify(*rows(3000))
    assert certificate.covers(certificate.threshold)
    assert not certificate.covers(max(certificate.thresholds) + 1e-3)
    assert not certificate.covers(None)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_rows_does_not_matter(random, ties):
    score, correct = rows(800)
    score = np.round(score, 1) if ties else score
    order = list(range(800))
    random.shuffle(order)
    first, second = certify(score, correct), certify(score[order], correct[order])
    assert first.evidence == second.evidence


def test_few_valued_scores_are_certified_between_their_values():
    score, correct = rows(4000)
    score = np.round(score, 1)
    for unlabelled in (None, np.round(rows(2000, seed=1)[0], 1)):
        certificate = certify(score, correct, unlabelled=unlabelled)
        assert certificate.threshold is not None
        for tested in certificate.evidence:
            assert tested.trusted == is_trusted(score, tested.threshold).sum()


def test_unlabelled_scores_move_the_start_where_little_can_be_trusted():
    score, _ = rows(2000, a=4, b=1.2)
    usual = plan(500, 0.05, 0.05).sizes[0]
    assert plan(500, 0.05, 0.05, score).sizes[0] < usual
    # Scores that are no probabilities have nothing to say about power.
    assert plan(500, 0.05, 0.05, 10 * score).sizes[0] == usual


def test_nothing_is_certified_where_nothing_can_be():
    score, _ = rows(3000)
    assert certify(score, np.zeros(3000, dtype=bool)).threshold is None
    certificate = certify(score[:40], np.ones(40))
    assert certificate.threshold is None
    assert certificate.evidence == ()
    assert not certificate.trusts(score).any()


def test_json_gives_the_same_certificate_back():
    issued = datetime(2026, 11, 23, tzinfo=UTC)
    certificate = certify(*rows(1000), issued_at=issued, valid_for=timedelta(days=7), attempt=2, route="split")
    assert Certificate.from_json(certificate.to_json()) == certificate
    assert certificate.delta_spent == pytest.approx(0.05 / 6)
    assert not certificate.expired(issued + timedelta(days=6))
    assert certificate.expired(issued + timedelta(days=7))
    assert any("other rows" in line for line in certificate.assumptions)
    assert certificate.issued_at.tzinfo is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        certificate.alpha = 0.5


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("alpha"),
        lambda r: r.update(extra=1),
        lambda r: r.update(thresholds=[0.1]),
        lambda r: r.update(issued_at="yesterday"),
        lambda r: r.update(evidence=[{"threshold": 1}]),
        lambda r: r.update(alpha="lots"),
        lambda r: r.update(n=None),
    ],
)
def test_a_changed_record_is_not_a_certificate(change):
    record = json.loads(certify(*rows(1000)).to_json())
    change(record)
    with pytest.raises(CertificateError):
        Certificate.from_json(json.dumps(record))
    with pytest.raises(CertificateError):
        Certificate.from_json("[]")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"delta": 1.0}, "delta"),
        ({"score": [0.1, float("nan")]}, r"score\[1\] is nan"),
        ({"score": [0.1]}, "shape"),
        ({"score": [], "correct": []}, "non-empty"),
        ({"correct": [1, 2]}, "0/1"),
        ({"correct": [1, float("nan")]}, "0/1"),
        ({"unlabelled": [float("inf")]}, r"unlabelled\[0\]"),
        ({"score": [1e12, 0.0]}, "grid"),
        ({"attempt": 0}, "attempt"),
        ({"route": "luck"}, "route"),
        ({"issued_at": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
    ],
)
def test_bad_input_is_refused_with_what_is_wrong(arguments, says):
    with pytest.raises(CertificateError, match=says) as caught:
        certify(**{"score": [0.1, 0.9], "correct": [True, False], **arguments})
    assert isinstance(caught.value, CalibrationError)


def test_the_two_chains_share_delta():
    pair = certify_verdicts(*rows(3000), alpha=0.05, beta=0.3, delta=0.05)
    assert (pair.trusted.alpha, pair.not_deferred.alpha) == (0.05, 0.3)
    assert pair.trusted.delta + pair.not_deferred.delta == pytest.approx(0.05)
    assert pair.not_deferred.threshold < pair.trusted.threshold
    with pytest.raises(CertificateError, match="beta"):
        certify_verdicts(*rows(100), alpha=0.3, beta=0.2)


def test_a_finished_slice_passes_its_level_on():
    rng = np.random.default_rng(0)
    names = np.repeat(["easy", "hard"], 1000)
    score = rng.random(2000)
    correct = np.where(names == "easy", True, rng.random(2000) < 0.9)
    found = certify_slices(score, correct, names, weights={"easy": 3, "hard": 1})
    assert found.slices["easy"].delta_spent == pytest.approx(0.0375)
    assert found.slices["hard"].delta_spent == pytest.approx(0.05)
    assert found.slices["easy"].expires_at is not None
    assert found.threshold("hard") is None
    assert found.threshold("never seen") is None
    unfinished = certify_slices(score, rng.random(2000) < 0.9, names, weights={"easy": 3, "hard": 1})
    assert unfinished.slices["hard"].delta_spent == pytest.approx(0.0125)
    with pytest.raises(CertificateError, match="weight"):
        certify_slices(score, correct, names, weights={"easy": 1})
    with pytest.raises(CertificateError, match="one value a row"):
        certify_slices(score, correct, names[:5])


def test_slices_that_the_data_can_support():
    assert most_slices(100) == 0
    assert most_slices(200) == 1
    assert 5 < most_slices(2000) < 2000 // 177


def test_labels_needed():
    assert labels_needed(certify(*rows(3000))).further == 0
    score, _ = rows(300)
    hopeless = labels_needed(certify(score, np.arange(300) % 5 > 0))
    assert hopeless.further is None
    assert "no number will do" in hopeless.explanation
    hidden = labels_needed(certify(score[:30], np.ones(30)))
    assert hidden.further > 0
    with pytest.raises(CertificateError, match="power"):
        labels_needed(certify(score, np.ones(300)), power=1.0)


def test_the_estimate_of_labels_needed_comes_true():
    # Risk .035 everywhere: 300 rows do not certify it; the estimated number should, mostly but not always.
    rng = np.random.default_rng(3)
    first = certify(rng.random(300), np.arange(300) % 28 > 0)
    assert first.threshold is None
    total = 300 + labels_needed(first, power=0.8).further
    risk = labels_needed(first).estimated_error
    wins = np.mean([bool(certify(rng.random(total), rng.random(total) >= risk).thresholds) for _ in range(200)])
    assert 0.6 < wins < 0.98
