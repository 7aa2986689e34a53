"""Decisions to store, and what tests do with a store."""

from datetime import UTC, datetime, timedelta

import numpy as np

from demur.server.store import decisions, labels, review
from demur.server.store.database import store_url
from demur.server.store.labels import LabelGiven
from demur.server.store.records import DecisionRecord, Draw
from demur.server.store.store import Store

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def record(name: str, *, drawn: bool = False, **more: object) -> DecisionRecord:
    logprobs = np.log([0.5, 0.3, 0.15])
    values: dict[str, object] = {
        "task": "colours",
        "task_hash": "a1",
        "at": NOW,
        "options": ("red", "green", "blue"),
        "option": 0,
        "verdict": "review",
        "reason": "below_trust_threshold",
        "probabilities": np.exp(logprobs) / 0.95,
        "logprobs": logprobs,
        "scores": logprobs,
        "label_mass": 0.95,
        "p_correct": 0.5,
        "score": 0.6,
        "bundle": "b" * 8,
        "guarantee": "g" if drawn else None,
        "slice": None,
        "model": "m",
        "mode": "direct",
        "readout": "letter",
        "input_hash": "ff",
        "draw": Draw(0.25, 0.5, drawn),
    }
    return DecisionRecord(id=name, **(values | more))  # type: ignore[arg-type]


def opened(url, timeout_s=5.0):
    return Store.open(store_url(url, None), timeout_s=timeout_s)


def put(store, *records):
    store.write_now(lambda connection: decisions.put(connection, records))


def draw(store, *records, double=False):
    for one in records:
        store.write_now(
            lambda connection, one=one: decisions.put_drawn(
                connection, one, due=NOW + timedelta(days=7), double=double, least_rate=one.draw.rate
            )
        )


def give(store, *given, key="ann", now=NOW):
    items = [one if isinstance(one, LabelGiven) else LabelGiven(*one) for one in given]
    return store.write_now(lambda connection: labels.give(connection, store.options, items, key=key, now=now))


def find(store, name):
    return store.read_now(lambda connection: decisions.find(connection, store.options, name))


def queue(store, person="ann", after=None, limit=10, kind=None, now=NOW):
    return store.read_now(
        lambda connection: review.page(
            connection, store.options, task=None, kind=kind, after=after, limit=limit, person=person, now=now
        )
    )
