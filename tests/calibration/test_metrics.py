"""Metrics: agreement with scikit-learn, netcal and MAPIE, values worked by hand, invariances, and refusals."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.metrics import calibration as mapie
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from demur import calibration as dc

EVERY_METRIC = [
    dc.accuracy,
    dc.negative_log_likelihood,
    dc.brier_score,
    dc.expected_calibration_error,
    lambda p, y: dc.expected_calibration_error(p, y, n_bins=10, strategy="quantile"),
    dc.debiased_calibration_error,
    dc.maximum_calibration_error,
    dc.classwise_calibration_error,
    dc.smooth_calibration_error,
    lambda p, y: dc.auroc(p.max(axis=1), p.argmax(axis=1) == y),
    lambda p, y: dc.aurc(p.max(axis=1), p.argmax(axis=1) == y),
    lambda p, y: dc.excess_aurc(p.max(axis=1), p.argmax(axis=1) == y),
    lambda p, y: dc.brier_decomposition(p, y).reliability,
    lambda p, y: dc.brier_decomposition(p, y).resolution,
    lambda p, y: dc.ece_noise_band(p, n_simulations=50).upper,
    lambda p, y: dc.bootstrap_interval("nll", p, y, n_resamples=20).lower,
    lambda p, y: dc.bootstrap_interval("aurc", p, y, n_resamples=20).upper,
]


@pytest.fixture(scope="module")
def sharp(readouts):
    """2,000 overconfident decisions over five options."""
    logp, y = readouts(2000, temperature=2.0)
    return np.exp(logp), y


def test_scores_agree_with_scikit_learn(sharp, readouts):
    p, y = sharp
    correct = p.argmax(axis=1) == y
    assert dc.accuracy(p, y) == sk.accuracy_score(y, p.argmax(axis=1))
    assert dc.negative_log_likelihood(p, y) == pytest.approx(sk.log_loss(y, p), abs=1e-12)
    assert dc.brier_score(p, y) == pytest.approx(sk.brier_score_loss(y, p), abs=1e-12)
    assert dc.auroc(p.max(axis=1), correct) == pytest.approx(sk.roc_auc_score(correct, p.max(axis=1)), abs=1e-12)
    logp, y = readouts(500, 2)
    p = np.exp(logp)
    assert dc.brier_score(p, y) == pytest.approx(2 * sk.brier_score_loss(y, p[:, 1]), abs=1e-12)


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_reliability_bins_agree_with_scikit_learn(sharp, strategy, n_bins):
    p, y = sharp
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    accuracy, mean = calibration_curve(correct, confidence, n_bins=n_bins, strategy=strategy)
    bins = dc.reliability_bins(confidence, correct, n_bins=n_bins, strategy=strategy)
    np.testing.assert_allclose(bins.accuracy, accuracy, atol=1e-12)
    np.testing.assert_allclose(bins.confidence, mean, atol=1e-12)
    assert bins.counts.sum() == len(y)
    assert bins.expected_error == dc.expected_calibration_error(p, y, n_bins=n_bins, strategy=strategy)


def test_calibration_errors_agree_with_netcal_and_mapie(sharp):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from netcal.metrics.confidence import ECE, MCE
    p, y = sharp
    for n_bins in (10, 15):
        for strategy in ("uniform", "quantile"):
            equal = strategy == "uniform"
            ece = dc.expected_calibration_error(p, y, n_bins=n_bins, strategy=strategy)
            assert ece == pytest.approx(float(ECE(n_bins, equal_intervals=equal).measure(p, y)), abs=1e-6)
            mce = dc.maximum_calibration_error(p, y, n_bins=n_bins, strategy=strategy)
            assert mce == pytest.approx(float(MCE(n_bins, equal_intervals=equal).measure(p, y)), abs=1e-6)
    confidence, correct = p.max(axis=1), (p.argmax(axis=1) == y).astype(int)
    # MAPIE's `num_bins` counts edges: sixteen of them bound fifteen bins.
    theirs = mapie.expected_calibration_error(correct, confidence, num_bins=16, split_strategy="uniform")
    assert dc.expected_calibration_error(p, y) == pytest.approx(theirs, abs=1e-9)


def test_expected_calibration_error_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    y = np.array([0, 1, 1, 1])
    # Four bins of one decision each: gaps .1, .8, .3, .4.
    assert dc.expected_calibration_error(p, y, n_bins=10) == pytest.approx(0.4)
    assert dc.maximum_calibration_error(p, y, n_bins=10) == pytest.approx(0.8)
    # Two bins of two: |1 - .65| and |.5 - .85|.
    assert dc.expected_calibration_error(p, y, n_bins=2, strategy="quantile") == pytest.approx(0.35)


def test_bins_are_closed_above():
    p = np.array([[0.8, 0.2], [0.9, 0.1]])
    bins = dc.reliability_bins(p[:, 0], [True, True], n_bins=10)
    np.testing.assert_array_equal(bins.upper, [0.8, 0.9])
    assert dc.reliability_bins([0.0, 1.0], [True, False], n_bins=4).counts.tolist() == [1, 1]


def test_classwise_error_is_the_mean_of_each_options_error(sharp):
    p, y = sharp
    each = [dc.reliability_bins(p[:, k], y == k).expected_error for k in range(p.shape[1])]
    assert dc.classwise_calibration_error(p, y) == pytest.approx(np.mean(each), abs=1e-12)


def test_brier_decomposition_adds_up_and_matches_its_definition(sharp):
    p, y = sharp
    parts = dc.brier_decomposition(p, y, n_bins=15)
    assert parts.total == pytest.approx(dc.brier_score(p, y), abs=1e-12)
    reliability = sum(
        float(b.counts @ (b.accuracy - b.confidence) ** 2 / len(y))
        for b in (dc.reliability_bins(p[:, k], y == k) for k in range(5))
    )
    assert parts.reliability == pytest.approx(reliability, abs=1e-12)
    base = np.bincount(y) / len(y)
    assert parts.uncertainty == pytest.approx(float((base * (1 - base)).sum()), abs=1e-12)
    assert abs(parts.within_bin) < 0.01
    # Forecasts with one value per bin leave nothing over: Murphy's identity is exact.
    q = np.tile([[0.2, 0.8], [0.6, 0.4]], (50, 1))
    assert dc.brier_decomposition(q, np.arange(100) % 3 == 0).within_bin == pytest.approx(0.0, abs=1e-12)


def test_debiased_error_is_near_zero_where_the_plain_one_is_not(readouts):
    plain, debiased = [], []
    for seed in range(30):
        logp, y = readouts(300, seed=seed)
        p = np.exp(logp)
        b = dc.reliability_bins(p.max(axis=1), p.argmax(axis=1) == y, strategy="quantile")
        plain.append(float(b.counts @ (b.accuracy - b.confidence) ** 2 / 300))
        raw = (b.accuracy - b.confidence) ** 2 - b.accuracy * (1 - b.accuracy) / (b.counts - 1)
        squared = float(b.counts @ raw / 300)
        debiased.append(squared)
        assert dc.debiased_calibration_error(p, y) == pytest.approx(np.sqrt(max(squared, 0.0)), abs=1e-12)
    assert abs(np.mean(debiased)) < 3 * stats.sem(debiased)
    assert np.mean(plain) > 10 * stats.sem(plain)
    assert np.isnan(dc.debiased_calibration_error([[0.5, 0.5]], [0]))


def test_smooth_error_agrees_with_its_definition(sharp):
    p, y = sharp
    p, y = p[:300], y[:300]
    confidence, residual = p.max(axis=1), (p.argmax(axis=1) == y) - p.max(axis=1)
    found = dc.smooth_calibration_error(p, y)
    grid = (np.arange(4000) + 0.5) / 4000
    # The reflected kernel, term by term; three reflections each way are far beyond any bandwidth here.
    smoothed = np.zeros_like(grid)
    for shift in range(-3, 4):
        for centre in (2 * shift + confidence, 2 * shift - confidence):
            smoothed += stats.norm.pdf(grid[:, None], centre[None], found) @ residual / len(y)
    assert np.abs(smoothed).mean() == pytest.approx(found, abs=1e-6)


def test_ranking_figures_by_hand_and_under_ties():
    confidence, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    curve = dc.risk_coverage(confidence, correct)
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert curve.excess_aurc == pytest.approx(curve.aurc - (0 + 0 + 1 / 3 + 2 / 4) / 4)
    # All tied: every random order is equally likely, so each prefix expects the overall risk.
    tied = dc.risk_coverage(np.full(4, 0.5), correct)
    assert (len(tied.threshold), tied.auroc) == (1, 0.5)
    assert tied.aurc == pytest.approx(0.5)
    ideal = dc.risk_coverage([0.9, 0.8, 0.2, 0.1], [True, True, False, False])
    assert ideal.excess_aurc == pytest.approx(0.0, abs=1e-15)
    assert np.isnan(dc.auroc([0.1, 0.2], [True, True]))


def test_ranking_under_ties_is_the_mean_over_random_orders():
    rng = np.random.default_rng(1)
    confidence, correct = rng.integers(0, 4, 40) / 4, rng.random(40) < 0.6
    assert dc.auroc(confidence, correct) == pytest.approx(sk.roc_auc_score(correct, confidence), abs=1e-12)
    broken = [dc.aurc(confidence + 1e-6 * rng.random(40), correct) for _ in range(2000)]
    assert abs(dc.aurc(confidence, correct) - np.mean(broken)) < 4 * stats.sem(broken)


@pytest.mark.parametrize("metric", EVERY_METRIC)
def test_row_order_does_not_matter(sharp, metric):
    p, y = sharp
    # Rounded confidences give ties, which row order could break.
    p = np.round(p[:400], 2) + 1e-3
    p /= p.sum(axis=1, keepdims=True)
    order = np.random.default_rng(3).permutation(400)
    assert metric(p[order], y[:400][order]) == pytest.approx(metric(p, y[:400]), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 40), st.integers(1, 20))
def test_metrics_stay_in_range(seed, k, n, n_bins):
    rng = np.random.default_rng(seed)
    p, y = rng.dirichlet(np.full(k, 0.3), n), rng.integers(0, k, n)
    for strategy in ("uniform", "quantile"):
        ece = dc.expected_calibration_error(p, y, n_bins=n_bins, strategy=strategy)
        mce = dc.maximum_calibration_error(p, y, n_bins=n_bins, strategy=strategy)
        assert 0 <= ece <= mce + 1e-12
        assert mce <= 1
    assert 0 <= dc.smooth_calibration_error(p, y) <= 1
    assert -1e-12 <= dc.brier_score(p, y) <= 2 + 1e-12
    parts = dc.brier_decomposition(p, y, n_bins=n_bins)
    assert parts.reliability >= 0
    assert parts.resolution >= -1e-12
    assert parts.total == pytest.approx(dc.brier_score(p, y))
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    assert -1e-12 <= dc.excess_aurc(confidence, correct) <= dc.aurc(confidence, correct) <= 1


def test_noise_band_holds_calibrated_models_and_not_overconfident_ones(readouts):
    inside = 0
    for seed in range(100):
        logp, y = readouts(300, seed=seed)
        p = np.exp(logp)
        band = dc.ece_noise_band(p, n_simulations=200)
        inside += band.lower <= dc.expected_calibration_error(p, y) <= band.upper
    # 95 expected, standard deviation about 2.2 (and a little for 200 simulations).
    assert 87 <= inside < 100
    logp, y = readouts(300, temperature=2.0)
    assert dc.expected_calibration_error(np.exp(logp), y) > dc.ece_noise_band(np.exp(logp)).upper


def test_noise_band_agrees_with_row_by_row_simulation(readouts):
    logp, _ = readouts(3000)
    p = np.exp(logp)
    c = p.max(axis=1)
    rng = np.random.default_rng(5)
    drawn = [dc.reliability_bins(c, rng.random(3000) < c).expected_error for _ in range(400)]
    band = dc.ece_noise_band(p, n_simulations=4000)
    assert abs(band.mean - np.mean(drawn)) < 4 * stats.sem(drawn)
    assert band.upper == pytest.approx(np.quantile(drawn, 0.975), rel=0.1)
    assert dc.confidence_noise_band(c, n_simulations=4000) == band


def test_binomial_interval_is_exact():
    lower, upper = dc.binomial_interval([0, 3, 10], [10, 10, 10])
    for k, low, high in zip([0, 3, 10], lower, upper, strict=True):
        exact = stats.binomtest(k, 10).proportion_ci(0.95, method="exact")
        assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert [float(end) for end in dc.binomial_interval(0, 0)] == [0.0, 1.0]
    with pytest.raises(dc.InvalidParameter, match="between 0 and trials"):
        dc.binomial_interval(4, 3)


@pytest.mark.parametrize("metric", ["accuracy", "nll", "brier", "auroc", "aurc"])
def test_bootstrap_intervals_hold_the_estimate_and_shrink(sharp, metric):
    p, y = sharp
    wide = dc.bootstrap_interval(metric, p[:200], y[:200], n_resamples=200)
    narrow = dc.bootstrap_interval(metric, p, y, n_resamples=200)
    assert wide.lower < wide.estimate < wide.upper
    assert narrow.upper - narrow.lower < 0.6 * (wide.upper - wide.lower)
    assert wide == dc.bootstrap_interval(metric, p[:200], y[:200], n_resamples=200)


def test_bootstrap_of_a_mean_agrees_with_its_standard_error(sharp):
    p, y = sharp
    loss = -np.log(p[np.arange(len(y)), y])
    found = dc.bootstrap_interval("nll", p, y)
    assert found.estimate == pytest.approx(loss.mean(), abs=1e-12)
    assert found.upper - found.lower == pytest.approx(2 * 1.96 * stats.sem(loss), rel=0.1)


def test_bootstrap_is_refused_where_it_would_mislead(sharp):
    p, y = sharp
    with pytest.raises(dc.NoValidInterval, match="ece"):
        dc.bootstrap_interval("ece", p, y)
    with pytest.raises(dc.NoValidInterval, match="right and wrong"):
        dc.bootstrap_interval("auroc", p, p.argmax(axis=1))


def test_report_agrees_with_the_single_functions(sharp):
    p, y = sharp
    report = dc.calibration_report(p, y)
    correct = p.argmax(axis=1) == y
    assert report.accuracy == dc.accuracy(p, y)
    assert report.nll == pytest.approx(dc.negative_log_likelihood(p, y))
    assert report.brier == pytest.approx(dc.brier_score(p, y))
    assert report.brier_decomposition == dc.brier_decomposition(p, y)
    for strategy in ("uniform", "quantile"):
        for n_bins in (10, 15):
            ece = dc.expected_calibration_error(p, y, n_bins=n_bins, strategy=strategy)
            assert getattr(report, f"ece_{strategy}_{n_bins}") == ece
    for name in ("debiased", "maximum", "classwise", "smooth"):
        value = getattr(report, f"{name}_calibration_error")
        assert value == pytest.approx(getattr(dc, f"{name}_calibration_error")(p, y))
    for name in ("auroc", "aurc", "excess_aurc"):
        assert getattr(report, name) == pytest.approx(getattr(dc, name)(p.max(axis=1), correct))
    assert report.ece_noise == dc.ece_noise_band(p, n_simulations=200)


def test_report_says_what_it_clipped_and_writes_no_nan():
    p = np.array([[1.0, 0.0], [1.0, 0.0], [0.4, 0.6]])
    report = dc.calibration_report(p, [0, 1, 1])
    assert report.clipped_zeros == 1
    assert report.nll == pytest.approx((36.0436533891 - np.log(0.6)) / 3)
    assert dc.calibration_report(p, [0, 0, 1]).to_dict()["auroc"] is None


GOOD = [[0.5, 0.5], [0.25, 0.75]]


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[0.5, 0.5], [np.nan, 0.5]], [0, 1], "row 1, option 0: nan"),
        ([[0.5, 0.5], [np.inf, 0.5]], [0, 1], "row 1, option 0: inf"),
        ([[0.5, 0.5], [1.2, -0.2]], [0, 1], "row 1, option 1: -0.2"),
        ([[0.5, 0.5], [0.9, 0.9]], [0, 1], "row 1: they sum to 1.8"),
        ([[-np.inf, np.inf], [0.9, 0.1]], [0, 1], "row 0, option 0: -inf"),
        (GOOD, [0, 2], "row 1: 2 is not an option index in 0..1"),
        (GOOD, [-1, 0], "row 0: -1"),
        (GOOD, [0.0, 1.0], "must be integers"),
        (GOOD, ["a", "b"], "must be integers"),
        (GOOD, [0], "1 labels for 2 rows"),
        (GOOD, [[0], [1]], "one dimension"),
        (np.zeros((0, 2)), [], "no rows"),
        ([0.5, 0.5], [0, 1], "shape"),
        ([[1.0], [1.0]], [0, 0], "K >= 2"),
        ([["x", "y"]], [0], "not an array of numbers"),
    ],
)
@pytest.mark.parametrize("metric", [dc.expected_calibration_error, dc.negative_log_likelihood, dc.calibration_report])
def test_bad_arrays_are_named(metric, probabilities, labels, message):
    with pytest.raises(dc.InvalidData, match=message):
        metric(probabilities, labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dc.expected_calibration_error(GOOD, [0, 1], n_bins=0), "n_bins"),
        (lambda: dc.classwise_calibration_error(GOOD, [0, 1], n_bins=0), "n_bins"),
        (lambda: dc.expected_calibration_error(GOOD, [0, 1], strategy="width"), "strategy"),
        (lambda: dc.ece_noise_band(GOOD, level=1.0), "level"),
        (lambda: dc.ece_noise_band(GOOD, n_simulations=0), "n_simulations"),
        (lambda: dc.bootstrap_interval("nll", GOOD, [0, 1], level=0.0), "level"),
        (lambda: dc.bootstrap_interval("nll", GOOD, [0, 1], n_resamples=0), "n_resamples"),
    ],
)
def test_bad_parameters_are_named(call, message):
    with pytest.raises(dc.InvalidParameter, match=message):
        call()


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([0.5, 1.5], [True, False], "row 1: 1.5"),
        ([0.5, np.nan], [True, False], "row 1: nan"),
        ([0.5, 0.6], [0, 2], "row 1"),
        ([0.5, 0.6], [True], "1 values of correct for 2 rows"),
        ([], [], "no rows"),
        ([[0.5]], [True], "one dimension"),
        (["x"], [True], "not an array of numbers"),
        ([0.5], [[True]], "one dimension"),
    ],
)
def test_bad_confidences_are_named(confidence, correct, message):
    with pytest.raises(dc.InvalidData, match=message):
        dc.reliability_bins(confidence, correct)


def test_scores_on_any_scale_rank_but_nan_does_not():
    assert dc.auroc([-5.0, 3.0, 7.0], [False, True, True]) == 1.0
    with pytest.raises(dc.InvalidData, match="row 1: nan"):
        dc.auroc([0.1, np.nan], [True, False])


def test_rounded_probabilities_are_accepted(sharp):
    p, y = sharp
    assert dc.accuracy(p.astype(np.float32), y) == pytest.approx(dc.accuracy(p, y), abs=1e-3)
    assert dc.expected_calibration_error([[1.0005, 0.0], [0.5, 0.5]], [0, 1]) == pytest.approx(0.25)
