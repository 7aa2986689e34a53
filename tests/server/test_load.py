"""Queue, deadlines, hang-ups, draining and a dead engine."""

import asyncio
import json
import re

import pytest

from demur.server.errors import EngineUnavailable

from .conftest import INLINE, serving

BATCH = {"task": "route-ticket", "inputs": ["a", "b", "c"]}


def _shed(text: str) -> dict[str, float]:
    """What was refused, by reason. All reasons stand there from the start: an increase from nothing is none."""
    found = {name: float(n) for name, n in re.findall(r'demur_shed_total{reason="(\w+)"} ([\d.]+)', text)}
    assert found.keys() == {"queue_full", "deadline", "starting", "draining", "failed"}
    return {name: n for name, n in found.items() if n}


async def test_the_queue_is_bounded_and_a_batch_takes_all_its_places_or_none(rig):
    built = rig(queue_size=4, max_batch=4, max_questions=4)
    built.stub.gate.clear()
    async with built.client() as client:
        batch = asyncio.create_task(client.post("/decide", json=BATCH))
        await built.stub.until_held(3)
        refused = await client.post("/decide", json={**BATCH, "inputs": ["d", "e"]})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert built.stub.held == 3
        single = asyncio.create_task(client.post("/decide", json=INLINE))
        await built.stub.until_held(4)
        assert (await client.post("/decide", json=INLINE)).status_code == 429
        assert built.app.services.admission.in_flight == 4
        page = (await client.get("/metrics")).text
        assert "demur_in_flight 4.0" in page
        assert _shed(page) == {"queue_full": 2}
        built.stub.gate.set()
        assert [(await task).status_code for task in (batch, single)] == [200, 200]
        assert built.app.services.admission.in_flight == 0
        assert (await client.post("/decide", json=INLINE)).status_code == 200


async def test_a_full_queue_refuses_before_a_body_is_read(rig):
    """Reading and checking bodies that cannot be taken would slow those that were."""
    built = rig(queue_size=1, max_batch=1, max_questions=1)
    built.stub.gate.clear()
    systemone = {"model": "jev-latest", "state": "x", "questions": {"q": {"type": "noul", "instructions": "q"}}}

    async def never():
        raise AssertionError("the body was asked for")
        yield b""

    headers = {"Content-Type": "application/json"}
    async with built.client() as client:
        running = asyncio.create_task(client.post("/decide", json=INLINE))
        await built.stub.until_held(1)
        for path in ("/decide", "/v1/systemone", "/tasks/route-ticket/readings"):
            reply = await client.post(path, content=never(), headers=headers)
            assert (path, reply.status_code) == (path, 429)
            assert int(reply.headers["retry-after"]) >= 1
        assert _shed((await client.get("/metrics")).text) == {"queue_full": 3}
        # What takes no place is not refused for want of one.
        calibrate = await client.post("/tasks/route-ticket/calibrate", json={"rows": []})
        assert calibrate.status_code == 422
        built.stub.gate.set()
        assert (await running).status_code == 200
        assert (await client.post("/v1/systemone", json=systemone)).status_code == 200


async def test_a_failed_request_gives_its_places_back(rig):
    built = rig(queue_size=3, max_batch=3, max_questions=3)
    built.stub.broken = EngineUnavailable("gone")
    async with built.client() as client:
        for _ in range(5):
            assert (await client.post("/decide", json=INLINE)).status_code == 503
            assert (await client.post("/decide", json=BATCH)).status_code == 200
    assert built.app.services.admission.in_flight == 0


async def test_the_deadline_ends_a_decision_and_its_engine_work(rig):
    built = rig(deadline_s=0.02)
    built.stub.gate.clear()
    async with built.client() as client:
        reply = await client.post("/decide", json=INLINE)
        assert (reply.status_code, reply.json()["type"]) == (504, "urn:demur:problem:deadline_exceeded")
        assert (built.stub.cancelled, built.stub.held) == (1, 0)
        assert _shed((await client.get("/metrics")).text) == {"deadline": 1}


async def test_a_caller_may_shorten_the_deadline_but_not_extend_it(rig):
    built = rig(deadline_s=0.05)
    built.stub.gate.clear()
    async with built.client() as client:
        for ms, said in (("20", "0.02 s"), ("60000", "0.05 s")):
            reply = await client.post("/decide", json=INLINE, headers={"X-Demur-Deadline-Ms": ms})
            assert reply.status_code == 504
            assert said in reply.json()["detail"]


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "soon", "1e3", "9" * 13, "٣"])
async def test_a_malformed_deadline_is_refused(plain, value):
    client, stub = plain
    reply = await client.post("/decide", json=INLINE, headers={"X-Demur-Deadline-Ms": value.encode()})
    assert (reply.status_code, reply.json()["type"]) == (400, "urn:demur:problem:bad_request")
    assert not stub.asked


async def test_at_the_deadline_a_batch_keeps_what_is_done(rig):
    built = rig()
    built.stub.gate.clear()
    real, go = built.stub.decide, asyncio.Event()

    async def first_at_once(request):
        if request.input == "a":
            built.stub.gate.set()
            decision = await real(request)
            built.stub.gate.clear()
            go.set()
            return decision
        await go.wait()
        return await real(request)

    built.stub.decide = first_at_once
    rigged = type(built.app.services.decider)(built.stub, built.app.services.metrics)
    object.__setattr__(built.app.services, "decider", rigged)
    async with built.client() as client:
        reply = await client.post("/decide", json=BATCH, headers={"X-Demur-Deadline-Ms": "50"})
    items = reply.json()["items"]
    assert (reply.status_code, [item["status"] for item in items]) == (200, [200, 504, 504])
    assert items[1]["problem"]["type"] == "urn:demur:problem:deadline_exceeded"


async def test_a_slow_body_is_held_to_the_deadline(rig):
    built = rig(deadline_s=0.02)
    sent = []

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/decide", "headers": headers, "query_string": b""}
    await built.app(scope, receive, send)
    assert sent[0]["status"] == 504


@pytest.mark.parametrize(
    ("path", "body", "n"),
    [
        ("/decide", INLINE, 1),
        ("/decide", BATCH, 3),
        (
            "/v1/systemone",
            {"model": "jev-latest", "state": "x", "questions": {q: {"type": "noul", "instructions": q} for q in "ab"}},
            2,
        ),
    ],
)
async def test_a_caller_who_hangs_up_cancels_the_work(rig, path, body, n):
    built = rig()
    built.stub.gate.clear()
    async with serving(built.app) as url:
        _, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        await built.stub.until_held(n)
        writer.close()
        await built.stub.until_held(0)
        async with asyncio.timeout(10):
            await built.app.services.admission.idle()
    assert built.stub.cancelled == n


async def test_a_caller_who_hangs_up_while_sending(rig):
    built = rig()
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/decide", "headers": headers, "query_string": b""}
    await built.app(scope, receive, send)
    assert not sent


async def test_draining_lets_work_finish_and_refuses_more(rig):
    built = rig()
    built.stub.gate.clear()
    async with built.client() as client:
        running = asyncio.create_task(client.post("/decide", json=INLINE))
        await built.stub.until_held(1)
        built.lifecycle.drain()
        idle = asyncio.create_task(built.app.services.admission.idle())
        refused = await client.post("/decide", json=INLINE)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:demur:problem:unavailable")
        assert "retry-after" in refused.headers
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
        assert not idle.done()
        built.stub.gate.set()
        assert (await running).status_code == 200
        await asyncio.wait_for(idle, 10)
        assert _shed((await client.get("/metrics")).text) == {"draining": 1}


async def test_before_it_is_ready_the_server_says_so(rig):
    built = rig(ready=False)
    async with built.client() as client:
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.post("/decide", json=INLINE)).status_code == 503
        built.lifecycle.ready()
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert (await client.post("/decide", json=INLINE)).status_code == 200
        built.lifecycle.drain()
        built.lifecycle.ready()
        assert (await client.get("/readyz")).status_code == 503


async def test_when_the_engine_fails_those_who_wait_are_told_at_once(rig):
    built = rig()
    built.stub.gate.clear()
    async with built.client() as client:
        one = asyncio.create_task(client.post("/decide", json=INLINE))
        many = asyncio.create_task(client.post("/decide", json=BATCH))
        await built.stub.until_held(4)
        built.lifecycle.fail("the engine died")
        reply = await one
        assert (reply.status_code, reply.json()["type"]) == (503, "urn:demur:problem:engine_unavailable")
        assert int(reply.headers["retry-after"]) > 0
        assert [item["status"] for item in (await many).json()["items"]] == [503] * 3
        await built.stub.until_held(0)
        assert built.stub.cancelled == 4
        after = await client.post("/decide", json=INLINE)
        assert (after.status_code, after.json()["detail"]) == (503, "the engine died")
        assert int(after.headers["retry-after"]) > 0
        assert (await client.get("/readyz")).json()["detail"] == "the engine died"
        built.lifecycle.drain()
        assert (await client.post("/decide", json=INLINE)).json()["type"] == "urn:demur:problem:engine_unavailable"


async def test_a_burst_beyond_the_queue_gets_200_or_429_and_right_answers(rig):
    built = rig(queue_size=64, max_batch=64)
    inputs = [f"input {i}" for i in range(20)]
    async with built.client() as client:

        async def ask(text):
            return await client.post("/decide", json={**INLINE, "input": text})

        alone = {text: (await ask(text)).json()["probabilities"] for text in inputs}
        built.stub.gate.clear()
        asked = [inputs[i % len(inputs)] for i in range(200)]
        calls = [asyncio.create_task(ask(text)) for text in asked]
        await built.stub.until_held(64)
        built.stub.gate.set()
        replies = [await call for call in calls]
    assert {reply.status_code for reply in replies} <= {200, 429}
    answered = [(text, reply) for text, reply in zip(asked, replies, strict=True) if reply.status_code == 200]
    assert len(answered) >= 64
    assert all(reply.json()["probabilities"] == alone[text] for text, reply in answered)
