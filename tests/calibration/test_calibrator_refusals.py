"""Calibrators: how they are stored, and what they refuse to load or to fit."""

import json

import numpy as np
import pytest

from demur import calibration as dc

FITTABLE = dc.CALIBRATORS[1:]


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
