import json
from dataclasses import replace

import pytest

from demur.decision.task import LengthHandling, Mode, ReadoutKind, Truncation
from demur.server.errors import EngineUnavailable, Fault, InputTooLong, Invalid
from demur.server.types import PolicyOverride
from demur.server.wires.decide_models import AnswerOut, BatchOut, ProblemOut

from . import stub as module
from .conftest import INLINE, TEAMS


async def test_a_registered_task(plain):
    client, stub = plain
    reply = await client.post("/decide", json={"task": "route-ticket", "input": "Where is my refund?"})
    answer = AnswerOut.model_validate_json(reply.content)
    assert reply.status_code == 200
    assert (answer.task, answer.task_hash) == ("route-ticket", "a1" * 32)
    assert answer.decision == max(answer.probabilities, key=answer.probabilities.__getitem__)
    assert list(answer.probabilities) == list(TEAMS.names)
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert {"p_correct", "calibration", "certificate"} <= {k for k, v in reply.json().items() if v is None}
    (request,) = stub.asked
    assert request.task is not None
    assert request.spec is request.task.spec
    assert (request.input, request.override, request.explain) == ("Where is my refund?", None, False)


async def test_an_inline_question(plain):
    client, stub = plain
    reply = await client.post(
        "/decide",
        json={
            **INLINE,
            "options": ["да", {"name": "нет", "description": "anything else"}],
            "readout": {"kind": "text", "length": "mean"},
            "mode": "reasoned",
            "thought": {"max_tokens": 7, "seed": 3},
            "truncation": "tail",
            "explain": True,
        },
    )
    answer = AnswerOut.model_validate_json(reply.content)
    assert (answer.task, answer.task_hash, answer.mode, answer.thought) == (None, None, "reasoned", "Let me think.")
    (request,) = stub.asked
    spec = request.spec
    assert [(option.name, option.description) for option in spec.question.options] == [
        ("да", None),
        ("нет", "anything else"),
    ]
    assert (spec.readout.kind, spec.readout.length) == (ReadoutKind.TEXT, LengthHandling.MEAN)
    assert (spec.mode, spec.truncation) == (Mode.REASONED, Truncation.TAIL)
    assert (spec.thought.max_tokens, spec.thought.seed, spec.thought.max_ms) == (7, 3, 10_000)
    assert request.policy.trust_at is None
    assert not request.policy.allow_uncalibrated


async def test_the_thought_is_shown_only_if_asked(plain):
    client, _ = plain
    reply = await client.post("/decide", json={**INLINE, "mode": "reasoned"})
    assert reply.json()["thought"] is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as is ", "as is "),
        ({"b": 1, "a": [True, None]}, '{"a": [true, null], "b": 1}'),
        ([1, "é"], '[1, "é"]'),
        (3, "3"),
        (False, "false"),
        ("", ""),
    ],
)
async def test_json_input_is_rendered_canonically(plain, value, text):
    client, stub = plain
    assert (await client.post("/decide", json={**INLINE, "input": value})).status_code == 200
    assert stub.asked[0].input == text


async def test_a_policy_override_reaches_the_decider(plain):
    client, stub = plain
    policy = {"trust_at": 0.9, "defer_below": 0, "min_label_mass": 1}
    await client.post("/decide", json={"task": "silent", "input": "x", "policy": policy})
    assert stub.asked[0].override == PolicyOverride(0.9, 0.0, 1.0)
    assert stub.asked[0].policy.allow_uncalibrated


async def test_another_mode_than_the_tasks_own_is_never_trusted_by_its_thresholds(plain):
    client, stub = plain
    await client.post("/decide", json={"task": "silent", "input": "x", "mode": "reasoned"})
    await client.post("/decide", json={"task": "silent", "input": "x", "mode": "direct"})
    other, own = stub.asked
    assert (other.spec.mode, other.policy.allow_uncalibrated, other.policy.defer_below) == (Mode.REASONED, False, 0.2)
    assert own.policy.allow_uncalibrated


OPTIONS = ["a", "b"]


@pytest.mark.parametrize(
    ("body", "faults"),
    [
        ([], {(): "object"}),
        ("text", {(): "object"}),
        (None, {(): "object"}),
        ({}, {("task",): "missing", ("input",): "missing"}),
        ({"question": "q"}, {("options",): "missing", ("input",): "missing"}),
        ({"options": OPTIONS, "input": 1}, {("task",): "missing"}),
        (
            {"task": "route-ticket", "question": "q", "options": OPTIONS, "readout": "text", "input": 1},
            {("question",): "either", ("options",): "its own", ("readout",): "its own"},
        ),
        ({"task": "route-ticket", "input": 1, "inputs": [1]}, {("inputs",): "either"}),
        ({"task": "route-ticket", "input": None}, {("input",): "null"}),
        ({"task": "route-ticket", "inputs": []}, {("inputs",): "at least 1"}),
        ({"task": "route-ticket", "inputs": ["a", None, "b", None]}, {("inputs", 1): "null", ("inputs", 3): "null"}),
        ({"task": "route-ticket", "inputs": "ab"}, {("inputs",): "list"}),
        ({"task": 1, "input": 1}, {("task",): "string"}),
        ({"question": " \t", "options": OPTIONS, "input": 1}, {("question",): "blank"}),
        ({"question": "q", "options": ["a"], "input": 1}, {("options",): "at least 2"}),
        ({"question": "q", "options": [f"o{i}" for i in range(256)], "input": 1}, {("options",): "255"}),
        (
            {"question": "q", "options": ["a", "b", "a", " b"], "input": 1},
            {("options", 2): "options[0]", ("options", 3): "options[1]"},
        ),
        ({"question": "q", "options": ["é", "e\u0301"], "input": 1}, {("options", 1): "options[0]"}),
        ({"question": "q", "options": ["a b", "a \n b"], "input": 1}, {("options", 1): "options[0]"}),
        (
            {"question": "q", "options": ["", "\u200b", "ok", " "], "input": 1},
            {("options", 0, "name"): "blank", ("options", 1, "name"): "blank", ("options", 3, "name"): "blank"},
        ),
        (
            {"question": "q", "options": [1, {"name": "b", "descripton": "x"}, {"description": "y"}], "input": 1},
            {
                ("options", 0): "",
                ("options", 1, "descripton"): "did you mean description",
                ("options", 2, "name"): "required",
            },
        ),
        ({"question": "q", "options": {"a": None, "b": None}, "input": 1}, {("options",): "list"}),
        ({**INLINE, "readout": "words"}, {("readout", "kind"): "'letter' or 'text'"}),
        (
            {**INLINE, "mode": "fast", "explain": "yes", "truncation": 1},
            {("mode",): "'direct'", ("explain",): "boolean", ("truncation",): "'refuse'"},
        ),
        ({**INLINE, "imput": 1, "zzz": 2}, {("imput",): "did you mean input", ("zzz",): "known are"}),
        (
            {**INLINE, "policy": {"trust_at": 1.1, "defer_below": -0.1, "min_label_mass": "1", "trust": 1}},
            {
                ("policy", "trust_at"): "less than",
                ("policy", "defer_below"): "greater than",
                ("policy", "min_label_mass"): "number",
                ("policy", "trust"): "did you mean trust_at",
            },
        ),
        ({**INLINE, "policy": {"trust_at": 0.4, "defer_below": 0.5}}, {("policy", "defer_below"): "exceed trust_at"}),
        ({**INLINE, "policy": {"trust_at": True}}, {("policy", "trust_at"): "number"}),
        (
            {**INLINE, "thought": {"max_tokens": 0, "max_ms": 10**9, "temperature": -1}},
            {
                ("thought", "max_tokens"): "greater",
                ("thought", "max_ms"): "less",
                ("thought", "temperature"): "greater",
            },
        ),
        ({**INLINE, "thought": {"max_tokens": 10**6}}, {("thought", "max_tokens"): "limit is 2048"}),
        ({"task": "silent", "input": 1, "explain": True}, {("explain",): "does not show"}),
        ({"task": "silent", "input": 1, "slice": "x" * 257}, {("slice",): "at most 256"}),
    ],
)
async def test_every_fault_of_a_body_is_listed_with_its_path(plain, body, faults):
    client, stub = plain
    reply = await client.post("/decide", content=json.dumps(body), headers={"Content-Type": "application/json"})
    problem = ProblemOut.model_validate_json(reply.content)
    assert (reply.status_code, problem.status, problem.title) == (422, 422, "Invalid request")
    assert problem.faults is not None
    found = {tuple(fault.path): fault.message for fault in problem.faults}
    assert set(found) == set(faults)
    assert all(words in found[path] for path, words in faults.items())
    assert not stub.asked


@pytest.mark.timeout(60)
async def test_names_of_many_combining_marks_are_compared_at_once(plain):
    client, _ = plain
    acute, dot = "\u0301" * 200_000, "\u0323" * 200_000
    body = {"question": "q", "options": [f"a{acute}{dot}", f"a{dot}{acute}"], "input": 1}
    content = json.dumps(body, ensure_ascii=False).encode()
    reply = await client.post("/decide", content=content, headers={"Content-Type": "application/json"})
    assert [fault["type"] for fault in reply.json()["faults"]] == ["duplicate"]


@pytest.mark.parametrize("thought", [{}, {"thought": {"temperature": 0}}])
async def test_a_thought_whose_budget_is_not_given_keeps_to_the_limit(rig, thought):
    built = rig(max_thought_tokens=64)
    async with built.client() as client:
        await client.post("/decide", json={**INLINE, "mode": "reasoned", **thought})
    (asked,) = built.stub.asked
    assert asked.spec.thought.max_tokens == 64


async def test_fewer_options_may_be_allowed(rig):
    async with rig(max_options=3).client() as client:
        reply = await client.post("/decide", json={**INLINE, "options": ["a", "b", "c", "d"]})
    assert [fault["message"] for fault in reply.json()["faults"]] == ["4 options, the limit is 3"]


@pytest.mark.parametrize("values", [{"input": "x"}, {"inputs": ["x", "y"]}])
async def test_an_unknown_task_is_not_found_and_near_names_are_given(plain, values):
    client, _ = plain
    reply = await client.post("/decide", json={"task": "route-tickets", **values})
    assert (reply.status_code, reply.json()["near"]) == (404, ["route-ticket"])
    assert "route-ticket" in reply.json()["detail"]


async def test_a_batch_answers_every_input_by_itself(plain):
    client, stub = plain
    stub.fails = {
        "long": InputTooLong("too long", tokens=9, allowed=5),
        "dead": EngineUnavailable("the engine is gone"),
        "bug": RuntimeError("long secret"),
    }
    inputs = ["one", "long", "two", "dead", "bug", "one"]
    reply = await client.post("/decide", json={"task": "route-ticket", "inputs": inputs})
    batch = BatchOut.model_validate_json(reply.content)
    assert (reply.status_code, [item.status for item in batch.items]) == (200, [200, 413, 200, 503, 500, 200])
    assert all((item.answer is None) == (item.problem is not None) for item in batch.items)
    problem = reply.json()["items"][1]["problem"]
    assert (problem["type"], problem["tokens"], problem["allowed"]) == ("urn:demur:problem:input_too_long", 9, 5)
    assert "secret" not in reply.text
    alone = (await client.post("/decide", json={"task": "route-ticket", "input": "two"})).json()
    assert batch.items[2].answer == AnswerOut.model_validate(alone)


async def test_a_batch_does_not_repeat_long_names_without_end(plain):
    client, stub = plain
    long = {"question": "q", "options": [f"{i}{' ' * 4000}." for i in range(255)]}
    reply = await client.post("/decide", json={**long, "inputs": ["x"] * 32})
    problem = reply.json()
    assert (reply.status_code, problem["type"]) == (413, "urn:demur:problem:too_large")
    assert problem["size"] > problem["limit"]
    assert not stub.asked
    assert (await client.post("/decide", json={**long, "input": "x"})).status_code == 200


async def test_an_oversized_batch_fails_as_a_whole(rig):
    built = rig(max_batch=3)
    async with built.client() as client:
        reply = await client.post("/decide", json={"task": "route-ticket", "inputs": ["x"] * 4})
        assert (reply.status_code, reply.json()["limit"], reply.json()["size"]) == (413, 3, 4)
        assert not built.stub.asked
        assert (await client.post("/decide", json={"task": "route-ticket", "inputs": ["x"] * 3})).status_code == 200


async def test_an_input_longer_than_the_context(plain):
    client, stub = plain
    stub.broken = InputTooLong("the input has 9 tokens, 5 fit", tokens=9, allowed=5)
    reply = await client.post("/decide", json=INLINE)
    assert (reply.status_code, reply.json()["tokens"], reply.json()["allowed"]) == (413, 9, 5)


async def test_faults_that_the_decider_finds(plain):
    client, stub = plain
    stub.broken = Invalid("labels collide", faults=(Fault(("options", 1), "collides with options[0]", "label"),))
    reply = await client.post("/decide", json=INLINE)
    assert (reply.status_code, reply.json()["faults"][0]["path"]) == (422, ["options", 1])


async def test_a_bug_is_a_500_without_its_words(plain):
    client, stub = plain
    stub.fails = {INLINE["input"]: ValueError("the input was: It is fine.")}
    reply = await client.post("/decide", json=INLINE)
    assert (reply.status_code, reply.json()["type"]) == (500, "urn:demur:problem:internal_error")
    assert "fine" not in reply.text


async def test_what_is_not_finite_is_never_answered(plain, monkeypatch):
    client, _ = plain

    monkeypatch.setattr(
        module, "answer", lambda request, real=module.answer: replace(real(request), label_mass=float("nan"))
    )
    assert (await client.post("/decide", json=INLINE)).status_code == 500


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/decide/", 404),
        ("GET", "/v1/other", 404),
        ("GET", "/decide", 405),
        ("DELETE", "/tasks", 405),
        ("POST", "/healthz", 405),
        ("PATCH", "/metrics", 405),
    ],
)
async def test_unmatched_routes_get_problem_documents_too(plain, method, path, status):
    client, _ = plain
    reply = await client.request(method, path)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    problem = ProblemOut.model_validate_json(reply.content)
    assert (problem.status, problem.request_id) == (status, reply.headers["x-request-id"])
    assert ("allow" in reply.headers) == (status == 405)


async def test_answers_are_utf8_json(plain):
    client, _ = plain
    reply = await client.post("/decide", json={**INLINE, "options": ["🙂", "é"]})
    assert reply.headers["content-type"] == "application/json"
    assert list(json.loads(reply.content.decode())["probabilities"]) == ["🙂", "é"]
