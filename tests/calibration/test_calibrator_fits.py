"""What calibrators fit: agreement with independent implementations, and data at the edge of what can be fitted."""

import warnings

import numpy as np
import pytest
from scipy import optimize, special
from sklearn.calibration import CalibratedClassifierCV, _SigmoidCalibration
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from demur import calibration as dc

FITTABLE = dc.CALIBRATORS[1:]


def top_log_odds(logp):
    ranked = np.sort(logp, axis=1)
    return ranked[:, -1] - special.logsumexp(ranked[:, :-1], axis=1)


def nll(p, y):
    return float(-np.log(p[np.arange(len(y)), y]).mean())


def test_temperature_agrees_with_scipy_and_netcal(sharp):
    logp, y = sharp
    fitted = dc.TemperatureScaling().fit(logp, y)
    rows = np.arange(len(y))
    found = optimize.minimize_scalar(
        lambda t: -special.log_softmax(logp / t, axis=1)[rows, y].mean(), bounds=(0.1, 10), options={"xatol": 1e-10}
    )
    assert fitted.temperature == pytest.approx(found.x, abs=1e-6)
    expected = special.softmax(logp / fitted.temperature, axis=1)
    np.testing.assert_allclose(fitted.transform(logp), expected, atol=1e-12)
    assert fitted.fitted.nll_after == pytest.approx(nll(expected, y))
    assert fitted.fitted.nll_before == pytest.approx(nll(np.exp(logp), y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from netcal.scaling import TemperatureScaling

        theirs = TemperatureScaling()
        theirs.fit(np.exp(logp), y)
        np.testing.assert_allclose(fitted.transform(logp), theirs.transform(np.exp(logp)), atol=1e-6)


def test_platt_agrees_with_scikit_learn(sharp):
    logp, y = sharp
    correct = logp.argmax(axis=1) == y
    theirs = _SigmoidCalibration().fit(top_log_odds(logp), correct)
    np.testing.assert_allclose(
        dc.PlattScaling().fit(logp, y).confidence(logp), theirs.predict(top_log_odds(logp)), atol=1e-6
    )


def test_isotonic_agrees_with_scikit_learn(sharp):
    logp, y = sharp
    logp = np.round(logp, 1)  # ties
    correct = logp.argmax(axis=1) == y
    floor = 1 / (len(y) + 2)
    theirs = IsotonicRegression(y_min=floor, y_max=1 - floor, out_of_bounds="clip")
    x = np.round(top_log_odds(logp), 9)
    theirs.fit(x, correct)
    np.testing.assert_allclose(dc.IsotonicCalibration().fit(logp, y).confidence(logp), theirs.predict(x), atol=1e-6)


def test_beta_agrees_with_logistic_regression_and_netcal(sharp):
    logp, y = sharp
    correct = logp.argmax(axis=1) == y
    top = np.exp(logp).max(axis=1)
    features = np.stack((np.log(top), -np.log1p(-top)), axis=1)
    theirs = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky").fit(features, correct)
    fitted = dc.BetaCalibration(prior_strength=0.0).fit(logp, y)
    assert (fitted.a, fitted.b) == pytest.approx(tuple(theirs.coef_[0]), abs=1e-6)
    np.testing.assert_allclose(fitted.confidence(logp), theirs.predict_proba(features)[:, 1], atol=1e-6)
    # The default prior is there for separable data and hardly shows otherwise.
    np.testing.assert_allclose(dc.BetaCalibration().fit(logp, y).confidence(logp), fitted.confidence(logp), atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from netcal.scaling import BetaCalibration

        netcal = BetaCalibration()
        netcal.fit(top, correct.astype(int))
        # netcal stops its search early, so parameters agree to 1e-4 and the likelihood, flat there, to 1e-6.
        two = [np.stack((1 - q, q), axis=1) for q in (netcal.transform(top), fitted.confidence(logp))]
    assert nll(two[0], correct.astype(int)) == pytest.approx(nll(two[1], correct.astype(int)), abs=1e-6)


def test_beta_drops_a_weight_that_would_be_negative(readouts):
    logp, _ = readouts(2000, seed=4)
    rng = np.random.default_rng(0)
    # Right answers are likelier at the low end of confidence: both weights want to be negative.
    backwards = np.where(rng.random(2000) < 1.2 - np.exp(logp).max(axis=1), logp.argmax(axis=1), logp.argmin(axis=1))
    fitted = dc.BetaCalibration().fit(logp, backwards)
    assert (fitted.a, fitted.b) == (0.0, 0.0)
    assert "no better than chance" in fitted.fitted.notes[0]
    platt = dc.PlattScaling().fit(logp, backwards)
    assert platt.slope == 0.0
    assert "no better than chance" in platt.fitted.notes[0]
    rate = (logp.argmax(axis=1) == backwards).mean()
    np.testing.assert_allclose(platt.confidence(logp), rate, atol=1e-3)
    np.testing.assert_allclose(fitted.confidence(logp), rate, atol=1e-3)


def test_bias_corrected_temperature_on_two_options_is_platts_sigmoid(readouts):
    logp, y = readouts(1000, 2, temperature=2.0, bias=0.5)
    fitted = dc.BiasCorrectedTemperature(prior_strength=0.0).fit(logp, y)
    theirs = LogisticRegression(C=np.inf, tol=1e-12).fit(logp[:, 1:] - logp[:, :1], y)
    np.testing.assert_allclose(fitted.transform(logp), theirs.predict_proba(logp[:, 1:] - logp[:, :1]), atol=1e-6)
    # Platt's own smoothed targets move scikit-learn's calibrator by less than a label's worth.
    frozen = FrozenEstimator(LogisticRegression(C=1e6).fit(logp[:, 1:] - logp[:, :1], y))
    sigmoid = CalibratedClassifierCV(frozen, method="sigmoid").fit(logp[:, 1:] - logp[:, :1], y)
    np.testing.assert_allclose(fitted.transform(logp), sigmoid.predict_proba(logp[:, 1:] - logp[:, :1]), atol=5e-3)


@pytest.mark.parametrize("kind", [dc.BiasCorrectedTemperature, dc.VectorScaling, dc.DirichletCalibration])
def test_affine_fits_agree_with_a_plain_search(readouts, kind):
    logp, y = readouts(300, 3, temperature=2.0, bias=0.5)
    fitted = kind().fit(logp, y)
    n, k = logp.shape

    def spread(theta):
        if kind is dc.BiasCorrectedTemperature:
            return theta[0] * np.eye(k)
        return np.diag(theta[:k]) if kind is dc.VectorScaling else theta[: k * k].reshape(k, k)

    def loss(theta):
        bias = theta[-k:]
        z = logp @ spread(theta).T + bias
        away = spread(theta) - np.eye(k)
        if kind is dc.BiasCorrectedTemperature:
            penalty = away[0, 0] ** 2
        else:
            penalty = (away**2 * np.where(np.eye(k) == 1, 1, 100)).sum()
        return -special.log_softmax(z, axis=1)[np.arange(n), y].mean() + (penalty + bias @ bias) / (2 * n)

    size = {dc.BiasCorrectedTemperature: 1, dc.VectorScaling: k, dc.DirichletCalibration: k * k}[kind]
    start = np.concatenate((np.eye(k).ravel() if size == k * k else np.ones(size), np.zeros(k)))
    found = optimize.minimize(loss, start, method="BFGS", jac="3-point", options={"gtol": 1e-9})
    theta = optimize.minimize(loss, found.x, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15}).x
    expected = special.softmax(logp @ spread(theta).T + theta[-k:], axis=1)
    np.testing.assert_allclose(fitted.transform(logp), expected, atol=1e-6)


def test_scaling_binning_averages_platts_sigmoid_in_equal_count_bins(sharp):
    logp, y = sharp
    platt = dc.PlattScaling().fit(logp, y).confidence(logp)
    binned = dc.ScalingBinning(n_bins=8).fit(logp, y).confidence(logp)
    values, counts = np.unique(binned, return_counts=True)
    assert counts.tolist() == [250] * 8
    for value in values:
        assert platt[binned == value].mean() == pytest.approx(value, abs=1e-12)
    # Too few rows for the bins asked for: fewer bins.
    assert len(np.unique(dc.ScalingBinning().fit(logp[:60], y[:60]).confidence(logp))) == 3


@pytest.mark.parametrize("kind", FITTABLE)
def test_calibration_lowers_the_likelihood_loss_of_sharp_readouts(sharp, readouts, kind):
    fitted = kind().fit(*sharp)
    logp, y = readouts(2000, temperature=2.0, bias=0.3, seed=9)
    assert nll(fitted.transform(logp), y) < nll(np.exp(logp), y) - 0.1
    np.testing.assert_allclose(fitted.transform(logp).sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.parametrize("kind", dc.CALIBRATORS)
def test_exact_zeros_are_clipped_and_said(sharp, kind):
    logp, y = sharp[0][:500].copy(), sharp[1][:500]
    logp[:3, 1] = -np.inf
    fitted = kind().fit(logp, y)
    assert fitted.fitted.clipped_zeros == 3
    assert "3 probabilities of exactly zero" in fitted.fitted.notes[-1]
    assert np.isfinite(fitted.transform(logp)).all()
    assert np.isfinite(fitted.fitted.nll_after)


def test_a_temperature_at_its_bound_is_said(readouts):
    logp, _ = readouts(200, seed=2)
    labels = logp.argsort(axis=1)[:, 0]
    labels[0] = logp[0].argmax()
    fitted = dc.TemperatureScaling().fit(logp, labels)
    assert fitted.temperature == pytest.approx(100.0)
    assert "bound of 100" in fitted.fitted.notes[0]


def test_separable_labels_give_finite_calibrators():
    rng = np.random.default_rng(0)
    top = np.concatenate((rng.uniform(0.5, 0.7, 50), rng.uniform(0.8, 0.99, 50)))
    logp = np.log(np.stack((top, 1 - top), axis=1))[:, ::1]
    logp[::2] = logp[::2, ::-1]
    labels = np.where(np.arange(100) < 50, 1 - logp.argmax(axis=1), logp.argmax(axis=1))
    for kind in FITTABLE:
        p = kind().fit(logp, labels).transform(logp)
        assert np.isfinite(p).all()
        assert (p < 1).all()


def test_an_option_that_never_occurs_keeps_a_finite_bias(readouts):
    logp, y = readouts(300, 4)
    y = np.where(y == 3, 0, y)
    for kind in (dc.BiasCorrectedTemperature, dc.VectorScaling, dc.DirichletCalibration):
        fitted = kind().fit(logp, y)
        assert np.abs(fitted.bias).max() < 10
