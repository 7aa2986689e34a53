"""200 tasks with certificates and 1,000,000 stored decisions: how long a restart takes, and a scrape.

Decisions are on SQLite in a temporary folder (half a gigabyte), 5% of them audited and nine tenths of those labelled.
The engine is a stub, since nothing is asked of it.
"""

import asyncio
import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sqlalchemy import Table

from benchmarks.serving.report import Row
from demur.decision.bundle import read_bundle
from demur.decision.task import Task
from demur.server.app import create_app
from demur.server.calibrated import Calibrated
from demur.server.lifecycle import Lifecycle
from demur.server.loop.live import Served
from demur.server.loop.loop import Loop
from demur.server.loop.shelf import watched
from demur.server.loop.watch import Watch
from demur.server.metrics import Metrics
from demur.server.registry import Registry
from demur.server.services import ServedModel
from demur.server.settings import Settings
from demur.server.store import schema
from demur.server.store.database import FILE
from demur.server.store.guarantees import put_guarantee
from demur.server.store.records import DecisionRecord, Draw
from demur.server.store.rows import decision_row, micros
from demur.server.types import DecideRequest
from tests.server.bundled import TASK, StubEngine, bundle_files, certificates, make_bundle, pipeline_on

TASKS, DECISIONS, AUDITED, LABELLED = 200, 1_000_000, 0.05, 0.9
_SCRAPES = 15
#: Rows behind a bundle's drift reference.
_REFERENCE = 600


def run() -> list[Row]:
    """Times of a restart and of a scrape after it."""
    with tempfile.TemporaryDirectory() as place:
        tasks = {f"task-{i:03}": replace(TASK, name=f"task-{i:03}") for i in range(TASKS)}
        bundles = _bundles(Path(place) / "bundles", tasks)
        settings = Settings(state_dir=Path(place) / "state")
        _fill(settings, {name: watched(name, one) for name, one in bundles.items()})
        return asyncio.run(_restart(settings, tasks, bundles))


async def _restart(settings: Settings, tasks: Mapping[str, Task], bundles: Mapping[str, Calibrated]) -> list[Row]:
    pipeline, registry, metrics = pipeline_on(StubEngine()), Registry({}), Metrics()
    prepared = pipeline.prepare(tasks.values(), bundles)
    await pipeline.warm(prepared)
    pipeline.adopt(prepared)
    took, cpu = [], []
    for _ in range(2):  # the first start finds bundles that are new to the store
        start, began = time.perf_counter(), time.process_time()
        loop = _open(settings)
        loop.start()
        registry, metrics = Registry({}), Metrics()
        watch = Watch.over(loop, registry, metrics, settings, lambda: pipeline)
        pipeline.standing = watch.standing
        await watch.shelf.settled(tasks, bundles)
        await watch.shelf.keep(bundles)
        registry.current, registry.bundles = tasks, prepared.bundles
        await watch.begin(prepared.bundles)
        took.append(time.perf_counter() - start)
        cpu.append(time.process_time() - began)
        restored = watch.live.view
        assert len(restored.guarantees) == TASKS
        assert int(DECISIONS * AUDITED) <= sum(one.audits for one in restored.guarantees.values())
        if len(took) == 1:
            await watch.aclose()
            await loop.aclose()
    lifecycle = Lifecycle()
    lifecycle.ready()
    model = ServedModel("stub-model", "A stub.", "2026-01-31")
    app = create_app(pipeline, registry, settings, lifecycle, model, metrics=metrics, loop=loop, watch=watch)
    for task in tasks.values():  # so that every metric has all its series
        await app.services.decider.decide(DecideRequest(task.spec, "it does not start", task))
    pages, work = [], []
    for _ in range(_SCRAPES):
        start, began = time.perf_counter(), time.thread_time()
        page = metrics.page()
        pages.append(time.perf_counter() - start)
        work.append(time.thread_time() - began)
        await asyncio.sleep(0)
    print(f"a page of {len(page.splitlines())} lines, {len(page) / 1e6:.1f} MB")
    await watch.aclose()
    await loop.aclose()
    return [
        Row(what="first start with 200 tasks and 1,000,000 decisions", unit="s", ours=took[0]),
        Row(what="a restart with as many", unit="s", ours=took[1], at_most=5),
        Row(what="processor time of that, all threads", unit="s", ours=cpu[1]),
        Row(what="a scrape with as many, median", unit="ms", ours=median(pages) * 1e3, at_most=50),
        Row(what="processor time of that", unit="ms", ours=median(work) * 1e3),
    ]


def _open(settings: Settings) -> Loop:
    loop = Loop.open(settings)
    assert loop is not None
    return loop


def _bundles(place: Path, tasks: Mapping[str, Task]) -> dict[str, Calibrated]:
    pipeline, issued = pipeline_on(StubEngine()), certificates()
    rng = np.random.default_rng(0)
    found = {}
    for name, task in tasks.items():
        reference = {
            "scores": rng.beta(6, 1, _REFERENCE).round(6).tolist(),
            "label_mass": rng.beta(20, 1, _REFERENCE).round(6).tolist(),
            "options": {"billing": 300, "technical": 200, "sales": 100},
        }
        files = {**bundle_files(issued=issued), "reference.json": json.dumps(reference).encode()}
        make_bundle(place / name, files, task=task, pipeline=pipeline)
        found[name] = Calibrated.of(read_bundle(place / name))
    return found


def _fill(settings: Settings, served: Mapping[str, Served]) -> None:
    """As many decisions, audits and labels as months of traffic leave, written in one go."""
    loop = _open(settings)
    for one in served.values():
        for record in one.guarantees:
            loop.store.write_now(partial(put_guarantee, record=record))
    loop.store.close()
    assert settings.state_dir is not None
    with sqlite3.connect(settings.state_dir / FILE) as database:
        database.execute("PRAGMA synchronous=OFF")
        names = ("billing", "technical", "sales")
        row = decision_row(_decision(names))
        database.execute("INSERT INTO option_sets VALUES (?, ?)", (row["options"], json.dumps(names)))
        _insert(database, schema.decisions, _decisions(row, served))
        _insert(database, schema.audits, _audits(served))
        _insert(database, schema.labels, _labels())
        audits, labels = int(DECISIONS * AUDITED), int(DECISIONS * AUDITED * LABELLED)
        database.execute("UPDATE counters SET audits = ?, labels = ?", (audits, labels))
    database.close()


def _insert(database: sqlite3.Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows)
    columns = list(first)
    marks = ", ".join("?" * len(columns))
    named = ", ".join(f'"{column}"' for column in columns)
    statement = f"INSERT INTO {table.name} ({named}) VALUES ({marks})"  # noqa: S608 - names of our own schema
    database.execute(statement, tuple(first.values()))
    database.executemany(statement, (tuple(row.values()) for row in rows))


def _decision(names: tuple[str, ...]) -> DecisionRecord:
    chances = np.array([0.9, 0.06, 0.04])
    return DecisionRecord(
        id="", task="", task_hash="h", at=datetime.now(UTC), options=names, option=0, verdict="trust",
        reason="above_trust_threshold", probabilities=chances, logprobs=np.log(chances), scores=np.log(chances) - 1,
        label_mass=0.95, p_correct=0.9, score=0.9, bundle="", guarantee="", slice=None, model="stub-model",
        mode="direct", readout="letter", input_hash="0" * 40, draw=Draw(0.5, AUDITED, drawn=False),
    )  # fmt: skip


def _decisions(row: dict[str, Any], served: Mapping[str, Served]) -> Iterator[dict[str, Any]]:
    """Tasks take turns; every twentieth decision is drawn, and the drawn come from all tasks alike."""
    tasks = list(served.values())
    rng, every, label = random.Random(0), round(1 / AUDITED), 0
    for i in range(DECISIONS):
        one, drawn = tasks[i // every % TASKS], i % every == 0
        labelled = drawn and i // every % 10 < 10 * LABELLED
        label += labelled
        yield {
            **row,
            "seq": i + 1, "id": f"dec_{rng.getrandbits(128):032x}", "task": one.task, "bundle": one.bundle,
            "guarantee": one.guarantees[0].key, "drawn": drawn, "label": label if labelled else None,
        }  # fmt: skip


def _audits(served: Mapping[str, Served]) -> Iterator[dict[str, Any]]:
    tasks, every = list(served.values()), round(1 / AUDITED)
    due = micros(datetime.now(UTC) + timedelta(days=7))
    for i in range(int(DECISIONS * AUDITED)):
        one, labelled = tasks[i % TASKS], i % 10 < 10 * LABELLED
        yield {
            "seq": i + 1, "decision": i * every + 1, "task": one.task, "guarantee": one.guarantees[0].key, "due": due,
            "double": False, "open": not labelled,
        }  # fmt: skip


def _labels() -> Iterator[dict[str, Any]]:
    rng, every, seq = random.Random(1), round(1 / AUDITED), 0
    now = micros(datetime.now(UTC))
    for i in range(int(DECISIONS * AUDITED)):
        if i % 10 < 10 * LABELLED:
            seq += 1
            yield {
                "seq": seq, "decision": i * every + 1, "audit": i + 1,
                "label": "sales" if rng.random() < 0.02 else "billing", "at": now, "received_at": now, "second": False,
            }  # fmt: skip
