"""Bundles in the pipeline: applied where they fit, and never where anything that was pinned is another."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demur.calibration import TemperatureScaling
from demur.decision.bundle import MANIFEST, PINS, read_bundle, write_bundle
from demur.decision.errors import BundleError
from demur.decision.question import Option, Question
from demur.decision.task import LengthHandling, Mode, PromptLayout, ReadoutKind, ReadoutSpec, Scale, Truncation
from demur.server.bundles import check_bundles, read_bundles
from demur.server.types import DecideRequest, PolicyOverride

from .bundled import (
    EXPIRED,
    IDENTITY,
    TASK,
    StubEngine,
    bundle_files,
    certificates,
    fitted,
    make_bundle,
    pipeline_on,
    sha,
    with_policy,
)


async def decide(directory, *, engine=None, task=TASK, spec=None, override=None, inline=False):
    pipeline = pipeline_on(engine or StubEngine())
    pipeline.adopt(pipeline.prepare([task], read_bundles(directory)))
    asked = None if inline else task
    return await pipeline.decide(
        DecideRequest(spec or task.spec, "where is my refund", asked, task.policy, override=override)
    )


async def test_a_bundle_that_fits_is_applied(tmp_path):
    made = make_bundle(tmp_path / "route")
    decision = await decide(tmp_path)
    scores = np.array(StubEngine.logprobs)
    calibrator = fitted(TemperatureScaling())
    assert decision.probabilities == pytest.approx(calibrator.transform_one(scores))
    assert decision.p_correct == decision.probabilities.max()
    assert decision.score == pytest.approx(np.exp(scores).max() / np.exp(scores).sum())
    assert decision.calibration.bundle == made.id
    assert (decision.calibration.method, decision.calibration.n) == ("temperature", 400)
    assert (decision.verdict, decision.reason, decision.rule) == ("trust", "above_trust_threshold", "certified")
    assert decision.certificate.threshold == certificates().trusted.threshold
    assert (decision.certificate.alpha, decision.certificate.delta, decision.certificate.n) == (0.05, 0.025, 600)


async def test_an_inline_question_is_never_calibrated(tmp_path):
    make_bundle(tmp_path / "route")
    decision = await decide(tmp_path, inline=True)
    assert (decision.p_correct, decision.score, decision.calibration, decision.certificate) == (None,) * 4
    assert (decision.verdict, decision.reason) == ("review", "uncalibrated")


async def test_another_mode_uses_no_bundle(tmp_path):
    make_bundle(tmp_path / "route")
    decision = await decide(tmp_path, spec=replace(TASK.spec, mode=Mode.REASONED))
    assert (decision.verdict, decision.reason) == ("defer", "calibration_mismatch")
    assert "mode" in decision.reason_detail
    assert (decision.p_correct, decision.calibration, decision.certificate) == (None,) * 3


def respec(**changes):
    return replace(TASK, spec=replace(TASK.spec, **changes))


def reask(text="Which team?", options=("billing", "technical", "sales"), descriptions=(None, None, None)):
    return respec(question=Question(text, tuple(map(Option, options, descriptions))))


@pytest.mark.parametrize(
    ("identity", "task", "named"),
    [
        ({"weights": sha("other")}, TASK, "weights"),
        ({"tokenizer": sha("one more merge rule")}, TASK, "tokenizer"),
        ({"chat_template": sha("{{ other }}")}, TASK, "chat_template"),
        ({}, reask("Which group?"), "question"),
        ({}, reask(options=("billing", "technical", "selling")), "options"),
        ({}, reask(options=("technical", "billing", "sales")), "options"),
        ({}, reask(descriptions=("money", None, None)), "options"),
        ({}, respec(readout=ReadoutSpec(ReadoutKind.TEXT)), "readout"),
        ({}, respec(readout=ReadoutSpec(ReadoutKind.LETTER, LengthHandling.PRIOR)), "readout"),
        ({}, respec(mode=Mode.REASONED), "mode"),
        ({}, respec(layout=PromptLayout(instruction="Choose well.")), "prompt"),
        ({}, respec(layout=PromptLayout(answer_prefix="Team:")), "prompt"),
        ({}, respec(truncation=Truncation.TAIL), "prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_whatever_was_pinned_is_caught(tmp_path, identity, task, named):
    make_bundle(tmp_path / "route")
    engine = StubEngine(identity=replace(IDENTITY, **identity))
    decision = await decide(tmp_path, engine=engine, task=task)
    assert (decision.verdict, decision.reason) == ("defer", "calibration_mismatch")
    assert named in decision.reason_detail.replace(",", "").split()
    assert (decision.p_correct, decision.score, decision.calibration, decision.certificate) == (None,) * 4
    pipeline = pipeline_on(engine)
    bundles = read_bundles(tmp_path)
    with pytest.raises(BundleError, match=named):
        check_bundles(bundles, pipeline.prepare([task], bundles).bundles, strict=True)


@pytest.mark.parametrize(
    ("task", "fits"),
    [
        # Cut where the context ends: at another place here than on the rows that certified.
        (respec(truncation=Truncation.HEAD), False),
        (respec(truncation=Truncation.TAIL, max_input_tokens=2000), False),
        # The task says where.
        (respec(truncation=Truncation.HEAD, max_input_tokens=50), True),
        # Not cut at all.
        (TASK, True),
    ],
)
async def test_a_server_that_cuts_inputs_elsewhere_applies_no_bundle(tmp_path, task, fits):
    made_in, served_in = (StubEngine(identity=replace(IDENTITY, max_model_len=tokens)) for tokens in (600, 500))
    make_bundle(tmp_path / "route", task=task, pipeline=pipeline_on(made_in))
    assert (await decide(tmp_path, engine=made_in, task=task)).verdict == "trust"
    decision = await decide(tmp_path, engine=served_in, task=task)
    assert decision.reason == ("above_trust_threshold" if fits else "calibration_mismatch")


async def test_every_pin_alone_makes_a_mismatch(tmp_path):
    made = make_bundle(tmp_path / "route")
    for pin in PINS:
        assert made.mismatches({**made.pins, pin: sha("other")}) == (pin,)
        assert made.mismatches({name: value for name, value in made.pins.items() if name != pin}) == (pin,)


async def test_an_expired_certificate_takes_its_trust_along(tmp_path):
    make_bundle(tmp_path / "route", bundle_files(issued=certificates(**EXPIRED)))
    for override in (None, PolicyOverride(trust_at=0.1)):
        decision = await decide(tmp_path, override=override)
        assert (decision.verdict, decision.reason) == ("review", "certificate_expired")
        assert "expired at 2025" in decision.reason_detail
        assert decision.certificate is None


@pytest.mark.parametrize(
    "override", [PolicyOverride(trust_at=0.1), PolicyOverride(min_label_mass=0.2), PolicyOverride(defer_below=0.1)]
)
async def test_an_override_keeps_no_certificate(tmp_path, override):
    make_bundle(tmp_path / "route")
    decision = await decide(tmp_path, override=override)
    assert (decision.verdict, decision.certificate) == ("trust", None)


async def test_an_override_that_changes_nothing_keeps_it(tmp_path):
    make_bundle(tmp_path / "route")
    assert (await decide(tmp_path, override=PolicyOverride(min_label_mass=0.05))).certificate is not None


async def test_a_bundle_without_a_task_is_said(tmp_path, caplog):
    make_bundle(tmp_path / "route")
    bundles = read_bundles(tmp_path)
    check_bundles(bundles, {}, strict=False)
    assert "which is not registered" in caplog.text
    with pytest.raises(BundleError, match="not registered"):
        check_bundles(bundles, {}, strict=True)


def test_one_bundle_or_a_directory_of_them(tmp_path):
    make_bundle(tmp_path / "all" / "route")
    (tmp_path / "all" / ".staging").mkdir()
    assert list(read_bundles(tmp_path / "all")) == list(read_bundles(tmp_path / "all" / "route")) == ["route"]
    assert read_bundles(None) == {}
    shutil.copytree(tmp_path / "all" / "route", tmp_path / "all" / "again")
    with pytest.raises(BundleError, match="task route, and so is"):
        read_bundles(tmp_path / "all")
    with pytest.raises(BundleError, match="not a directory"):
        read_bundles(tmp_path / "none")


@pytest.mark.parametrize(
    "name", ["task.yaml", "calibrator.json", "certificate.json", "provenance.json", "report.json", "reliability.svg"]
)
def test_a_changed_or_missing_file_is_refused_by_name(tmp_path, name):
    path = tmp_path / "route"
    make_bundle(path)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was changed"):
        read_bundles(tmp_path)
    (path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        read_bundles(tmp_path)


def test_a_bundle_that_cannot_be_put_in_place_leaves_the_one_before(tmp_path, monkeypatch):
    before = make_bundle(tmp_path / "route")
    real = Path.rename

    def rename(self, target):
        if target == tmp_path / "route" and "-old-" not in str(self):
            raise OSError("no")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no"):
        write_bundle(
            tmp_path / "route", task="route", pins=dict.fromkeys(PINS, "0" * 64), files=bundle_files(), replace=True
        )
    assert read_bundle(tmp_path / "route").id == before.id
    assert read_bundles(tmp_path).keys() == {"route"}


def test_a_manifest_with_what_json_does_not_know_is_refused_by_name(tmp_path):
    make_bundle(tmp_path / "route")
    manifest = tmp_path / "route" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"more": NaN, "schema": 1'))
    assert "NaN" in manifest.read_text()
    with pytest.raises(BundleError, match="not a bundle's manifest"):
        read_bundle(tmp_path / "route")


def test_a_bundle_that_is_half_there_is_refused(tmp_path):
    path = tmp_path / "route"
    make_bundle(path)
    (path / "extra.txt").write_text("x")
    with pytest.raises(BundleError, match=r"extra\.txt is not part"):
        read_bundles(tmp_path)
    (path / "extra.txt").unlink()
    manifest = (path / "bundle.json").read_bytes()
    (path / "bundle.json").write_bytes(manifest[: len(manifest) // 2])
    with pytest.raises(BundleError, match=r"bundle\.json is not JSON"):
        read_bundles(path)
    (path / "bundle.json").unlink()
    with pytest.raises(BundleError, match="it has no readable bundle"):
        read_bundles(tmp_path)


async def test_live_thresholds_off_the_list_work_without_a_certificate(tmp_path):
    make_bundle(tmp_path / "route")
    issued = certificates().trusted
    for policy, kept in (
        ({"trust_at": issued.threshold, "scale": Scale.SCORE}, True),
        ({"trust_at": issued.thresholds[0], "scale": Scale.SCORE}, True),
        ({"trust_at": 0.75, "scale": Scale.SCORE}, False),
        ({"trust_at": 0.5}, False),
        ({"min_label_mass": 0.2}, False),
    ):
        decision = await decide(tmp_path, task=with_policy(**policy))
        assert (decision.verdict == "trust", decision.certificate is not None) == (
            decision.score >= policy.get("trust_at", 0) or "scale" not in policy,
            kept,
        )
