"""One call from first attempt to answer, without any input or output.

`exchange` is a generator that says what to do next, a `Send` or a `Pause`, and is given what came of it. The two
clients differ only in who does it: one blocks, the other awaits.
"""

import json
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import httpx
from pydantic import ValidationError

from demur.clients._answers import read_problem
from demur.clients._calls import Call
from demur.clients._config import Settings, check_seconds
from demur.clients._errors import ConnectionFailed, DemurClientError, Timeout, UnexpectedAnswer, error_for
from demur.clients._retry import RETRIED, read_retry_after

T = TypeVar("T")

USER_AGENT = "demur-python"

#: Milliseconds that the caller will wait; the server may shorten its own deadline to it.
DEADLINE_HEADER = "X-Demur-Deadline-Ms"

#: Opening a connection that takes longer has failed; a later attempt may reach another machine.
CONNECT_SECONDS = 5.0

#: Requests of one client that are under way at once, as many as httpx has connections; others wait for a place.
MAX_REQUESTS = 100

_logger = logging.getLogger("demur.clients")


@dataclass(frozen=True, slots=True)
class Send:
    """Send this request by `ends` of the clock, and give back its response or the `httpx.RequestError` it ended in.

    Build it when there is a place for it: it tells the server how much time is left.
    """

    build: Callable[[], httpx.Request]
    ends: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


Exchange = Generator[Send | Pause, httpx.Response | httpx.RequestError | None, T]


def exchange(call: Call[T], settings: Settings, clock: Callable[[], float]) -> Exchange[T]:
    """Send the call until an answer comes that stands, or attempts or deadline run out."""
    budget = settings.timeout if call.deadline is None else call.deadline
    check_seconds("deadline", budget)
    ends = clock() + budget
    attempts = settings.retry.attempts if call.retried else 1
    attempt = 1
    while True:
        if clock() >= ends:
            raise Timeout(f"{_name(call, settings)}: no answer within {budget:g} s")
        reply = yield Send(lambda: _request(call, settings, ends - clock()), ends)
        if isinstance(reply, httpx.Response) and reply.is_success:
            return _answer(reply, call, settings)
        error, retry_after, passing = _failure(reply, call, settings, budget)
        pause = settings.retry.pause(attempt, retry_after)
        if not passing or attempt >= attempts or clock() + pause >= ends:
            raise error
        _logger.info(
            "%s failed (%s), attempt %d of %d; next in %.2f s",
            _name(call, settings),
            reply.status_code if isinstance(reply, httpx.Response) else type(reply).__name__,
            attempt,
            attempts,
            pause,
        )
        yield Pause(pause)
        attempt += 1


def _request(call: Call[T], settings: Settings, left: float) -> httpx.Request:
    left = max(left, 0.001)  # the wait for a place may have taken all of it
    headers = {"Accept": "application/json", "User-Agent": USER_AGENT, DEADLINE_HEADER: str(int(left * 1000))}
    headers |= call.headers
    if call.body is not None:
        headers["Content-Type"] = "application/json"
    if settings.api_key is not None:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    timeout = httpx.Timeout(left, connect=min(left, CONNECT_SECONDS))
    return httpx.Request(
        call.method,
        settings.url(call.path),
        headers=headers,
        content=call.body,
        extensions={"timeout": timeout.as_dict()},
    )


def _answer(response: httpx.Response, call: Call[T], settings: Settings) -> T:
    try:
        return call.read(response)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)}))
        raise UnexpectedAnswer(f"{_name(call, settings)}: cannot read {fields or 'the answer'}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnexpectedAnswer(
            f"{_name(call, settings)}: status {response.status_code} with a body that is no answer of Demur's"
        ) from None


def _failure(
    reply: httpx.Response | httpx.RequestError | None, call: Call[T], settings: Settings, budget: float
) -> tuple[DemurClientError, float | None, bool]:
    """The error that this reply amounts to, its `Retry-After`, and whether it may pass."""
    name = _name(call, settings)
    match reply:
        case httpx.Response(status_code=status) if status >= 400:
            retry_after = read_retry_after(reply.headers.get("Retry-After"))
            problem = read_problem(
                _json(reply),
                status,
                title=reply.reason_phrase,
                request_id=reply.headers.get("X-Request-Id"),
                retry_after=retry_after,
            )
            return error_for(problem), retry_after, status in RETRIED
        case httpx.Response(status_code=status):
            return UnexpectedAnswer(f"{name}: status {status}, which Demur does not send"), None, False
        case httpx.ConnectTimeout():
            return ConnectionFailed(f"{name}: no connection ({type(reply).__name__})"), None, True
        case httpx.TimeoutException():
            return Timeout(f"{name}: no answer within {budget:g} s"), None, False
        case httpx.NetworkError() | httpx.RemoteProtocolError():
            # Neither decision nor label spoils anything by coming twice, so a connection lost half way is tried again.
            return ConnectionFailed(f"{name}: no answer ({type(reply).__name__}: {reply})"), None, True
        case httpx.DecodingError():
            return UnexpectedAnswer(f"{name}: an answer whose encoding is broken"), None, False
        case _:
            return ConnectionFailed(f"{name}: not sent ({type(reply).__name__}: {reply})"), None, False


def _json(response: httpx.Response) -> object:
    try:
        return json.loads(response.content)
    except ValueError:
        return None


def _name(call: Call[T], settings: Settings) -> str:
    return f"{call.method} {settings.url(call.path)}"
