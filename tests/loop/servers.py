"""Server processes on one store, each with a pipeline on the stub engine."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from demur.decision.bundle import read_bundle
from demur.decision.task import AuditSpec, Task
from demur.decision.taskfile import parse_task
from demur.server.app import Application, create_app
from demur.server.calibrated import Calibrated
from demur.server.decide import DecidePipeline
from demur.server.desk import CalibrationDesk
from demur.server.lifecycle import Lifecycle
from demur.server.loop.loop import Loop
from demur.server.loop.watch import Watch
from demur.server.metrics import Metrics
from demur.server.registry import Registry
from demur.server.services import ServedModel
from demur.server.settings import Settings
from tests.server.bundled import TASK, TASK_YAML, StubEngine, make_bundle, pipeline_on

#: Everything is drawn.
AUDITED = replace(TASK, audit=AuditSpec(1.0, 1.0, 1.0), content_hash=parse_task(TASK_YAML, TASK.name).content_hash)


@dataclass
class Process:
    """One server process; `served` in between is what `serve.py` does at its start."""

    app: Application
    engine: StubEngine
    pipeline: DecidePipeline
    registry: Registry
    loop: Loop
    watch: Watch

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://demur.test")

    async def decide(self, **body: Any) -> dict[str, Any]:
        async with self.client() as client:
            answer = await client.post("/decide", json={"task": "route", "input": "it does not start", **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        async with self.client() as client:
            answer = await client.request(method, path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def metrics(self) -> dict[str, float]:
        async with self.client() as client:
            page = (await client.get("/metrics")).text
        lines = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("demur_")]
        return {name: float(value) for name, value in lines}

    async def close(self) -> None:
        await self.watch.aclose()
        await self.loop.aclose()


async def start(place: Path, *, task: Task = AUDITED, **settings: Any) -> Process:
    """A process on the store and the bundle of `place`."""
    bundle = place / "bundles" / "route"
    if not bundle.exists():
        make_bundle(bundle)
    configured = Settings(state_dir=place / "state", **settings)
    loop = Loop.open(configured)
    assert loop is not None
    loop.start()
    engine, registry, metrics = StubEngine(), Registry({}), Metrics(engine=())
    pipeline = pipeline_on(engine)
    watch = Watch.over(loop, registry, metrics, configured, lambda: pipeline)
    pipeline.standing = watch.standing
    tasks = {task.name: task}
    found = {task.name: Calibrated.of(read_bundle(bundle))}
    prepared = pipeline.prepare(tasks.values(), await watch.shelf.settled(tasks, found))
    await watch.shelf.keep(found)
    await pipeline.warm(prepared)
    pipeline.adopt(prepared)
    registry.current, registry.bundles = tasks, prepared.bundles
    await watch.begin(prepared.bundles)
    (place / "tasks").mkdir(exist_ok=True)
    (place / "tasks" / "route.yaml").write_bytes(TASK_YAML)
    desk = CalibrationDesk(lambda: pipeline, registry, tasks=place / "tasks", bundles=place / "bundles")
    desk.shelf = watch.shelf
    lifecycle = Lifecycle()
    lifecycle.ready()
    model = ServedModel("stub-model", "A stub.", "2026-01-31")
    app = create_app(
        pipeline, registry, configured, lifecycle, model, metrics=metrics, desk=desk, loop=loop, watch=watch
    )
    return Process(app, engine, pipeline, registry, loop, watch)


async def label(process, ids, label_):
    return await process.ask("POST", "/feedback", {"items": [{"id": one, "label": label_} for one in ids]})


async def decide_rightly(process, count, *, wrong=0, **body):
    """Decisions of which the first `wrong` get another label than was decided."""
    answers = [await process.decide(**body) for _ in range(count)]
    for index, answer in enumerate(answers):
        right = answer["decision"]
        await label(process, [answer["id"]], "sales" if index < wrong else right)
