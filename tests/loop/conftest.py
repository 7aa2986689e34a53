"""Decisions, audits and labels in a real store."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from demur.server.store.database import store_url
from demur.server.store.decisions import put_drawn
from demur.server.store.labels import LabelGiven, give
from demur.server.store.records import DecisionRecord, Draw, GuaranteeRecord
from demur.server.store.store import Store
from demur.server.store.upkeep import erase

from .servers import start

NOW = datetime(2026, 6, 1, tzinfo=UTC)
GUARANTEE = GuaranteeRecord("g", "route", None, "b" * 64, 0.05, 0.05, NOW, NOW + timedelta(days=90), first_audit_seq=0)


def decision(number: int, **changed: Any) -> DecisionRecord:
    """A trusted decision for option a, of a, b and c."""
    logprobs = np.log([0.9, 0.06, 0.04])
    record = DecisionRecord(
        id=f"dec_{number:06}",
        task="route",
        task_hash="h",
        at=NOW,
        options=("a", "b", "c"),
        option=0,
        verdict="trust",
        reason="above_trust_threshold",
        probabilities=np.exp(logprobs),
        logprobs=logprobs,
        scores=logprobs,
        label_mass=0.95,
        p_correct=0.9,
        score=0.9,
        bundle="b" * 64,
        guarantee="g",
        slice=None,
        model="stub",
        mode="direct",
        readout="letter",
        input_hash="",
        draw=Draw(0.01, 0.05, drawn=True),
    )
    return replace(record, **changed)


class Desk:
    """Draws and labels in a store, as the server would."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.drawn = 0

    def draw(self, count: int = 1, *, due: datetime = NOW + timedelta(days=7), **changed: Any) -> list[str]:
        records = [decision(self.drawn + i, **changed) for i in range(count)]
        self.drawn += count
        self.store.write_now(
            lambda connection: [
                put_drawn(connection, record, due=due, double=False, least_rate=record.draw.rate) for record in records
            ]
        )
        return [record.id for record in records]

    def label(self, ids: list[str], label: str) -> None:
        given = [LabelGiven(one, label) for one in ids]
        self.store.write_now(lambda connection: give(connection, self.store.options, given, key="k", now=NOW))

    def erase(self, ids: list[str], now: datetime) -> None:
        self.store.write_now(lambda connection: erase(connection, ids=ids, now=now))


@pytest.fixture
def open_store(database: str) -> Iterator[Callable[[], Store]]:
    """Opens the same store, again and again: each as another process would."""
    opened = []

    def build() -> Store:
        opened.append(Store.open(store_url(database, None)))
        return opened[-1]

    yield build
    for store in opened:
        store.close()


@pytest.fixture
async def run(tmp_path):
    """Starts processes on one store; they end with the test."""
    started = []

    async def begin(**options):
        started.append(await start(tmp_path, **options))
        return started[-1]

    yield begin
    for process in started:
        await process.close()
