"""Estimates that stand for the traffic, though what looks doubtful is audited less often; and drift without any."""

import numpy as np
import pytest

from demur.calibration import brier_score, expected_calibration_error
from demur.server.loop.traffic import Reference, Seen, TrafficWindow, drift_monitor
from demur.server.loop.window import LEAST, CalibrationWindow, LabelledAudit, live_calibration


def traffic(rng, n, *, over=0.0):
    """Decisions whose confidence is `over` too high: seq, confidence, whether right."""
    p = rng.beta(5, 1.2, n)
    return p, rng.random(n) < np.clip(p - over, 0, 1)


def audited(rng, p, correct):
    """Those drawn: one in five of the sure, one in twenty-five of the others."""
    rate = np.where(p > 0.85, 0.2, 0.04)
    drawn = np.flatnonzero(rng.random(len(p)) < rate)
    return [LabelledAudit(int(i), rate[i], bool(correct[i]), float(p[i]), float((1 - p[i]) ** 2)) for i in drawn]


@pytest.mark.parametrize("over", [0.0, 0.15])
def test_weighted_audits_estimate_what_all_decisions_show(over):
    rng = np.random.default_rng(0)
    shown, plain, true = [], [], []
    for _ in range(40):
        p, correct = traffic(rng, 6000, over=over)
        rows = audited(rng, p, correct)
        shown.append((live_calibration(rows).accuracy, live_calibration(rows).brier))
        plain.append(np.mean([row.correct for row in rows]))
        true.append((correct.mean(), ((1 - p) ** 2).mean()))
    error = np.mean(shown, axis=0) - np.mean(true, axis=0)
    spread = np.std(shown, axis=0) / np.sqrt(len(shown))
    assert (np.abs(error) < 4 * spread).all()
    # Without the weights the doubtful are too few: the share of right decisions is far too high.
    assert np.mean(plain) - np.mean(true, axis=0)[0] > 8 * spread[0]


def test_a_calibrated_model_stays_at_the_noise_floor_and_a_sure_one_rises_above():
    rng = np.random.default_rng(1)
    calm = [live_calibration(audited(rng, *traffic(rng, 6000))) for _ in range(60)]
    loud = [live_calibration(audited(rng, *traffic(rng, 6000, over=0.15))) for _ in range(10)]
    assert np.mean([one.ece for one in calm]) == pytest.approx(np.mean([one.noise_floor for one in calm]), rel=0.1)
    assert min(one.ece - one.ece_limit for one in loud) > 0
    assert min(one.debiased for one in loud) > np.quantile([one.debiased for one in calm], 0.9)


def test_a_calibrated_model_passes_its_limit_in_one_window_of_a_hundred():
    rng = np.random.default_rng(4)
    windows = 1000
    passed = 0
    for _ in range(windows):
        p = rng.beta(5, 1.2, 60)
        rate = np.where(p > 0.85, 0.05, 0.01)
        rows = zip(range(60), rate, rng.random(60) < p, p, strict=True)
        found = live_calibration(LabelledAudit(i, float(r), bool(ok), float(c), 0.0) for i, r, ok, c in rows)
        passed += found.ece > found.ece_limit
    # Binomial: 1% and three standard errors.
    assert passed <= windows * (0.01 + 3 * (0.01 * 0.99 / windows) ** 0.5)


def test_equal_weights_give_the_usual_numbers():
    rng = np.random.default_rng(2)
    p, correct = traffic(rng, 700, over=0.1)
    both, labels = np.column_stack([p, 1 - p]), np.where(correct, 0, 1)
    keep = p > 0.5
    rows = [
        LabelledAudit(i, 0.05, bool(correct[i]), float(p[i]), 2 * float((p[i] - correct[i]) ** 2))
        for i in np.flatnonzero(keep)
    ]
    found = live_calibration(rows)
    assert found.brier == pytest.approx(brier_score(both[keep], labels[keep]))
    usual = expected_calibration_error(both[keep], labels[keep], n_bins=10, strategy="quantile")
    assert found.ece == pytest.approx(usual, abs=0.01)
    assert sum(one.audits for one in found.reliability) == keep.sum()
    for one in found.reliability:
        inside = keep & (p >= one.low) & (p < one.low + 0.1)
        assert (one.p_correct, one.accuracy) == (pytest.approx(p[inside].mean()), pytest.approx(correct[inside].mean()))


def test_the_window_holds_the_last_in_drawn_order_whenever_labels_come():
    rows = [LabelledAudit(seq, 0.05, True, 0.9, 0.1) for seq in range(300)]
    window, shuffled = CalibrationWindow(100), CalibrationWindow(100)
    for row in rows:
        window.add(row)
    for index in np.random.default_rng(0).permutation(300):
        shuffled.add(rows[index])
    wrong = LabelledAudit(250, 0.05, False, 0.9, 0.1)
    for one in (window, shuffled):
        one.add(wrong)
        one.add(LabelledAudit(10, 0.05, False, 0.9, 0.1))
    assert window.read() == shuffled.read() == live_calibration([*rows[200:250], wrong, *rows[251:]])
    few = CalibrationWindow()
    for row in rows[: LEAST - 1]:
        few.add(row)
    assert few.read() is None


def seen(rng, n, *, less_sure=0.0):
    score, mass = rng.beta(6, 0.6 + less_sure, n), rng.beta(20, 0.5, n)
    return score, rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]), mass


def test_drift_alarms_on_at_most_one_percent_of_unshifted_windows_and_on_shifted_ones():
    rng = np.random.default_rng(4)
    score, index, mass = seen(rng, 5000)
    window = TrafficWindow(drift_monitor(Reference(score, mass, np.bincount(index, minlength=4))))

    def alarms(**shift):
        for row in zip(*seen(rng, window.size, **shift), strict=True):
            window.add(Seen(*map(float, row[:1]), int(row[1]), float(row[2]), float(row[0])))
        shown = window.read()
        assert shown.drift is not None
        return any(value > shown.limits[signal] for signal, value in shown.drift.values.items())

    assert window.read().drift is None
    assert np.mean([alarms() for _ in range(1000)]) <= 0.01
    assert np.mean([alarms(less_sure=0.3) for _ in range(20)]) > 0.9


def test_a_reference_that_is_too_small_or_torn_gives_no_drift():
    rng = np.random.default_rng(5)
    score, index, mass = seen(rng, 400)
    assert drift_monitor(Reference(score, mass, np.bincount(index, minlength=4))) is None
    score, index, mass = seen(rng, 1000)
    assert drift_monitor(Reference(score, mass[:-1], np.bincount(index, minlength=4))) is None
    assert drift_monitor(Reference(score, mass, np.array([1, 2]))) is None
