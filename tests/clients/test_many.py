"""Streams of inputs: order, batches, back-pressure, and what an error ends."""

import itertools
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from demur.clients import (
    AsyncClient,
    AuthenticationError,
    Client,
    ConnectionFailed,
    InvalidRequest,
    Overloaded,
    Problem,
    RetryPolicy,
    TooLarge,
)


@pytest.fixture
def echo(answer):
    """A server that decides every input as itself, and refuses the input `bad`."""

    def outcome(value):
        if value == "bad":
            return {"status": 413, "problem": {"type": "input_too_long", "status": 413}}
        return {"status": 200, "answer": {**answer, "decision": value}}

    return lambda request: httpx.Response(
        200, json={"items": [outcome(value) for value in json.loads(request.content)["inputs"]]}
    )


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (4, [4]), (9, [4, 4, 1])])
async def test_results_come_in_order_whatever_the_batches(connect, script, echo, count, sizes):
    server = script(echo)
    inputs = [f"i{number}" for number in range(count)]
    items = await connect(server)("decide_many", iter(inputs), task="t", batch_size=4, concurrency=2)
    assert [item.index for item in items] == list(range(count))
    assert [item.unwrap().decision for item in items] == inputs
    assert sorted(len(json.loads(request.content)["inputs"]) for request in server.requests) == sorted(sizes)


async def test_a_refused_input_is_the_outcome_of_that_input_alone(connect, script, echo):
    items = await connect(script(echo))("decide_many", ["a", "bad", "c"], task="t", batch_size=2)
    assert [item.answer is not None for item in items] == [True, False, True]
    assert items[1].error.type == "input_too_long"


async def test_long_inputs_share_no_request_that_a_server_would_refuse_whole(connect, script, echo):
    server = script(echo)
    inputs = ["x" * 300_000] * 5 + ["é" * 900_000, "short"]
    items = await connect(server)("decide_many", inputs, task="t")
    assert [item.unwrap().decision for item in items] == inputs
    assert all(len(request.content) < 2 * 2**20 for request in server.requests)
    sizes = [len(json.loads(request.content)["inputs"]) for request in server.requests]
    assert sorted(sizes) == [1, 1, 2, 3]


async def test_an_input_beyond_the_limit_of_bodies_is_the_outcome_of_that_input_alone(connect, script, echo):
    def limited(request):
        return httpx.Response(413) if len(request.content) > 2 * 2**20 else echo(request)

    items = await connect(script(limited))("decide_many", ["a", "x" * 3_000_000, "c"], task="t")
    assert [type(item.error) for item in items] == [type(None), TooLarge, type(None)]


@pytest.mark.parametrize(
    ("failure", "kind"), [(httpx.Response(429), Overloaded), (httpx.ConnectError("refused"), ConnectionFailed)]
)
async def test_a_lost_batch_costs_its_own_items_only(connect, script, echo, failure, kind):
    server = script(echo, failure, echo)
    face = connect(server, retry=RetryPolicy(attempts=1))
    items = await face("decide_many", ["a", "b", "c", "d", "e"], task="t", batch_size=2, concurrency=1)
    assert [type(item.error) for item in items] == [type(None), type(None), kind, kind, type(None)]
    assert [item.index for item in items] == [0, 1, 2, 3, 4]


async def test_an_error_that_every_batch_would_meet_ends_the_stream(connect, script, echo):
    server = script(echo, httpx.Response(401))
    with pytest.raises(AuthenticationError):
        await connect(server)("decide_many", itertools.repeat("x"), task="t", batch_size=2, concurrency=1)
    assert 2 <= len(server.requests) <= 3


@pytest.mark.parametrize("limits", [{"batch_size": 0}, {"concurrency": 0}])
async def test_limits_must_let_something_through(connect, script, echo, limits):
    with pytest.raises(ValueError, match="at least 1"):
        await connect(script(echo))("decide_many", ["a"], task="t", **limits)


def test_limits_are_refused_at_the_call(connect, script, echo):
    with pytest.raises(ValueError, match="at least 1"):
        connect(script(echo)).client.decide_many(["a"], task="t", batch_size=0)


async def test_an_input_that_json_cannot_say_is_the_outcome_of_that_input_alone(connect, script, echo):
    server = script(echo)
    inputs = ["a", "\ud800", "c", {"n": float("nan")}]
    items = await connect(server)("decide_many", inputs, task="t", concurrency=1)
    assert [item.index for item in items] == [0, 1, 2, 3]
    assert [type(item.error) for item in items] == [type(None), InvalidRequest, type(None), InvalidRequest]
    assert [json.loads(request.content)["inputs"] for request in server.requests] == [["a"], ["c"]]


async def _take(stream, taken):
    if isinstance(stream, AsyncIterator):
        async for item in stream:
            taken.append(item.unwrap().decision)
    else:
        for item in stream:
            taken.append(item.unwrap().decision)


@pytest.mark.parametrize("failure", [OSError("the file is gone"), Overloaded(Problem(429, "overloaded", "", ""))])
async def test_inputs_that_end_in_an_error_lose_nothing_before_it(connect, script, echo, failure):
    def inputs():
        yield from ("a", "b", "c")
        raise failure

    taken = []
    with pytest.raises(type(failure)) as caught:
        await _take(connect(script(echo)).client.decide_many(inputs(), task="t", batch_size=2), taken)
    assert taken == ["a", "b", "c"]
    assert caught.value is failure


async def test_an_input_of_a_type_that_is_none_is_raised_after_those_before_it(connect, script, echo):
    taken = []
    with pytest.raises(TypeError):
        await _take(connect(script(echo)).client.decide_many(["a", "b", "c", object(), "e"], task="t"), taken)
    assert taken == ["a", "b", "c"]


def test_items_are_given_before_more_is_read(script, echo):
    said = []
    with Client(transport=httpx.MockTransport(script(echo))) as client:
        talk = client.decide_many(iter(lambda: f"after {len(said)}", None), task="t", batch_size=1, concurrency=1)
        said += [next(talk).unwrap().decision]
        said += [next(talk).unwrap().decision]
    assert said == ["after 0", "after 1"]


def test_inputs_are_read_only_as_far_as_needed(script, echo):
    taken = itertools.count()
    inputs = (f"i{next(taken)}" for _ in itertools.count())
    with Client(transport=httpx.MockTransport(script(echo))) as client:
        stream = client.decide_many(inputs, task="t", batch_size=2, concurrency=3)
        first = next(stream)
        stream.close()
    assert first.index == 0
    assert next(taken) == 6  # three batches under way; the next is read when the items of the first were taken


async def test_an_early_end_cancels_what_is_under_way(echo):
    import asyncio

    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request):
        if json.loads(request.content)["inputs"] == ["a"]:
            await waiting.wait()
            return echo(request)
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with AsyncClient(transport=httpx.MockTransport(handler)) as client:
        stream = client.decide_many(["a", "b", "c"], task="t", batch_size=1, concurrency=2)
        assert (await anext(stream)).index == 0
        await stream.aclose()
    assert cancelled.is_set()
