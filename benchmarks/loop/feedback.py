"""What the loop costs: `.venv/bin/python -m benchmarks.loop` (a minute; SQLite in a temporary folder, no engine).

Feedback over HTTP in one process with its callers, so both share the cores: batches of 100, and singly from 16
callers. And the work that logging and auditing add to a decision, in processor time.
"""

import asyncio
import tempfile
import time
from pathlib import Path

import httpx

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


async def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(state_dir=Path(place))
        loop = Loop.open(settings)
        assert loop is not None
        loop.start()
        lifecycle = Lifecycle()
        lifecycle.ready()
        task = Task("teams", DecisionSpec(TEAMS), audit=AuditSpec(0.05, 0.05, 0.05), content_hash="a")
        app = create_app(
            StubDecider(),
            Registry({"teams": task}),
            settings,
            lifecycle,
            ServedModel("stub", "A stub.", "2026-01-31"),
            loop=loop,
        )
        bare, logged = StubDecider(), loop.decider(StubDecider())
        ids: list[str] = []
        cost = {}
        for name, decider in (("bare", bare), ("logged and audited", logged)):
            start = time.process_time()
            for first in range(0, DECISIONS, 8):
                asked = [DecideRequest(task.spec, f"{name} {i}", task) for i in range(first, first + 8)]
                done = await asyncio.gather(*(decider.decide(request) for request in asked))
                ids += [one.id for one in done] if decider is logged else []
            while loop.log.buffered:  # noqa: ASYNC110 - the log is measured as it is
                await asyncio.sleep(0.01)
            cost[name] = (time.process_time() - start) / DECISIONS * 1e6
        print(f"a decision, bare stub: {cost['bare']:.0f} us")
        print(f"a decision, logged and audited at 5%: {cost['logged and audited']:.0f} us")
        async with serving(app) as url:
            await _batches(url, ids)
            await _singly(url, ids)
        await loop.aclose()


async def _batches(url: str, ids: list[str]) -> None:
    start = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for first in range(0, len(ids), 100):
            items = [{"id": one, "label": "sales"} for one in ids[first : first + 100]]
            reply = await client.post("/feedback", json={"items": items})
            assert {one["status"] for one in reply.json()["items"]} == {"stored"}
    rate = len(ids) / (time.perf_counter() - start)
    print(f"feedback in batches of 100, one caller: {rate:.0f} labels/s (wanted: 2,000)")


async def _singly(url: str, ids: list[str]) -> None:
    start = time.perf_counter()
    some = ids[:1_600]

    async def call(mine: list[str]) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for one in mine:
                reply = await client.post("/feedback", json={"id": one, "label": "billing"})
                assert reply.json()["status"] == "corrected"

    await asyncio.gather(*(call(some[i::16]) for i in range(16)))
    print(f"feedback singly, 16 callers: {len(some) / (time.perf_counter() - start):.0f} labels/s (wanted: 100)")


if __name__ == "__main__":
    asyncio.run(main())
