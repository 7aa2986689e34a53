"""`/tasks/{name}/policy/shadow`: who sets a candidate policy, what it reaches, and how long it stays."""

import pytest

from demur.server.settings import SettingsError
from demur.server.shadow_policies import FILE
from demur.server.wires.calibration_models import ShadowPolicyOut

from .conftest import TASKS

NAME = "route-ticket"
PATH = f"/tasks/{NAME}/policy/shadow"
FIXED = {"kind": "fixed_thresholds", "trust_at": 0.9}


async def test_requests_carry_it_until_it_is_ended(rig):
    built = rig(api_keys="ordinary", admin_keys="secret")
    async with built.client(headers={"Authorization": "Bearer secret"}) as client:
        assert (await client.get(PATH)).status_code == 404
        set_ = ShadowPolicyOut.model_validate_json((await client.put(PATH, json=FIXED)).content)
        shown = ShadowPolicyOut.model_validate_json((await client.get(PATH)).content)
        assert shown == set_
        assert (len(shown.set_by), shown.policy.trust_at) == (16, 0.9)
        asked = {"state": "x", "model": "stub-model", "questions": {"q": {"type": "task", "task": NAME}}}
        assert (await client.post("/decide", json={"task": NAME, "input": "x"})).status_code == 200
        assert (await client.post("/v1/systemone", json=asked)).status_code == 200
        # The policy in force is the one that it was.
        assert (await client.get(f"/tasks/{NAME}/policy")).json()["version"] == 0
        assert (await client.delete(PATH)).status_code == 204
        assert (await client.get(PATH)).status_code == 404
        await client.post("/decide", json={"task": NAME, "input": "x"})
        ordinary = {"Authorization": "Bearer ordinary"}
        assert (await client.put(PATH, json=FIXED, headers=ordinary)).status_code == 403
        assert (await client.delete(PATH, headers=ordinary)).status_code == 403
    assert [request.policy for request in built.stub.asked] == [TASKS[NAME].policy] * 3
    assert [request.shadow and request.shadow.id for request in built.stub.asked] == [shown.id, shown.id, None]


@pytest.mark.parametrize(("body", "path"), [({"trust_at": 2}, ["trust_at"]), ({"version": 0}, ["version"])])
async def test_policies_that_are_none(plain, body, path):
    client, _ = plain
    reply = await client.put(PATH, json={**FIXED, **body})
    assert (reply.status_code, reply.json()["faults"][0]["path"]) == (422, path)
    assert (await client.get(PATH)).status_code == 404


async def test_it_outlives_the_process(rig, tmp_path):
    async with rig(state_dir=str(tmp_path)).client() as client:
        before = (await client.put(PATH, json=FIXED)).json()
    async with rig(state_dir=str(tmp_path)).client() as client:
        assert (await client.get(PATH)).json() == before
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(SettingsError, match=FILE):
        rig(state_dir=str(tmp_path))
