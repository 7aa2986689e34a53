"""What a bundle's files may say, and what applying them does to a readout."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.calibration import CorrectnessModel, Identity, TemperatureScaling, VectorScaling
from demur.decision.bundle import read_bundle
from demur.decision.errors import BundleError
from demur.decision.readout import Readout
from demur.server.calibrated import Calibrated, calibrate

from .bundled import bundle_files, certificates, fitted, make_bundle

TEMPERATURE = fitted(TemperatureScaling())


def readout(*scores, mass=0.9):
    values = np.array(scores, float)
    return Readout(values, values, mass)


def load(tmp_path, **options):
    make_bundle(tmp_path / "b", bundle_files(**options))
    return Calibrated.of(read_bundle(tmp_path / "b"))


def correctness():
    rng = np.random.default_rng(1)
    top = rng.uniform(0.34, 0.99, 500)
    p = np.column_stack([top, (1 - top) / 2, (1 - top) / 2])
    mass = rng.random(500)
    labels = np.where(rng.random(500) < top * (0.4 + 0.6 * mass), 0, 1)
    return CorrectnessModel().fit(p, labels, label_mass=mass)


@given(st.lists(st.floats(-50, 0), min_size=2, max_size=6), st.floats(0.01, 1))
def test_the_decision_stays_and_numbers_are_sound(scores, mass):
    given_ = readout(*scores, mass=mass)
    for score in ("top_probability", "margin", "p_correct"):
        applied = calibrate(TEMPERATURE, correctness_model, score, given_)
        assert applied.index == given_.decision == applied.probabilities.argmax()
        assert applied.probabilities.sum() == pytest.approx(1)
        assert 0 <= applied.p_correct <= 1
        assert -1 <= applied.score <= 1


correctness_model = correctness()


def test_scores():
    given_ = readout(*np.log([0.2, 0.7, 0.1]))
    assert calibrate(TEMPERATURE, None, "top_probability", given_).score == pytest.approx(0.7)
    assert calibrate(TEMPERATURE, None, "margin", given_).score == pytest.approx(0.5)
    applied = calibrate(TEMPERATURE, correctness_model, "p_correct", given_)
    assert applied.score == applied.p_correct != applied.probabilities.max()


def test_what_was_fitted_is_what_is_served(tmp_path):
    served = load(tmp_path, correctness=correctness_model, issued=certificates())
    given_ = readout(-1.0, -0.4, -3.0)
    one, other = served.apply(given_), calibrate(TEMPERATURE, correctness_model, "top_probability", given_)
    assert (one.p_correct, one.score) == (other.p_correct, other.score)
    assert (one.probabilities == other.probabilities).all()
    assert served.method == "temperature+correctness"


def test_a_calibrator_that_moves_the_decision(tmp_path):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 600)
    logits = rng.normal(size=(600, 3)) + 2.0 * np.eye(3)[labels] + np.array([2.0, 0, 0])
    vector = VectorScaling().fit(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), labels)
    with pytest.raises(BundleError, match="only the split route"):
        load(tmp_path / "free", calibrator=vector, issued=certificates())
    served = load(tmp_path / "split", calibrator=vector, issued=certificates(route="split"))
    given_ = readout(-0.6, -1.0, -5.0)
    applied = served.apply(given_)
    assert (given_.decision, applied.index) == (0, 1)
    assert applied.score == pytest.approx(given_.probabilities[1])


def test_p_correct_certifies_by_the_split_route_only(tmp_path):
    with pytest.raises(BundleError, match="only the split route"):
        load(tmp_path / "free", issued=certificates(score_name="p_correct"))
    load(tmp_path / "split", issued=certificates(score_name="p_correct", route="split"))
    with pytest.raises(BundleError, match="nothing was fitted"):
        load(tmp_path / "none", calibrator=Identity(), issued=certificates(score_name="p_correct", route="split"))


def test_an_identity_that_learned_nothing_claims_nothing(tmp_path):
    applied = load(tmp_path, calibrator=Identity()).apply(readout(-0.1, -3.0))
    assert applied.p_correct is None


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("calibrator.json", b"{", "is not JSON"),
        ("calibrator.json", b"{}", "must hold `calibrator` and `correctness`"),
        ("calibrator.json", b'{"calibrator": {"kind": "magic"}, "correctness": null}', "not a calibrator"),
        ("certificate.json", b'{"trusted": null}', "is not what certifies a bundle"),
        ("certificate.json", "score", "is not what certifies a bundle"),
        ("certificate.json", "issued_at", "no time zone"),
        ("certificate.json", "claim", "another claim or score"),
        ("certificate.json", "threshold", "not the ones its evidence certifies"),
        ("reference.json", b'{"scores": [1, null]}', "finite numbers"),
        ("reference.json", b'{"scores": ["x"]}', "finite numbers"),
    ],
)
def test_files_that_say_something_else(tmp_path, file, content, message):
    files = bundle_files(issued=certificates())
    if isinstance(content, str):
        stored = json.loads(files[file])
        match content:
            case "score":
                stored["score"] = "magic"
            case "issued_at":
                stored["issued_at"] = "2026-01-01T00:00:00"
            case "claim":
                stored["trusted"] = stored["not_deferred"]
            case "threshold":
                stored["trusted"]["thresholds"].append(0.1)
        content = json.dumps(stored).encode()
    make_bundle(tmp_path / "b", {**files, file: content})
    with pytest.raises(BundleError, match=message) as caught:
        Calibrated.of(read_bundle(tmp_path / "b"))
    assert file in str(caught.value)
