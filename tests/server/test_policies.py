"""`/tasks/{name}/policy` and `/tasks/{name}/calibration`, and what the metrics say of bundles."""

import json
from dataclasses import replace

import pytest

from demur.decision.bundle import read_bundle
from demur.decision.task import PolicyKind, PolicySpec, Scale
from demur.server.bundles import ServedBundle, read_bundles
from demur.server.calibrated import Calibrated
from demur.server.live_policies import FILE
from demur.server.settings import SettingsError
from demur.server.wires.calibration_models import TaskCalibrationOut, TaskPolicyOut

from .bundled import EXPIRED, IDENTITY, StubEngine, bundle_files, certificates, make_bundle, pipeline_on
from .conftest import TASKS

NAME = "route-ticket"
PATH = f"/tasks/{NAME}/policy"
FIXED = {"kind": "fixed_thresholds", "trust_at": 0.9, "defer_below": 0.3}


def serve_bundle(built, tmp_path, files=None):
    pipeline = pipeline_on(StubEngine())
    made = make_bundle(tmp_path / "bundle", files, task=TASKS[NAME], pipeline=pipeline)
    prompt = pipeline.prompts.compile(TASKS[NAME].spec)
    served = ServedBundle.of(Calibrated.of(made), prompt, IDENTITY, pipeline.room(prompt))
    built.registry.bundles = {NAME: served}
    return served


async def test_the_files_policy_is_version_0(plain):
    client, _ = plain
    reply = await client.get("/tasks/silent/policy")
    shown = TaskPolicyOut.model_validate_json(reply.content)
    assert (shown.version, shown.policy.trust_at, shown.policy.kind) == (0, 0.9, "fixed_thresholds")
    assert (shown.changed_by, shown.certificate, shown.certified_thresholds, shown.history) == (None, None, [], [])
    assert reply.headers["etag"] == '"0"'


async def test_a_live_policy_is_what_requests_meet(rig):
    built = rig(api_keys="ordinary", admin_keys="secret")
    async with built.client(headers={"Authorization": "Bearer secret"}) as client:
        reply = await client.put(PATH, json=FIXED)
        shown = TaskPolicyOut.model_validate_json(reply.content)
        await client.post("/decide", json={"task": NAME, "input": "x"})
        again = await client.get(PATH)
    assert (shown.version, shown.policy.trust_at, shown.policy.defer_below) == (1, 0.9, 0.3)
    assert shown.changed_at is not None
    assert len(shown.changed_by) == 16
    assert "secret" not in reply.text
    assert shown.changed_by == TaskPolicyOut.model_validate_json(again.content).history[0].changed_by
    assert built.stub.asked[0].policy == PolicySpec(trust_at=0.9, defer_below=0.3, kind=PolicyKind.FIXED)


async def test_only_an_admin_changes_it(rig):
    built = rig(api_keys="ordinary", admin_keys="secret")
    async with built.client(headers={"Authorization": "Bearer ordinary"}) as client:
        assert (await client.put(PATH, json=FIXED)).status_code == 403
        assert (await client.get(PATH)).json()["version"] == 0
        assert (await client.get(PATH, headers={"Authorization": ""})).status_code == 401


async def test_two_who_change_the_same_version(plain):
    client, _ = plain
    assert (await client.put(PATH, json={**FIXED, "version": 0})).json()["version"] == 1
    late = await client.put(PATH, json={"kind": "certified"}, headers={"If-Match": '"0"'})
    assert (late.status_code, late.json()["type"]) == (409, "urn:demur:problem:conflict")
    assert late.json()["version"] == 1
    assert (await client.put(PATH, json={**FIXED, "version": 0})).status_code == 409
    assert (await client.put(PATH, json={"kind": "certified"}, headers={"If-Match": '"1"'})).json()["version"] == 2
    assert (await client.put(PATH, json={}, headers={"If-Match": "*"})).json()["version"] == 3
    history = (await client.get(PATH)).json()["history"]
    assert [(one["version"], one["policy"]["kind"]) for one in history] == [
        (1, "fixed_thresholds"), (2, "certified"), (3, "certified")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ([], []),
        ({"trust": 0.9}, ["trust"]),
        ({"trust_at": 1.2}, ["trust_at"]),
        ({"trust_at": "0.9"}, ["trust_at"]),
        ({"trust_at": 0.3, "defer_below": 0.9}, ["defer_below"]),
        ({"kind": "certified", "trust_at": 0.9}, ["trust_at"]),
        ({"kind": "budget"}, ["to_people"]),
        ({"kind": "budget", "to_people": -0.1}, ["to_people"]),
        ({"kind": "expected_cost", "cost": [[0, 1], [1, 0]], "review_price": 1, "defer_price": 1}, ["cost"]),
        ({"kind": "expected_cost", "cost": [[0, -1, 1]] * 3, "review_price": 1, "defer_price": 1}, ["cost", 0, 1]),
        ({"kind": "expected_cost", "cost": [[0, 1, 1]] * 3, "review_price": -1, "defer_price": 1}, ["review_price"]),
        ({"allow_uncalibrated": True}, ["allow_uncalibrated"]),
        ({"version": -1}, ["version"]),
    ],
)
async def test_policies_that_are_none(plain, body, path):
    client, _ = plain
    reply = await client.put(PATH, json=body)
    assert reply.status_code == 422
    assert path in [fault["path"] for fault in reply.json()["faults"]]
    assert (await client.get(PATH)).json()["version"] == 0


async def test_headers_and_names_that_are_none(plain):
    client, _ = plain
    assert (await client.put(PATH, json={}, headers={"If-Match": "W/abc"})).status_code == 400
    both = await client.put(PATH, json={"version": 1}, headers={"If-Match": "0"})
    assert (both.status_code, both.json()["faults"][0]["path"]) == (422, ["version"])
    for path in ("/tasks/none/policy", "/tasks/none/calibration"):
        assert (await client.get(path)).status_code == 404
    assert (await client.post(PATH, json={})).status_code == 405


async def test_policies_outlive_the_process(rig, tmp_path):
    for version in (1, 2):
        async with rig(state_dir=str(tmp_path / "state")).client() as client:
            assert (await client.get(PATH)).json()["version"] == version - 1
            body = {"kind": "expected_cost", "cost": [[0, 1, 2]] * 3, "review_price": 1, "defer_price": version}
            assert (await client.put(PATH, json=body)).json()["version"] == version
    built = rig(state_dir=str(tmp_path / "state"))
    policy = built.app.services.policies.of(TASKS[NAME])
    assert (policy.cost, policy.defer_price) == (((0, 1, 2),) * 3, 2)
    left = [entry.name for entry in (tmp_path / "state").iterdir() if not entry.name.startswith("demur.db")]
    assert left == [FILE]


@pytest.mark.parametrize("line", ["{", "{}", "3", '{"task": "t", "version": 1, "policy": {"kind": "certified"}}'])
def test_a_state_file_that_cannot_be_read_is_named(rig, tmp_path, line):
    (tmp_path / FILE).write_text(f"{line}\n")
    with pytest.raises(SettingsError, match=f"{FILE}:1"):
        rig(state_dir=str(tmp_path))


async def test_a_policy_that_no_longer_fits_gives_way_to_the_file(rig):
    built = rig()
    async with built.client() as client:
        body = {"kind": "expected_cost", "cost": [[0, 1, 2]] * 3, "review_price": 1, "defer_price": 1}
        assert (await client.put("/tasks/silent/policy", json=body)).status_code == 200
        question = replace(TASKS["silent"].spec.question, options=TASKS["silent"].spec.question.options[:2])
        task = replace(TASKS["silent"], spec=replace(TASKS["silent"].spec, question=question))
        built.registry.current = {"silent": task}
        assert (await client.get("/tasks/silent/policy")).json()["version"] == 0
        assert (await client.put("/tasks/silent/policy", json={"kind": "certified"})).json()["version"] == 2


@pytest.mark.parametrize("route", ["policy", "policy/shadow"])
async def test_costs_do_not_go_over_to_options_in_another_order(rig, tmp_path, route):
    """They go by the options' places."""
    cost = {"kind": "expected_cost", "cost": [[0, 1, 20]] * 3, "review_price": 1, "defer_price": 1}
    question = TASKS["silent"].spec.question
    turned = replace(question, options=question.options[::-1])
    for body, stays in ((cost, False), ({"kind": "certified"}, True)):
        built = rig(state_dir=str(tmp_path))
        async with built.client() as client:
            assert (await client.put(f"/tasks/silent/{route}", json=body)).status_code == 200
        again = rig(state_dir=str(tmp_path))  # what is kept knows its options too
        services = again.app.services
        kept = services.policies if route == "policy" else services.shadows
        same, other = TASKS["silent"], replace(TASKS["silent"], spec=replace(TASKS["silent"].spec, question=turned))
        for task, in_force in ((same, True), (other, stays)):
            found = kept.current(task)
            assert bool(found and getattr(found, "version", 1)) is in_force


async def test_what_a_policy_carries(rig, tmp_path):
    built = rig()
    served = serve_bundle(built, tmp_path)
    trusted = served.calibrated.guarantee.trusted
    async with built.client() as client:
        shown = TaskPolicyOut.model_validate((await client.get(PATH)).json())
        assert shown.certified_thresholds == list(trusted.thresholds)
        assert shown.certificate.threshold == trusted.threshold
        on = {"trust_at": trusted.thresholds[0], "scale": "score"}
        assert (await client.put(PATH, json=on)).json()["certificate"]["threshold"] == trusted.thresholds[0]
        assert (await client.put(PATH, json={**on, "trust_at": 0.9})).json()["certificate"] is None
    assert built.app.services.policies.of(TASKS[NAME]).scale is Scale.SCORE


async def test_calibration_of_a_task_without_a_bundle(plain):
    client, _ = plain
    shown = TaskCalibrationOut.model_validate((await client.get(f"/tasks/{NAME}/calibration")).json())
    assert (shown.bundle, shown.valid, shown.certificate) == (None, False, None)
    assert (await client.get(f"/tasks/{NAME}/calibration?format=svg")).status_code == 404
    assert (await client.get(f"/tasks/{NAME}/calibration?format=png")).status_code == 400


async def test_calibration_of_a_task_with_one(rig, tmp_path):
    built = rig()
    served = serve_bundle(built, tmp_path)
    path = f"/tasks/{NAME}/calibration"
    async with built.client() as client:
        shown = TaskCalibrationOut.model_validate((await client.get(path)).json())
        diagrams = [
            await client.get(path, headers={"Accept": "image/svg+xml"}),
            await client.get(path, params={"format": "svg"}),
        ]
        plain = await client.get(path, params={"format": "json"}, headers={"Accept": "image/svg+xml"})
    assert (shown.bundle, shown.valid, shown.mismatches) == (served.calibrated.bundle.id, True, [])
    assert shown.calibration.method == "temperature"
    assert shown.certificate["trusted"]["alpha"] == 0.05
    assert shown.report == {"n": 600}
    assert [(one.text, one.headers["content-type"]) for one in diagrams] == [("<svg/>", "image/svg+xml")] * 2
    assert "sandbox" in diagrams[0].headers["content-security-policy"]
    assert plain.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("how", "valid"), [("fits", 1.0), ("mismatched", 0.0), ("expired", 0.0), ("none", 0.0)])
async def test_metrics_of_bundles(rig, tmp_path, how, valid):
    built = rig()
    issued = {"expired": certificates(**EXPIRED), "none": None}.get(how, certificates())
    served = serve_bundle(built, tmp_path, bundle_files(issued=issued))
    if how == "mismatched":
        built.registry.bundles = {NAME: replace(served, mismatches=("weights",))}
    async with built.client() as client:
        page = (await client.get("/metrics")).text
        built.registry.bundles = {}
        gone = (await client.get("/metrics")).text
    identifier = served.calibrated.bundle.id
    assert f'demur_certificate_valid{{task="{NAME}"}} {valid}' in page
    assert (
        f'demur_bundle_info{{bundle="{identifier}",method="temperature",model="stub-model",task="{NAME}"}} 1.0' in page
    )
    assert "demur_bundle_info{" not in gone
    # Without a store too, so that somebody is told before trust ends.
    expires = f'demur_certificate_expires_timestamp_seconds{{task="{NAME}"}} '
    assert (expires in page) == (how in ("fits", "expired"))
    if how == "fits":
        (shown,) = [line.removeprefix(expires) for line in page.splitlines() if line.startswith(expires)]
        assert float(shown) == issued.trusted.expires_at.timestamp()


def test_a_bundle_is_read_as_written(tmp_path):
    made = make_bundle(tmp_path / "b")
    assert read_bundle(tmp_path / "b") == made
    (calibrated,) = read_bundles(tmp_path).values()
    assert json.loads(calibrated.bundle.files["report.json"]) == {"n": 600}
