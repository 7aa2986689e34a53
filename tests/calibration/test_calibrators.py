"""Calibrators: what they leave as it is, whatever they are fitted on, and that serving does the same."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from demur import calibration as dc

TOP_LABEL = [dc.PlattScaling, dc.BetaCalibration, dc.IsotonicCalibration, dc.ScalingBinning]


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


@pytest.mark.parametrize("kind", TOP_LABEL)
def test_calibrated_readouts_stay_as_they_are(readouts, kind):
    logp, y = readouts(4000, seed=11)
    held_out, held_y = readouts(4000, seed=12)
    p = kind().fit(logp, y).transform(held_out)
    before, after = (-np.log(q[np.arange(4000), held_y]) for q in (np.exp(held_out), p))
    assert abs((after - before).mean()) < 0.01 + 3 * stats.sem(after - before)
