"""Both clients behind one awaitable face, on a scripted transport and a clock that only pauses move."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from demur.clients import AsyncClient, Client, RetryPolicy

ANSWER = {
    "id": "d-1",
    "decision": "billing",
    "verdict": "review",
    "reason": "uncalibrated",
    "p_correct": None,
    "probabilities": {"billing": 0.75, "delivery": 0.25},
    "label_mass": 0.5,
    "calibration": None,
    "certificate": None,
    "model": "demo",
    "usage": {"prompt_tokens": 40, "cached_tokens": 32, "thought_tokens": 0, "reads": 1},
    "timings": {"total_ms": 12.5, "engine_ms": 11.0},
}


@dataclass
class FakeTime:
    """A clock that stands still but for the pauses that it records."""

    now: float = 1000.0
    pauses: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)


@dataclass
class Script:
    """Answers requests from a list of responses, exceptions and functions; the last stands for all that follow."""

    replies: list[httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]]
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        if isinstance(reply, Exception):
            raise reply
        if callable(reply):
            return reply(request)
        # A response belongs to the kind of client that read it first, so each request gets its own.
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)


@dataclass
class Face:
    """A client whose methods are all awaited, whichever kind it is."""

    client: Client | AsyncClient

    async def __call__(self, method: str, *args: Any, **keywords: Any) -> Any:
        result = getattr(self.client, method)(*args, **keywords)
        if isinstance(result, AsyncIterator):
            return [item async for item in result]
        if isinstance(result, Iterator):
            return list(result)
        return await result if inspect.isawaitable(result) else result

    async def close(self) -> None:
        await (self.client.aclose() if isinstance(self.client, AsyncClient) else self("close"))


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEMUR_URL", raising=False)
    monkeypatch.delenv("DEMUR_API_KEY", raising=False)


@pytest.fixture(params=["blocking", "awaiting"])
async def connect(request: pytest.FixtureRequest, time: FakeTime) -> AsyncIterator[Callable[..., Face]]:
    """`connect(replies)` is a client on a script, `connect(None, base_url=...)` one on the real network and clock."""
    opened: list[Face] = []

    def open_client(script: Script | None, **settings: Any) -> Face:
        settings.setdefault("retry", RetryPolicy(base=1.0, cap=8.0, jitter=lambda: 1.0))
        if script is not None:
            settings["transport"] = httpx.MockTransport(script)
            settings["clock"] = time.clock
            settings["sleep"] = time.sleep if request.param == "blocking" else time.asleep
        face = Face((Client if request.param == "blocking" else AsyncClient)(**settings))
        opened.append(face)
        return face

    yield open_client
    for face in opened:
        await face.close()


@pytest.fixture
def answer() -> dict[str, Any]:
    return dict(ANSWER)


@pytest.fixture
def script() -> Callable[..., Script]:
    return lambda *replies: Script(list(replies))
