"""An application around the stub, and ways to call it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

from demur.decision.question import Option, Question
from demur.decision.task import DecisionSpec, PolicySpec, Task
from demur.server.app import Application, create_app
from demur.server.lifecycle import Lifecycle
from demur.server.loop.loop import Loop
from demur.server.registry import Registry
from demur.server.services import ServedModel
from demur.server.settings import Settings

from .stub import StubDecider

TEAMS = Question("Which team?", (Option("billing", "money"), Option("technical", None), Option("sales", None)))
TASKS = {
    "route-ticket": Task("route-ticket", DecisionSpec(TEAMS), content_hash="a1" * 32, examples=("no refund yet",)),
    "silent": Task(
        "silent",
        DecisionSpec(TEAMS),
        policy=PolicySpec(allow_uncalibrated=True, trust_at=0.9, defer_below=0.2),
        explain=False,
        content_hash="b2" * 32,
    ),
}
INLINE = {"question": "Is it good?", "options": ["yes", "no"], "input": "It is fine."}


@dataclass
class Rig:
    """An application and its parts."""

    app: Application
    stub: StubDecider
    lifecycle: Lifecycle
    registry: Registry

    def client(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://demur.test", **options)


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    loops: list[Loop] = []

    def build(*, ready: bool = True, extra_routes: Any = (), **settings: Any) -> Rig:
        stub, lifecycle, registry = StubDecider(), Lifecycle(), Registry(TASKS)
        if ready:
            lifecycle.ready()
        model = ServedModel("stub-model", "A stub.", "2026-01-31", aliases=("other-name",))
        known = Settings(**settings)
        loop = Loop.open(known)
        if loop is not None:
            loops.append(loop)
        app = create_app(stub, registry, known, lifecycle, model, loop=loop, extra_routes=extra_routes)
        return Rig(app, stub, lifecycle, registry)

    yield build
    for loop in loops:
        loop.store.close()


@pytest.fixture
async def plain(rig: Callable[..., Rig]) -> AsyncIterator[tuple[httpx.AsyncClient, StubDecider]]:
    """A client of an application with default settings, and its stub."""
    built = rig()
    async with built.client() as client:
        yield client, built.stub


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()


@asynccontextmanager
async def serving(app: Application) -> AsyncIterator[str]:
    """Serves the application on a real port; gives its URL."""
    server = _Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off"))
    task = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(20):
            await server.up.wait()
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task
