"""Selection by cross-validated NLL: what it picks, what it leaves out, and that row order is nothing to it."""

import numpy as np
import pytest
from scipy import stats

from demur import calibration as dc
from demur.calibration.folds import assign_folds, content_groups, mean_and_error

ALL = [kind.kind for kind in dc.CALIBRATORS]


def skipped(selection):
    return {c.kind: c.skipped for c in selection.candidates if c.skipped}


def test_calibrated_readouts_keep_identity(readouts):
    chosen = [dc.select_calibrator(*readouts(1000, seed=seed)) for seed in range(10, 16)]
    # One standard error is crossed by chance now and then; measured, 4 of 120 samples.
    assert sum(selection.calibrator.kind == "identity" for selection in chosen) >= 5
    selection = chosen[0]
    assert selection.refusal is None
    assert [c.n_parameters for c in selection.candidates] == sorted(c.n_parameters for c in selection.candidates)
    assert min(c.excess for c in selection.candidates if c.excess is not None) == 0.0


def test_sharp_readouts_get_a_temperature(readouts):
    selection = dc.select_calibrator(*readouts(2000, temperature=2.0))
    assert selection.calibrator.kind == "temperature"
    assert selection.calibrator.temperature == pytest.approx(2.0, rel=0.1)
    assert selection.calibrator.fitted.n == 2000


def test_biased_readouts_get_biases_unless_the_decision_must_stay(readouts):
    logp, y = readouts(3000, bias=0.8)
    assert dc.select_calibrator(logp, y).calibrator.kind == "bias_corrected_temperature"
    kept = dc.select_calibrator(logp, y, keep_decision=True)
    assert not kept.calibrator.moves_decision
    assert {k for k, why in skipped(kept).items() if why == "may move the decision"} == {
        "bias_corrected_temperature",
        "vector",
        "dirichlet",
    }


def test_bent_confidence_gets_a_bent_map(readouts):
    # The top probability is right where it is low and far too high where it is high: no temperature says that.
    logp, y = readouts(6000, 2, seed=5)
    rng = np.random.default_rng(1)
    top = np.exp(logp).max(axis=1)
    swap = (top > 0.9) & (rng.random(6000) < 0.4)
    chosen = dc.select_calibrator(logp, np.where(swap, 1 - y, y), margin=0.0).calibrator
    assert chosen.kind in ("isotonic", "scaling_binning", "beta")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_selection_on_calibrated_scores_changes_nothing_that_shows(readouts, temperature):
    """Calibrate once; select again on the calibrated scores; held out, NLL moves by less than its standard error."""
    first = dc.select_calibrator(*readouts(2000, temperature=temperature, seed=21)).calibrator

    def calibrated(seed):
        logp, y = readouts(1000, temperature=temperature, seed=seed)
        return np.log(first.transform(logp)), y

    for seed in (31, 41, 51):
        again = dc.select_calibrator(*calibrated(seed)).calibrator
        logp, y = calibrated(seed + 1)
        rows = np.arange(len(y))
        before, after = logp[rows, y], np.log(again.transform(logp)[rows, y])
        assert abs((after - before).mean()) < stats.sem(before)


def test_row_order_does_not_matter(readouts):
    logp, y = readouts(600, temperature=1.5)
    order = np.random.default_rng(2).permutation(600)
    one, other = dc.select_calibrator(logp, y), dc.select_calibrator(logp[order], y[order])
    assert one.calibrator.kind == other.calibrator.kind
    np.testing.assert_allclose(other.calibrator.transform(logp), one.calibrator.transform(logp), atol=1e-9)
    for a, b in zip(one.candidates, other.candidates, strict=True):
        assert (a.kind, a.skipped) == (b.kind, b.skipped)
        assert a.nll == pytest.approx(b.nll, abs=1e-9)
        assert a.standard_error == pytest.approx(b.standard_error, abs=1e-9)


def test_varying_options_leave_out_what_depends_on_them(readouts):
    logp, y = readouts(1000, temperature=2.0)
    selection = dc.select_calibrator(logp, y, options_vary=True)
    assert set(skipped(selection)) == {"bias_corrected_temperature", "vector", "dirichlet"}
    only = dc.select_calibrator(logp, y, options_vary=True, candidates=[dc.VectorScaling()])
    assert only.calibrator.kind == "identity"
    assert "options vary" in only.refusal


def test_few_labels_rule_out_large_candidates(readouts):
    selection = dc.select_calibrator(*readouts(60, temperature=2.0))
    assert skipped(selection)["isotonic"] == "needs 500 labels, 440 more"
    assert skipped(selection)["dirichlet"] == "needs 240 labels, 180 more"
    assert "temperature" not in skipped(selection)


def test_refused_labels_keep_identity_and_say_why(readouts):
    logp, y = readouts(100)
    right = logp.argmax(axis=1)
    for labels, n, why in [
        (y, 19, "19 labels"),
        (np.zeros(100, int), 100, "all 100 labels"),
        (right, 100, "are right"),
        ((right + 1 + np.arange(100) % 2) % 5, 100, "are wrong"),
    ]:
        selection = dc.select_calibrator(logp[:n], labels[:n])
        assert selection.calibrator.kind == "identity"
        assert why in selection.refusal
        assert {c.kind for c in selection.candidates} == set(ALL)
        assert all(why in c.skipped for c in selection.candidates)
        np.testing.assert_allclose(selection.calibrator.transform(logp), np.exp(logp), atol=1e-12)
    selection = dc.select_calibrator(logp, y, groups=["one"] * 100)
    assert "one group" in selection.refusal


def test_unusable_data_and_parameters_are_errors(readouts):
    logp, y = readouts(100)
    with pytest.raises(dc.InvalidData, match="row 3, option 0: nan"):
        dc.select_calibrator(np.where(np.arange(100)[:, None] == 3, np.nan, logp), y)
    with pytest.raises(dc.InvalidData, match="2 groups for 100 rows"):
        dc.select_calibrator(logp, y, groups=["a", "b"])
    for wrong in ({"n_folds": 1}, {"margin": -1.0}, {"margin": float("nan")}, {"candidates": []}):
        with pytest.raises(dc.InvalidParameter):
            dc.select_calibrator(logp, y, **wrong)


def test_equal_rows_and_groups_never_straddle_folds(readouts):
    logp, y = readouts(200)
    logp, y = np.tile(logp, (2, 1)), np.tile(y, 2)
    correct = logp.argmax(axis=1) == y
    groups = content_groups(logp, y, None)
    fold = assign_folds(groups, correct, 5)
    np.testing.assert_array_equal(fold[:200], fold[200:])
    assert np.bincount(fold).min() >= 0.9 * 400 / 5
    wrong = np.bincount(fold, ~correct)
    assert wrong.max() - wrong.min() <= 2
    named = assign_folds(content_groups(logp, y, [f"person {i % 37}" for i in range(400)]), correct, 5)
    for person in range(37):
        assert len(set(named[np.arange(400) % 37 == person])) == 1


def test_copies_do_not_shrink_the_standard_error(readouts):
    values = np.random.default_rng(0).normal(size=200)
    mean, error = mean_and_error(values, np.arange(200))
    assert (mean, error) == pytest.approx((values.mean(), values.std() / np.sqrt(200)))
    copied = mean_and_error(np.tile(values, 4), np.tile(np.arange(200), 4))
    assert copied == pytest.approx((mean, error))


def test_one_wrong_label_among_many_is_survived(readouts):
    logp, _ = readouts(40)
    y = logp.argmax(axis=1)
    y[7] = (y[7] + 1) % 5
    selection = dc.select_calibrator(logp, y)
    assert selection.refusal is None
    assert np.isfinite(selection.calibrator.transform(logp)).all()
