"""Calibrators: agreement with independent implementations, invariances, storage, and refusals."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize, special, stats
from sklearn.calibration import CalibratedClassifierCV, _SigmoidCalibration
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from demur import calibration as dc

FITTABLE = dc.CALIBRATORS[1:]
TOP_LABEL = [dc.PlattScaling, dc.BetaCalibration, dc.IsotonicCalibration, dc.ScalingBinning]


@pytest.fixture(scope="module")
def sharp(readouts):
    """2,000 overconfident readouts over five options."""
    return readouts(2000, temperature=2.0, bias=0.3)


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


@pytest.mark.parametrize("kind", TOP_LABEL)
def test_confidence_is_what_the_top_probability_shows(sharp, kind):
    logp, y = sharp
    fitted = kind().fit(logp, y)
    top, confidence = fitted.transform(logp).max(axis=1), fitted.confidence(logp)
    lifted = top > confidence + 1e-12
    np.testing.assert_allclose(top[~lifted], confidence[~lifted], atol=1e-12)
    assert lifted.mean() < 0.5
    assert abs(confidence.mean() - (logp.argmax(axis=1) == y).mean()) < 0.01
    # The rest keeps the proportions of the temperature-scaled row.
    tempered = special.softmax(logp / fitted.rest_temperature, axis=1)
    order = np.argsort(logp, axis=1)
    second, third = (np.take_along_axis(a, order[:, [-2, -3]], axis=1).T for a in (fitted.transform(logp), tempered))
    np.testing.assert_allclose(second[0] / second[1], third[0] / third[1], rtol=1e-9)


@pytest.mark.parametrize("kind", dc.CALIBRATORS)
def test_row_order_does_not_matter(sharp, kind):
    logp, y = sharp
    logp, y = logp[:500], y[:500]
    order = np.random.default_rng(1).permutation(500)
    np.testing.assert_allclose(
        kind().fit(logp[order], y[order]).transform(logp), kind().fit(logp, y).transform(logp), atol=1e-9
    )


@pytest.mark.parametrize("kind", dc.CALIBRATORS)
def test_a_constant_per_row_does_not_matter(sharp, kind):
    logp, y = sharp
    logp, y = logp[:300], y[:300]
    shift = np.random.default_rng(1).normal(size=(300, 1))
    np.testing.assert_allclose(
        kind().fit(logp + shift, y).transform(logp), kind().fit(logp, y).transform(logp), atol=1e-8
    )


rows = hnp.arrays(
    np.float64,
    st.tuples(st.integers(20, 40), st.integers(2, 5)),
    elements=st.floats(-1e6, 1e6) | st.floats(-3, 3) | st.sampled_from([-np.inf, 0.0, 5e-324, 1e-17]),
)


@settings(max_examples=200, deadline=None)
@given(rows, st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("kind", [k for k in dc.CALIBRATORS if not k.moves_decision])
def test_the_decision_never_changes(kind, logprobs, seed):
    """Ties, denormal differences, zeros and huge spreads included: the first most probable option stays first."""
    assume((logprobs.max(axis=1) > -np.inf).all())
    labels = np.random.default_rng(seed).integers(0, logprobs.shape[1], len(logprobs))
    try:
        fitted = kind().fit(logprobs, labels)
    except (dc.OneSided, dc.OneClassOnly):
        return
    p = fitted.transform(logprobs)
    np.testing.assert_array_equal(p.argmax(axis=1), logprobs.argmax(axis=1))
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-9)
    assert (p >= 0).all()
    one = np.stack([fitted.transform_one(row) for row in logprobs])
    np.testing.assert_allclose(one, p, atol=1e-12)
    np.testing.assert_array_equal(one.argmax(axis=1), logprobs.argmax(axis=1))


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(20, 60), elements=st.floats(0.5, 1.0, exclude_max=True)),
    st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("kind", TOP_LABEL)
def test_confidence_is_monotone(kind, top, seed):
    labels = np.random.default_rng(seed).integers(0, 2, len(top))
    with np.errstate(divide="ignore"):
        logp = np.log(np.stack((top, 1 - top), axis=1))
    try:
        fitted = kind().fit(logp, labels)
    except (dc.OneSided, dc.OneClassOnly):
        return
    grid = np.linspace(0.5, 1 - 1e-9, 400)
    confidence = fitted.confidence(np.log(np.stack((grid, 1 - grid), axis=1)))
    assert (np.diff(confidence) >= -1e-11).all()
    assert (confidence > 0).all()
    assert (confidence < 1).all()


@pytest.mark.parametrize("kind", dc.CALIBRATORS)
def test_serving_one_row_is_the_same_arithmetic(sharp, kind):
    logp, y = sharp
    fitted = kind().fit(logp, y)
    one = np.stack([fitted.transform_one(row) for row in logp[:200]])
    np.testing.assert_allclose(one, fitted.transform(logp)[:200], atol=1e-15)
    with pytest.raises(dc.InvalidData, match="shape"):
        fitted.transform_one(logp)
    with pytest.raises(dc.InvalidData, match="row 0, option 1: nan"):
        fitted.transform_one([0.0, np.nan, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("kind", dc.CALIBRATORS)
def test_json_restores_every_bit(sharp, kind):
    logp, y = sharp
    fitted = kind().fit(logp, y)
    restored = dc.calibrator_from_json(fitted.to_json())
    assert type(restored) is kind
    assert restored.fitted == fitted.fitted
    np.testing.assert_array_equal(restored.transform(logp), fitted.transform(logp))
    assert restored.to_json() == fitted.to_json()
    # Before a fit, too.
    assert type(dc.calibrator_from_json(kind().to_json())) is kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema"),
        ({"kind": "magic"}, "unknown kind 'magic'"),
        ({"kind": []}, "unknown kind"),
        ({"weights": None}, "list of numbers"),
        ({"weights": "12"}, "list of numbers"),
        ({"weights": [1.0, "x", 1.0, 1.0, 1.0]}, "vector"),
        ({"weights": [1.0, 2.0]}, "do not fit together"),
        ({"weights": [[1.0] * 5] * 5}, "do not fit together"),
        ({"prior_strength": True}, "must be a number"),
        ({"prior_strength": None}, "must be a number"),
        ({"extra": 1}, "extra"),
        ({"fitted": {"n": 3}}, "vector"),
    ],
)
def test_altered_json_is_refused(sharp, change, message):
    document = json.loads(dc.VectorScaling().fit(*sharp).to_json())
    with pytest.raises(dc.InvalidCalibrator, match=message):
        dc.calibrator_from_json(json.dumps({**document, **change}))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}', "null"])
def test_text_that_is_no_calibrator_is_refused(text):
    with pytest.raises(dc.InvalidCalibrator):
        dc.calibrator_from_json(text)


def test_a_temperature_that_cannot_be_is_refused(sharp):
    document = json.loads(dc.TemperatureScaling().fit(*sharp).to_json())
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(dc.InvalidCalibrator, match="temperature"):
            dc.calibrator_from_json(json.dumps({**document, "temperature": temperature}))


@pytest.mark.parametrize("kind", FITTABLE)
def test_labels_that_cannot_support_a_fit_are_refused(sharp, kind):
    logp, y = sharp
    right = logp.argmax(axis=1)
    with pytest.raises(dc.TooFewLabels, match="19 labels; at least 20 are needed, 1 more"):
        kind().fit(logp[:19], y[:19])
    with pytest.raises(dc.OneClassOnly, match="all 2000 labels are option 2"):
        kind().fit(logp, np.full(2000, 2))
    with pytest.raises(dc.OneSided, match="all 2000 decisions are right; at least one wrong"):
        kind().fit(logp, right)
    with pytest.raises(dc.OneSided, match="all 2000 decisions are wrong; at least one right"):
        kind().fit(logp, (right + 1 + np.arange(2000) % 2) % 5)
    with pytest.raises(dc.NotFitted, match="call fit"):
        kind().transform(logp)
    with pytest.raises(dc.NotFitted, match="call fit"):
        kind().transform_one(logp[0])


@pytest.mark.parametrize(
    ("logprobs", "labels", "message"),
    [
        ([[0.0, np.nan]], [0], "row 0, option 1: nan"),
        ([[0.0, -1.0], [np.inf, 0.0]], [0, 1], "row 1, option 0: inf"),
        ([[0.0, -1.0], [-np.inf, -np.inf]], [0, 1], "row 1: every option has probability zero"),
        ([[0.0, -1.0]], [2], "row 0: 2 is not an option index"),
        ([[0.0, -1.0]], [0, 1], "2 labels for 1 rows"),
        ([0.0, -1.0], [0], "shape"),
        (np.zeros((0, 3)), [], "no rows"),
    ],
)
@pytest.mark.parametrize("kind", dc.CALIBRATORS)
def test_bad_arrays_are_named(kind, logprobs, labels, message):
    with pytest.raises(dc.InvalidData, match=message):
        kind().fit(logprobs, labels)


@pytest.mark.parametrize("kind", dc.CALIBRATORS)
def test_what_needs_fixed_options_says_so(sharp, kind):
    logp, y = sharp
    if kind.needs_fixed_options:
        assert kind.moves_decision
        with pytest.raises(dc.OptionsVary, match="options vary"):
            kind().fit(logp, y, options_vary=True)
        with pytest.raises(dc.InvalidData, match="fitted on 5 options, not 4"):
            kind().fit(logp, y).transform(logp[:, :4])
    else:
        fitted = kind().fit(logp, y, options_vary=True)
        # Neither the options' order nor their number means anything to it.
        np.testing.assert_allclose(fitted.transform(logp[:, ::-1])[:, ::-1], fitted.transform(logp), atol=1e-12)
        assert fitted.transform(logp[:, :3]).shape == (2000, 3)
    # Gold answers listed first are no defect where options vary.
    if not kind.needs_fixed_options:
        kind().fit(logp, np.zeros(2000, dtype=int), options_vary=True)


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


@pytest.mark.parametrize("kind", TOP_LABEL)
def test_calibrated_readouts_stay_as_they_are(readouts, kind):
    logp, y = readouts(4000, seed=11)
    held_out, held_y = readouts(4000, seed=12)
    p = kind().fit(logp, y).transform(held_out)
    before, after = (-np.log(q[np.arange(4000), held_y]) for q in (np.exp(held_out), p))
    assert abs((after - before).mean()) < 0.01 + 3 * stats.sem(after - before)
