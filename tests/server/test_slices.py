"""Slices end to end: rows that name their slice, a certificate each, and answers that carry the one of their own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from demur.decision.bundle import read_bundle
from demur.decision.errors import BundleError, DataFileError
from demur.decision.labelled import parse_labelled
from demur.decision.slices import slice_of
from demur.decision.taskfile import parse_task
from demur.server.bundles import read_bundles
from demur.server.bundling import bundle_files, provenance
from demur.server.calibrate import Plan, calibrate
from demur.server.calibrated import Calibrated
from demur.server.cli import main
from demur.server.readings import Readings
from demur.server.summary import summary
from demur.server.types import DecideRequest
from demur.server.wires.calibration_models import TaskPolicyOut

from .bundled import IDENTITY, TASK, StubEngine, make_bundle, pipeline_on

SLICED = replace(TASK, slice_by="channel")
SHARES = {"web": 0.98, "phone": 0.7}


def rows(n=1200):
    """Half of them by web, where nearly all are right; by phone three in ten are wrong. Scores say nothing of it."""
    rng = np.random.default_rng(5)
    scores = np.zeros((n, 3))
    scores[:, 0] = rng.uniform(1, 4, n)
    lines = []
    for i in range(n):
        channel = ("web", "phone")[i % 2]
        label = "billing" if rng.random() < SHARES[channel] else "sales"
        lines.append(json.dumps({"input": {"channel": channel, "text": f"row {i}"}, "label": label}))
    data = parse_labelled("\n".join(lines).encode(), "rows", SLICED.spec.question, slice_by="channel")
    return data, Readings(data.rows, scores, np.full(n, 0.9))


@pytest.fixture(scope="module")
def files():
    data, read = rows()
    plan = Plan(alpha=0.08, beta=0.5)
    made = calibrate(read, SLICED, plan, readout=SLICED.spec.readout.kind)
    said = summary(made, "route")
    assert "  web: trusts 100% of decisions with at most 8% error" in said
    assert "  phone: trusts nothing" in said
    text = b"name: route\nquestion: Which team?\noptions: [billing, technical, sales]\nslice_by: channel\n"
    return bundle_files(made, SLICED, text, provenance(made, data, model="stub"), SLICED.spec.readout.kind)


async def decide(directory, part, task=SLICED):
    pipeline = pipeline_on(StubEngine(logprobs=(-0.02, -4.0, -6.0)))
    pipeline.adopt(pipeline.prepare([task], read_bundles(directory)))
    return await pipeline.decide(DecideRequest(task.spec, "where is my refund", task, task.policy, slice=part))


async def test_an_answer_carries_the_certificate_of_its_slice(tmp_path, files):
    make_bundle(tmp_path / "route", files, task=SLICED)
    web, phone = [await decide(tmp_path, part) for part in ("web", "phone")]
    assert (web.verdict, web.certificate.slice, web.certificate.n) == ("trust", "web", 600)
    # Trust has half of delta, for all slices together.
    assert web.certificate.delta == 0.025
    assert (phone.verdict, phone.reason, phone.certificate) == ("review", "nothing_certified", None)
    for unknown in (None, "fax"):
        decision = await decide(tmp_path, unknown)
        assert (decision.verdict, decision.reason, decision.certificate) == ("defer", "unknown_slice", None)


async def test_another_parting_of_traffic_is_a_mismatch(tmp_path, files):
    make_bundle(tmp_path / "route", files, task=SLICED)
    for task in (TASK, replace(SLICED, slice_by="country")):
        decision = await decide(tmp_path, "web", task)
        assert (decision.verdict, decision.reason) == ("defer", "calibration_mismatch")
        assert "slices" in decision.reason_detail


def test_half_a_slice_is_no_certificate(tmp_path, files):
    stored = json.loads(files["certificate.json"])
    del stored["slices"]["web"]["not_deferred"]
    make_bundle(tmp_path / "b", {**files, "certificate.json": json.dumps(stored).encode()}, task=SLICED)
    with pytest.raises(BundleError, match="slice web must hold"):
        Calibrated.of(read_bundle(tmp_path / "b"))


def demur(*arguments):
    result = CliRunner().invoke(main, ["bundle", *map(str, arguments)])
    return result.exit_code, result.stdout


def test_the_command_line_shows_slices(tmp_path, files):
    stored = json.loads(files["certificate.json"])
    stored["slices"]["post"] = stored["slices"].pop("phone")
    stored["slices"]["web"]["trusted"]["thresholds"] = []
    stored["slices"]["web"]["trusted"]["evidence"] = []
    make_bundle(tmp_path / "one", files, task=SLICED)
    make_bundle(tmp_path / "two", {**files, "certificate.json": json.dumps(stored).encode()}, task=SLICED)
    code, out = demur("show", tmp_path / "one")
    shown = json.loads(out)
    assert (code, shown["trusted"], shown["slice_by"]) == (0, None, "channel")
    web, phone = shown["slices"]["web"]["trusted"], shown["slices"]["phone"]["trusted"]
    assert (web["n"], bool(web["thresholds"]), phone["thresholds"]) == (600, True, [])
    code, out = demur("diff", tmp_path / "one", tmp_path / "two")
    assert code == 1
    assert f"slice web: trust from: {min(web['thresholds'])} -> None" in out
    answers = min(shown["slices"]["phone"]["not_deferred"]["thresholds"])
    assert f"slice phone: answer from: {answers} -> None" in out
    assert f"slice post: answer from: None -> {answers}" in out


def test_an_evaluation_is_parted_too(files):
    report = json.loads(files["report.json"])
    web, phone = sorted(report["by_slice"], key=lambda one: one["count"])
    assert (web["slice"], web["n"], phone["slice"], phone["n"]) == ("web", 600, "phone", 600)
    assert web["count"] + phone["count"] == sum(one["count"] for one in report["by_decision"])
    assert web["upper"] < 1 - SHARES["phone"] < phone["upper"]
    # One calibrator for both is too modest for the one and too sure for the other, and the report says so.
    assert web["p_correct"]["ece_quantile_10"] > web["p_correct"]["chance_upper"]
    assert "In which slices is it wrong?" in files["report.html"].decode()


def test_every_row_needs_a_slice():
    line = '{"input": {"text": "a"}, "label": "sales"}'
    with pytest.raises(DataFileError, match="rows:1: its slice is unknown: give `channel`"):
        parse_labelled(line.encode(), "rows", TASK.spec.question, slice_by="channel")
    beside = line[:-1] + ', "slice": "web"}'
    assert parse_labelled(beside.encode(), "rows", TASK.spec.question, slice_by="channel").rows[0].slice == "web"


@pytest.mark.parametrize(
    ("value", "given", "found"),
    [
        ({"channel": "web"}, None, "web"),
        ({"channel": 7.0}, None, "7"),
        ({"channel": "web"}, "web", "web"),
        ({"channel": "web"}, "phone", None),
        ({"channel": ["web"]}, None, None),
        ({"channel": "x" * 256}, None, "x" * 256),
        ({"channel": "x" * 257}, None, None),
        ({"text": "x"}, "phone", "phone"),
        ("channel", None, None),
    ],
)
def test_where_a_slice_comes_from(value, given, found):
    assert slice_of(value, "channel", given) == found
    assert slice_of(value, None, given) is None


async def test_over_the_wire(rig, tmp_path, files):
    built = rig()
    task = parse_task(files["task.yaml"], "task.yaml")
    make_bundle(tmp_path / "route", files, task=task)
    pipeline = pipeline_on(StubEngine())
    served = pipeline.prepare([task], read_bundles(tmp_path)).bundles
    built.registry.current, built.registry.bundles = {"route": task}, served
    async with built.client() as client:
        inputs = [{"channel": "web", "text": "a"}, {"text": "b"}, "c"]
        assert (await client.post("/decide", json={"task": "route", "inputs": inputs})).status_code == 200
        assert (await client.post("/decide", json={"task": "route", "input": "d", "slice": "phone"})).status_code == 200
        assert [request.slice for request in built.stub.asked] == ["web", None, None, "phone"]
        policy = TaskPolicyOut.model_validate_json((await client.get("/tasks/route/policy")).content)
        assert policy.certificate is None
        assert policy.slices["web"].certificate.slice == "web"
        assert policy.slices["phone"].certified_thresholds == []
        built.registry.current = {"route": TASK}
        refused = await client.post("/decide", json={"task": "route", "input": "d", "slice": "web"})
    assert (refused.status_code, refused.json()["faults"][0]["path"]) == (422, ["slice"])
    assert served["route"].running == IDENTITY
