"""When the clients try again, and for how long."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demur.clients import AsyncClient, Client, ConnectionFailed, Overloaded, RetryPolicy, Timeout, Unavailable
from demur.clients._retry import read_retry_after


def busy(status=429, **headers):
    return httpx.Response(
        status, json={"type": "overloaded"}, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


@pytest.mark.parametrize(
    "failure",
    [
        busy(429),
        busy(503),
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("disconnected"),
    ],
)
async def test_what_may_pass_is_tried_again_with_doubling_pauses(connect, script, time, answer, failure):
    server = script(failure, failure, failure, httpx.Response(200, json=answer))
    assert (await connect(server)("decide", "x", task="t")).id == "d-1"
    assert time.pauses == [1.0, 2.0, 4.0]
    assert [request.content for request in server.requests] == [server.requests[0].content] * 4


@pytest.mark.parametrize(
    ("failure", "error"),
    [(busy(429), Overloaded), (busy(503), Unavailable), (httpx.ConnectError("refused"), ConnectionFailed)],
)
async def test_the_last_error_is_raised_when_attempts_run_out(connect, script, time, failure, error):
    server = script(failure)
    with pytest.raises(error):
        await connect(server, retry=RetryPolicy(attempts=3, base=1, jitter=lambda: 0.5))("decide", "x", task="t")
    assert len(server.requests) == 3
    assert time.pauses == [0.5, 1.0]


async def test_retry_after_is_waited_out_and_the_drawn_pause_added(connect, script, time, answer):
    server = script(busy(429, Retry_After="7"), httpx.Response(200, json=answer))
    await connect(server)("decide", "x", task="t")
    assert time.pauses == [8.0]


async def test_a_pause_that_outlasts_the_deadline_is_not_begun(connect, script, time):
    server = script(busy(503, Retry_After="3600"))
    with pytest.raises(Unavailable) as caught:
        await connect(server)("decide", "x", task="t", deadline=5)
    assert time.pauses == []
    assert caught.value.retry_after == 3600.0


async def test_the_server_is_told_what_remains_of_the_deadline(connect, script, time, answer):
    def slow(request):
        time.now += 2.0
        return busy(503)

    server = script(slow, slow, httpx.Response(200, json=answer))
    await connect(server)("decide", "x", task="t", deadline=10.5)
    assert [request.headers["X-Demur-Deadline-Ms"] for request in server.requests] == ["10500", "7500", "3500"]
    timeouts = [request.extensions["timeout"] for request in server.requests]
    assert [timeout["read"] for timeout in timeouts] == [10.5, 7.5, 3.5]
    assert [timeout["connect"] for timeout in timeouts] == [5.0, 5.0, 3.5]


async def test_the_deadline_bounds_all_attempts_together(connect, script, time):
    def slow(request):
        time.now += 3.0
        return busy(503)

    server = script(slow)
    with pytest.raises(Unavailable):
        await connect(server)("decide", "x", task="t", deadline=6)
    assert len(server.requests) == 2
    assert time.now <= 1000 + 6 + 3


@pytest.mark.parametrize("late", [httpx.ReadTimeout("late"), httpx.WriteTimeout("late"), httpx.PoolTimeout("late")])
async def test_an_answer_that_is_late_is_a_timeout_and_final(connect, script, time, late):
    server = script(late)
    with pytest.raises(Timeout, match="no answer within 4 s"):
        await connect(server)("decide", "x", task="t", deadline=4)
    assert len(server.requests) == 1


async def test_a_request_that_waited_for_a_place_says_what_is_left(time, answer, monkeypatch):
    monkeypatch.setattr("demur.clients._async.MAX_REQUESTS", 1)
    told = []

    async def handler(request):
        told.append(request.headers["X-Demur-Deadline-Ms"])
        await asyncio.sleep(0)  # the other call comes, and waits
        time.now += 2.0
        return httpx.Response(200, json=answer)

    async with AsyncClient(transport=httpx.MockTransport(handler), clock=time.clock) as client:
        await asyncio.gather(*(client.decide("x", task="t", deadline=10) for _ in range(2)))
    assert told == ["10000", "8000"]


def test_a_request_waits_for_a_place_until_its_deadline(answer, monkeypatch):
    monkeypatch.setattr("demur.clients._sync.MAX_REQUESTS", 1)
    asked, goes_on = threading.Event(), threading.Event()

    def handler(request):
        asked.set()
        goes_on.wait(10)
        return httpx.Response(200, json=answer)

    with Client(transport=httpx.MockTransport(handler)) as client, ThreadPoolExecutor(1) as other:
        first = other.submit(client.decide, "x", task="t")
        asked.wait(10)
        with pytest.raises(Timeout):
            client.decide("y", task="t", deadline=0.05)
        goes_on.set()
        assert first.result().id == "d-1"
        assert client.decide("z", task="t").id == "d-1"


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf")])
async def test_a_deadline_must_lie_ahead(connect, script, deadline):
    with pytest.raises(ValueError, match="deadline"):
        await connect(script())("decide", "x", task="t", deadline=deadline)


async def test_a_call_that_cannot_be_sent_is_not_tried_again(connect, script, time):
    server = script(httpx.UnsupportedProtocol("no proxy for that"))
    with pytest.raises(ConnectionFailed, match="not sent"):
        await connect(server)("decide", "x", task="t")
    assert len(server.requests) == 1


attempts = st.integers(1, 5000)
seconds = st.floats(0, 1e6)


@given(attempts, st.none() | seconds, st.floats(0, 1), seconds, seconds)
def test_a_pause_covers_retry_after_and_stays_under_the_cap(attempt, retry_after, drawn, base, cap):
    pause = RetryPolicy(base=base, cap=cap, jitter=lambda: drawn).pause(attempt, retry_after)
    assert (retry_after or 0) <= pause <= (retry_after or 0) + cap


def test_the_jitter_is_full():
    pauses = [RetryPolicy(base=1, cap=8).pause(10, None) for _ in range(2000)]
    assert min(pauses) < 0.4
    assert max(pauses) > 7.6


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"base": -1}, {"cap": -1}])
def test_a_policy_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError):
        RetryPolicy(**wrong)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0", 0), (" 12 ", 12), (None, None), ("soon", None), ("-3", None), ("1.5", None), ("", None), ("²", None)],
)
def test_retry_after_in_seconds(value, expected):
    assert read_retry_after(value) == expected


def test_retry_after_as_a_date():
    assert read_retry_after("Mon, 01 Jan 99999999999 00:00:00 GMT") is None
    ahead = datetime.now(UTC) + timedelta(minutes=10)
    assert 590 < read_retry_after(format_datetime(ahead, usegmt=True)) <= 600
    assert read_retry_after("Thu, 01 Jan 2015 00:00:00 GMT") == 0
    assert read_retry_after("Thu, 01 Jan 2015 00:00:00 -0000") == 0
