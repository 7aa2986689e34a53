"""What the clients send."""

import json
import math

import httpx
import pytest


def ok(answer):
    return httpx.Response(200, json=answer)


async def test_a_registered_task_is_asked_by_name(connect, script, answer):
    server = script(ok(answer))
    face = connect(server, base_url="http://demur.test", api_key="secret-1", timeout=30)
    result = await face("decide", "I was charged twice", task="intent", mode="direct", explain=True)
    assert result.decision == "billing"
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("POST", "http://demur.test/decide")
    assert request.headers["Authorization"] == "Bearer secret-1"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["X-Demur-Deadline-Ms"] == "30000"
    assert json.loads(request.content) == {
        "task": "intent",
        "mode": "direct",
        "explain": True,
        "input": "I was charged twice",
    }


async def test_a_decision_can_be_marked_for_whom_it_is_about(connect, script, answer):
    server = script(ok(answer))
    await connect(server)("decide", "refund", task="intent", subject="customer-17", slice="de")
    body = json.loads(server.requests[0].content)
    assert body == {"task": "intent", "subject": "customer-17", "slice": "de", "input": "refund"}


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (["yes", "no"], [{"name": "yes"}, {"name": "no"}]),
        ({"no": None, "yes": "it is spam"}, [{"name": "no"}, {"name": "yes", "description": "it is spam"}]),
    ],
)
async def test_an_inline_question_keeps_the_order_of_its_options(connect, script, answer, options, sent):
    server = script(ok(answer))
    policy = {"trust_at": 0.9}
    await connect(server)("decide", {"subject": "Gewinn!"}, question="Spam?", options=options, policy=policy)
    body = json.loads(server.requests[0].content)
    assert body == {"question": "Spam?", "options": sent, "policy": policy, "input": {"subject": "Gewinn!"}}


@pytest.mark.parametrize("value", ["", 0, False, [], {}, ["a", {"b": None}], "naïve ☕ 漢字 \u0000"])
async def test_any_json_value_is_an_input(connect, script, answer, value):
    server = script(ok(answer))
    await connect(server)("decide", value, task="t")
    assert json.loads(server.requests[0].content)["input"] == value


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({}, "either task"),
        ({"task": "t", "question": "q", "options": ["a", "b"]}, "either task"),
        ({"question": "q"}, "belong together"),
        ({"task": "t", "options": ["a", "b"]}, "belong together"),
        ({"question": "q", "options": "ab"}, "sequence of names"),
        ({"task": "t", "dead_line": 3}, "dead_line"),
    ],
)
async def test_arguments_that_make_no_request_send_none(connect, script, answer, ask, words):
    server = script(ok(answer))
    with pytest.raises(TypeError, match=words):
        await connect(server)("decide", "x", **ask)
    assert server.requests == []


@pytest.mark.parametrize(
    ("value", "error"),
    [("private \ud800", ValueError), ({"private": math.nan}, ValueError), ({"private": {1}}, TypeError)],
)
async def test_what_json_cannot_say_is_refused_without_quoting_it(connect, script, answer, value, error):
    server = script(ok(answer))
    with pytest.raises(error) as caught:
        await connect(server)("decide", value, task="t")
    assert "private" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert server.requests == []


async def test_a_string_is_not_a_batch(connect, script, answer):
    server = script(ok(answer))
    for method in ("decide_batch", "decide_many"):
        with pytest.raises(TypeError, match="not one string"):
            await connect(server)(method, "two", task="t")


async def test_names_and_paths_are_joined_to_the_base(connect, script):
    server = script(httpx.Response(200, json={"name": "a/b ü"}))
    assert (await connect(server, base_url="https://host.test/prefix/")("task", "a/b ü")).name == "a/b ü"
    assert server.requests[0].url.raw_path == b"/prefix/tasks/a%2Fb%20%C3%BC"


async def test_settings_come_from_the_environment(connect, script, monkeypatch):
    monkeypatch.setenv("DEMUR_URL", "http://elsewhere.test:9")
    monkeypatch.setenv("DEMUR_API_KEY", "from-env")
    server = script(httpx.Response(200, json={"version": "1"}))
    await connect(server)("version")
    assert str(server.requests[0].url) == "http://elsewhere.test:9/version"
    assert server.requests[0].headers["Authorization"] == "Bearer from-env"
    await connect(server, base_url="http://here.test", api_key="argument")("version")
    assert server.requests[1].headers["Authorization"] == "Bearer argument"


async def test_without_a_key_none_is_sent(connect, script):
    server = script(httpx.Response(200, json={"version": "1"}))
    await connect(server)("version")
    assert "Authorization" not in server.requests[0].headers
    assert server.requests[0].url.host == "127.0.0.1"


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "demur.test"},
        {"base_url": "ftp://demur.test"},
        {"base_url": "http://[::"},
        {"base_url": "http://user:word@demur.test"},
        {"api_key": "two words"},
        {"api_key": "ключ"},
        {"api_key": "new\nline"},
        {"timeout": 0},
        {"timeout": float("inf")},
    ],
)
async def test_settings_that_cannot_work_are_refused_at_once(connect, script, settings):
    with pytest.raises(ValueError) as caught:
        connect(script(), **settings)
    assert settings.get("api_key", "nothing") not in str(caught.value)


async def test_neither_key_nor_input_is_told_to_anyone_but_the_server(connect, script, caplog):
    caplog.set_level("DEBUG")
    server = script(httpx.ConnectError("no"), httpx.Response(503), httpx.Response(422, json={"title": "Invalid"}))
    face = connect(server, base_url="http://demur.test", api_key="hush")
    with pytest.raises(Exception) as caught:
        await face("decide", "hush hush", task="t")
    assert len(server.requests) == 3
    assert "attempt 1 of 4" in caplog.text
    for text in (caplog.text, str(caught.value), repr(caught.value), repr(face.client), repr(face.client._settings)):
        assert "hush" not in text
