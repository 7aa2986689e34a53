"""Labels over HTTP, on SQLite in a temporary folder: batches of 100, and singly from 16 callers.

The server and its callers share one process and so the cores. No engine.
"""

import asyncio
import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.serving.report import Row
from demur.decision.task import AuditSpec, DecisionSpec, Task
from demur.server.app import create_app
from demur.server.lifecycle import Lifecycle
from demur.server.loop.loop import Loop
from demur.server.registry import Registry
from demur.server.services import ServedModel
from demur.server.settings import Settings
from demur.server.types import DecideRequest
from tests.server.conftest import TEAMS, serving
from tests.server.stub import StubDecider

DECISIONS = 8_000


def run() -> list[Row]:
    """Labels a second, durable before their answers."""
    return asyncio.run(_run())


async def _run() -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(state_dir=Path(place))
        loop = Loop.open(settings)
        assert loop is not None
        loop.start()
        lifecycle = Lifecycle()
        lifecycle.ready()
        task = Task("teams", DecisionSpec(TEAMS), audit=AuditSpec(0.05, 0.05, 0.05), content_hash="a")
        model = ServedModel("stub", "A stub.", "2026-01-31")
        app = create_app(StubDecider(), Registry({"teams": task}), settings, lifecycle, model, loop=loop)
        ids: list[str] = []
        for first in range(0, DECISIONS, 8):
            asked = [DecideRequest(task.spec, f"{i}", task) for i in range(first, first + 8)]
            ids += [one.id for one in await asyncio.gather(*map(app.services.decider.decide, asked))]
        while loop.log.buffered:  # noqa: ASYNC110 - the log is measured as it is
            await asyncio.sleep(0.01)
        async with serving(app) as url:
            batches, singly = await _batches(url, ids), await _singly(url, ids[:1_600])
        await loop.aclose()
    return [
        Row(what="feedback in batches of 100, one caller", unit="labels/s", ours=batches, at_least=2_000),
        Row(what="feedback singly, 16 callers", unit="labels/s", ours=singly, at_least=100),
    ]


async def _batches(url: str, ids: list[str]) -> float:
    start = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for first in range(0, len(ids), 100):
            items = [{"id": one, "label": "sales"} for one in ids[first : first + 100]]
            reply = await client.post("/feedback", json={"items": items})
            assert {one["status"] for one in reply.json()["items"]} == {"stored"}
    return len(ids) / (time.perf_counter() - start)


async def _singly(url: str, ids: list[str]) -> float:
    start = time.perf_counter()

    async def call(mine: list[str]) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for one in mine:
                reply = await client.post("/feedback", json={"id": one, "label": "billing"})
                assert reply.json()["status"] == "corrected"

    await asyncio.gather(*(call(ids[i::16]) for i in range(16)))
    return len(ids) / (time.perf_counter() - start)
