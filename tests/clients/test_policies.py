"""Calibration and policies through the clients."""

import json

import httpx
import pytest

from demur.clients import Conflict, ConnectionFailed

POLICY = {
    "task": "intent",
    "version": 2,
    "policy": {"kind": "fixed_thresholds", "trust_at": 0.9},
    "changed_at": "2026-06-01T00:00:00+00:00",
    "changed_by": "0123456789abcdef",
    "certificate": None,
    "certified_thresholds": [0.8, 0.75],
    "history": [{"version": 1, "policy": {"kind": "certified"}}],
}


async def test_a_policy_is_read(connect, script):
    server = script(httpx.Response(200, json=POLICY))
    policy = await connect(server)("policy", "in/tent")
    assert server.requests[0].url.raw_path == b"/tasks/in%2Ftent/policy"
    assert (policy.version, policy.policy["trust_at"], policy.certified_thresholds) == (2, 0.9, (0.8, 0.75))
    assert policy.history[0].version == 1


async def test_a_policy_is_set(connect, script):
    server = script(httpx.Response(200, json=POLICY))
    face = connect(server)
    assert (await face("set_policy", "intent", trust_at=0.9, version=1)).version == 2
    await face("set_policy", "intent", kind="certified")
    first, second = server.requests
    assert (first.method, first.url.path) == ("PUT", "/tasks/intent/policy")
    assert json.loads(first.content) == {"trust_at": 0.9, "version": 1}
    assert json.loads(second.content) == {"kind": "certified"}
    with pytest.raises(TypeError, match="trust"):
        await face("set_policy", "intent", trust=0.9)


async def test_a_policy_is_set_once(connect, script, time):
    """Whether a lost first attempt counted is not known, so there is no second one."""
    problem = {"type": "urn:demur:problem:conflict", "title": "Conflict", "status": 409, "detail": "version 3"}
    server = script(httpx.Response(409, json=problem))
    with pytest.raises(Conflict):
        await connect(server)("set_policy", "intent", version=1)
    lost = script(httpx.ReadError("gone"))
    with pytest.raises(ConnectionFailed):
        await connect(lost)("set_policy", "intent")
    assert (len(server.requests), len(lost.requests), time.pauses) == (1, 1, [])


async def test_a_policy_is_tried_beside_the_one_in_force(connect, script):
    shown = {
        "task": "intent",
        "id": "ab",
        "policy": {"kind": "budget", "to_people": 0.2},
        "set_at": POLICY["changed_at"],
    }
    server = script(httpx.Response(200, json=shown), httpx.Response(200, json=shown), httpx.Response(204))
    face = connect(server)
    assert await face("set_shadow_policy", "intent", kind="budget", to_people=0.2) == await face(
        "shadow_policy", "intent"
    )
    assert await face("end_shadow_policy", "intent") is None
    assert json.loads(server.requests[0].content) == shown["policy"]
    asked = [(request.method, request.url.path) for request in server.requests]
    assert asked == [(method, "/tasks/intent/policy/shadow") for method in ("PUT", "GET", "DELETE")]
    with pytest.raises(TypeError, match="trust"):
        await face("set_shadow_policy", "intent", trust=0.9)


async def test_what_verdicts_rest_on(connect, script):
    server = script(
        httpx.Response(200, json={"task": "intent", "bundle": "b1", "valid": True, "calibration": {"method": "platt"}}),
        httpx.Response(200, text="<svg/>", headers={"Content-Type": "image/svg+xml"}),
    )
    face = connect(server)
    shown = await face("calibration", "intent")
    assert (shown.bundle, shown.valid, shown.calibration.method) == ("b1", True, "platt")
    assert await face("diagram", "intent") == "<svg/>"
    assert server.requests[1].url.raw_path == b"/tasks/intent/calibration?format=svg"
