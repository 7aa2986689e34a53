"""`p_correct` on top of calibrated probabilities."""

import json

import numpy as np
import pytest
from scipy import special, stats

from demur import calibration as dc


@pytest.fixture(scope="module")
def leaky(readouts):
    """Calibrated rows of which those with little label mass are answered at random, and say nothing of it."""
    logp, y = readouts(3000, 4)
    rng = np.random.default_rng(7)
    mass = rng.beta(2, 1, 3000)
    lost = rng.random(3000) > mass
    return np.exp(logp), np.where(lost, rng.integers(0, 4, 3000), y), mass


def log_loss(q, correct):
    return -np.log(np.where(correct, q, 1 - q))


def test_label_mass_is_used_where_it_helps(leaky):
    p, y, mass = leaky
    half = slice(0, 1500), slice(1500, 3000)
    model = dc.CorrectnessModel().fit(p[half[0]], y[half[0]], label_mass=mass[half[0]])
    assert model.fitted.kept
    assert model.uses_label_mass
    p, y, mass = p[half[1]], y[half[1]], mass[half[1]]
    correct = p.argmax(axis=1) == y
    q = model.transform(p, label_mass=mass)
    gain = log_loss(p.max(axis=1), correct) - log_loss(q, correct)
    assert gain.mean() > 5 * stats.sem(gain)
    assert abs(q.mean() - correct.mean()) < 3 * stats.sem(correct)
    assert ((q > 0) & (q < 1)).all()
    one = [model.transform_one(row, m) for row, m in zip(p[:50], mass[:50], strict=True)]
    np.testing.assert_allclose(one, q[:50], atol=1e-15)


def test_without_evidence_it_is_the_top_probability(readouts):
    logp, y = readouts(1000, seed=3)
    p = np.exp(logp)
    model = dc.CorrectnessModel().fit(p, y, label_mass=np.random.default_rng(0).random(1000))
    assert not model.fitted.kept
    assert not model.uses_label_mass
    np.testing.assert_allclose(model.transform(p), p.max(axis=1), atol=1e-12)


def test_it_agrees_with_a_plain_search(leaky):
    p, y, mass = leaky
    model = dc.CorrectnessModel(prior_strength=3.0).fit(p, y, label_mass=mass)
    two = np.sort(p, axis=1)[:, -2:]
    features = np.stack(
        (
            special.logit(two[:, 1]),
            special.logit(mass),
            np.log(two[:, 1] / two[:, 0]),
            stats.entropy(p, axis=1),
        ),
        axis=1,
    )
    x = np.hstack((stats.zscore(features), np.ones((3000, 1))))
    correct = p.argmax(axis=1) == y

    def gradient(w):
        return x.T @ (special.expit(features[:, 0] + x @ w) - correct) / 3000 + 3.0 * w / 3000

    found = np.append(model.weights, model.intercept)
    np.testing.assert_allclose(gradient(found), 0.0, atol=1e-9)
    expected = special.expit(features[:, 0] + x @ found)
    np.testing.assert_allclose(model.transform(p, label_mass=mass), expected, atol=1e-9)


def test_row_order_and_option_order_do_not_matter(leaky):
    p, y, mass = (a[:500] for a in leaky)
    model = dc.CorrectnessModel().fit(p, y, label_mass=mass)
    order = np.random.default_rng(1).permutation(500)
    other = dc.CorrectnessModel().fit(p[order], y[order], label_mass=mass[order])
    q = model.transform(p, label_mass=mass)
    np.testing.assert_allclose(other.transform(p, label_mass=mass), q, atol=1e-9)
    assert other.fitted.improvement == pytest.approx(model.fitted.improvement, abs=1e-9)
    np.testing.assert_allclose(model.transform(p[:, ::-1], label_mass=mass), q, atol=1e-9)


def test_certain_rows_and_constant_features_stay_finite():
    rng = np.random.default_rng(0)
    p = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4]])[rng.integers(0, 3, 300)]
    model = dc.CorrectnessModel().fit(p, rng.integers(0, 2, 300), label_mass=np.ones(300))
    q = model.transform(p, label_mass=np.zeros(300))
    assert np.isfinite(q).all()
    assert ((q > 0) & (q < 1)).all()


def test_json_restores_every_bit(leaky):
    p, y, mass = leaky
    model = dc.CorrectnessModel().fit(p, y, label_mass=mass)
    restored = dc.CorrectnessModel.from_json(model.to_json())
    assert restored.fitted == model.fitted
    np.testing.assert_array_equal(restored.transform(p, label_mass=mass), model.transform(p, label_mass=mass))
    document = json.loads(model.to_json())
    for change in ({"weights": [1.0]}, {"means": []}, {"kind": "temperature"}, {"uses_label_mass": None}):
        with pytest.raises(dc.InvalidCalibrator):
            dc.CorrectnessModel.from_json(json.dumps({**document, **change}))


def test_refusals(leaky):
    p, y, mass = leaky
    with pytest.raises(dc.TooFewLabels, match="19 labels"):
        dc.CorrectnessModel().fit(p[:19], y[:19])
    for labels, missing in ((p.argmax(axis=1), "right"), (p.argmin(axis=1), "wrong")):
        with pytest.raises(dc.OneSided, match=missing):
            dc.CorrectnessModel().fit(p, labels)
    with pytest.raises(dc.InvalidData, match=r"label_mass row 2: 1\.5"):
        dc.CorrectnessModel().fit(p, y, label_mass=np.where(np.arange(3000) == 2, 1.5, mass))
    with pytest.raises(dc.InvalidData, match="5 label masses for 3000 rows"):
        dc.CorrectnessModel().fit(p, y, label_mass=mass[:5])
    with pytest.raises(dc.NotFitted):
        dc.CorrectnessModel().transform(p)
    with pytest.raises(dc.InvalidData, match="missing"):
        dc.CorrectnessModel().fit(p, y, label_mass=mass).transform(p)
