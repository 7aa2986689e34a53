"""Simulated share of false certificates, quick; `python -m benchmarks.certificates` makes the full tables."""

import numpy as np
import pytest

from demur.calibration import GrowingCertification, certify, certify_slices, threshold_below
from demur.calibration.multiple_testing import binomial_p_values

ALPHA, DELTA = 0.1, 0.1
RUNS = 400
LIMIT = DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / RUNS)
JUST_ABOVE = ALPHA * 1.0001


def share(seed, run):
    rng = np.random.default_rng(seed)
    return np.mean([bool(run(rng)) for _ in range(RUNS)])


def flat(rng, n, risk=JUST_ABOVE):
    return rng.random(n), rng.random(n) >= risk


@pytest.mark.parametrize("unlabelled", [0, 1000])
def test_worthless_scores(unlabelled):
    def run(rng):
        others = rng.random(unlabelled) if unlabelled else None
        return certify(*flat(rng, 1000), alpha=ALPHA, delta=DELTA, unlabelled=others).thresholds

    found = share(1, run)
    # Above zero too: a test that never certifies anything would show nothing.
    assert 0.02 < found <= LIMIT


@pytest.mark.parametrize("unlabelled", [0, 1000])
def test_risk_that_crosses_alpha_again_and_again(unlabelled):
    """Risk of the sets is above alpha in every second band of the score, and back at alpha at each band's end."""
    edges = np.linspace(0.0, 1.0, 21)[::-1]

    def set_risk(t):
        band = np.searchsorted(-edges, -t, side="right") - 1
        inside = np.abs(np.sin(np.pi * (edges[0] - t) * 20))
        return ALPHA * (1 + np.where(band % 2 == 0, -0.08, 0.08) * inside)

    # Chance of error at each score: the derivative of coverage times set risk.
    grid = np.linspace(0, 1, 20_001)
    total = np.cumsum(np.gradient((1 - grid) * set_risk(grid), grid) * -1)
    chance = np.clip(np.gradient(total), 0, 1)

    def run(rng):
        score = rng.random(1500)
        correct = rng.random(1500) >= np.interp(score, grid, chance)
        others = rng.random(unlabelled) if unlabelled else None
        found = certify(score, correct, alpha=ALPHA, delta=DELTA, unlabelled=others).thresholds
        return found and (set_risk(np.array(found)) > ALPHA * 1.0005).any()

    assert 0.005 < share(2, run) <= LIMIT


@pytest.mark.parametrize("unlabelled", [0, 1000])
def test_ties_with_a_risk_that_is_not_monotone(unlabelled):
    values, sizes = np.array([0.99, 0.9, 0.7, 0.5, 0.1]), np.array([0.15, 0.2, 0.2, 0.2, 0.25])
    set_risk = np.array([0.5, 1.02, 0.98, 1.02, 1.05]) * ALPHA
    risk = np.diff(np.cumsum(sizes) * set_risk, prepend=0.0) / sizes

    def run(rng):
        cell = rng.choice(5, 1500, p=sizes)
        others = values[rng.choice(5, unlabelled, p=sizes)] if unlabelled else None
        correct = rng.random(1500) >= risk[cell]
        found = certify(values[cell], correct, alpha=ALPHA, delta=DELTA, unlabelled=others).thresholds
        reached = [int((values >= t).sum()) - 1 for t in found]
        return any(set_risk[i] > ALPHA for i in reached)

    assert share(3, run) <= LIMIT


def test_attempts_that_spend_delta_and_the_wrong_way():
    looks = range(250, 2001, 250)

    def run(spend):
        def attempts(rng):
            score, correct = flat(rng, 2000)
            return any(
                certify(score[:n], correct[:n], alpha=ALPHA, delta=DELTA, attempt=j if spend else None).thresholds
                for j, n in enumerate(looks, 1)
            )

        return attempts

    assert share(4, run(spend=True)) <= LIMIT
    assert share(4, run(spend=False)) > 2 * DELTA


def test_the_best_of_a_family_is_held_to_the_delta_that_its_certificate_states():
    def run(family):
        def best(rng):
            found = [certify(*flat(rng, 300), alpha=ALPHA, delta=DELTA, family=family) for _ in range(5)]
            chosen = max(found, key=lambda certificate: certificate.certified_coverage)
            assert chosen.delta == DELTA
            return chosen.thresholds

        return best

    assert 0.02 < share(10, run(5)) <= LIMIT
    assert share(10, run(1)) > 2 * DELTA


def test_the_e_process_looked_at_after_every_label():
    thresholds = threshold_below([0.8, 0.6, 0.4, 0.2, 0.0])

    def run(rng):
        process = GrowingCertification(thresholds, alpha=ALPHA, delta=DELTA)
        process.update(*flat(rng, 2000))
        return process.thresholds

    assert share(5, run) <= LIMIT


def test_the_e_process_certifies_what_is_good_and_takes_rows_in_parts():
    rng = np.random.default_rng(0)
    score, correct = flat(rng, 2000, risk=0.02)
    whole = GrowingCertification(threshold_below([0.5, 0.0]), alpha=ALPHA, delta=DELTA)
    whole.update(score, correct)
    parts = GrowingCertification(threshold_below([0.5, 0.0]), alpha=ALPHA, delta=DELTA)
    for i in range(0, 2000, 130):
        parts.update(score[i : i + 130], correct[i : i + 130])
    assert whole.threshold == whole.thresholds_tested.min()
    assert parts.p_values == pytest.approx(whole.p_values)


def test_slices_of_which_some_finish():
    names = np.repeat(list("abcd"), 500)

    def run(rng):
        risk = np.where(names == "a", 0.001, JUST_ABOVE)
        found = certify_slices(rng.random(2000), rng.random(2000) >= risk, names, alpha=ALPHA, delta=DELTA)
        return any(found.threshold(name) is not None for name in "bcd")

    assert 0.02 < share(6, run) <= LIMIT


def test_a_hand_picked_stricter_threshold_must_not_carry_the_certificate():
    strict = float(threshold_below(0.97)[()])

    def run(rng):
        score = rng.random(2000)
        certificate = certify(
            score, rng.random(2000) >= np.where(score >= strict, 2 * ALPHA, ALPHA / 4), alpha=ALPHA, delta=DELTA
        )
        return certificate.threshold is not None, certificate.covers(strict)

    rng = np.random.default_rng(7)
    outcomes = np.array([run(rng) for _ in range(100)])
    assert outcomes[:, 0].mean() > 0.95  # looser thresholds are certified, rightly
    assert not outcomes[:, 1].any()  # the stricter one, truly above alpha, is on no list


def test_the_loosest_passing_threshold_picked_freely_is_wrong():
    thresholds = np.linspace(0, 0.99, 100)

    def run(rng):
        score, correct = flat(rng, 1000)
        trusted = score >= thresholds[:, None]
        return (binomial_p_values((trusted & ~correct).sum(1), trusted.sum(1), ALPHA) <= DELTA).any()

    assert share(8, run) > 2 * DELTA


def test_power_is_within_reach_of_the_oracle():
    """Beta(6, .6) at n = 2,000, where the largest coverage with risk <= .05 is .817 (500 draws give .906 of it)."""
    rng = np.random.default_rng(9)
    found = []
    for _ in range(60):
        score = rng.beta(6, 0.6, 2000)
        certificate = certify(score, rng.random(2000) < score, unlabelled=rng.beta(6, 0.6, 2000))
        found.append(certificate.certified_coverage / 0.817)
    assert np.mean(found) > 0.88
