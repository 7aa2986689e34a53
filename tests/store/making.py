"""Decisions to store."""

from datetime import UTC, datetime

import numpy as np

from demur.server.store.records import DecisionRecord, Draw

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
