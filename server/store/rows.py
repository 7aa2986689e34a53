"""Between records and rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from demur.server.store import schema
from demur.server.store.records import AuditRecord, DecisionRecord, Draw, LabelRecord, ShadowRecord

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FLOATS = np.dtype("<f8")


def micros(at: datetime) -> int:
    """Microseconds since 1970."""
    return (at - _EPOCH) // _MICROSECOND


def moment(at: int) -> datetime:
    """The time that `micros` was given, in UTC."""
    return _EPOCH + at * _MICROSECOND


def kept_text(value: str) -> str:
    """What callers sent, as it is kept: without the one character that PostgreSQL's text cannot hold."""
    return value.replace("\0", "\ufffd")


def insert(dialect: str) -> Any:
    """The INSERT of a dialect, given by name, which knows ON CONFLICT."""
    return postgresql.insert if dialect == "postgresql" else sqlite.insert


@lru_cache(maxsize=4096)
def option_set(names: tuple[str, ...]) -> tuple[str, str]:
    """The key of a set of options, and what is kept under it."""
    kept = json.dumps([kept_text(name) for name in names])
    return hashlib.sha256(kept.encode()).hexdigest()[:32], kept


def decision_row(record: DecisionRecord) -> dict[str, Any]:
    """What is inserted for a decision."""
    return {
        "id": record.id,
        "task": record.task,
        "task_hash": record.task_hash,
        "at": micros(record.at),
        "options": option_set(record.options)[0],
        "option": record.option,
        "verdict": str(record.verdict),
        "reason": str(record.reason),
        "probabilities": _bytes(record.probabilities),
        "logprobs": _bytes(record.logprobs),
        "scores": None if record.scores is record.logprobs else _bytes(record.scores),
        "label_mass": record.label_mass,
        "p_correct": record.p_correct,
        "score": record.score,
        "bundle": record.bundle,
        "guarantee": record.guarantee,
        "slice": None if record.slice is None else kept_text(record.slice),
        "model": record.model,
        "mode": str(record.mode),
        "readout": str(record.readout),
        "input": None if record.input is None else kept_text(record.input),
        "input_hash": record.input_hash,
        "key": record.key,
        "subject": record.subject,
        "u": record.draw.u,
        "rate": record.draw.rate,
        "drawn": record.draw.drawn,
        "erased": record.erased,
        "shadow": None if record.shadow is None else json.dumps(asdict(record.shadow)),
    }


def decision_of(row: Mapping[Any, Any], options: tuple[str, ...]) -> DecisionRecord:
    """The record of a row of `decisions`."""
    logprobs = floats(row["logprobs"])
    return DecisionRecord(
        id=row["id"],
        task=row["task"],
        task_hash=row["task_hash"],
        at=moment(row["at"]),
        options=options,
        option=row["option"],
        verdict=row["verdict"],
        reason=row["reason"],
        probabilities=floats(row["probabilities"]),
        logprobs=logprobs,
        scores=logprobs if row["scores"] is None else floats(row["scores"]),
        label_mass=row["label_mass"],
        p_correct=row["p_correct"],
        score=row["score"],
        bundle=row["bundle"],
        guarantee=row["guarantee"],
        slice=row["slice"],
        model=row["model"],
        mode=row["mode"],
        readout=row["readout"],
        input_hash=row["input_hash"],
        draw=Draw(row["u"], row["rate"], bool(row["drawn"])),
        input=row["input"],
        key=row["key"],
        subject=row["subject"],
        erased=bool(row["erased"]),
        shadow=None if row["shadow"] is None else ShadowRecord(**json.loads(row["shadow"])),
    )


def audit_of(row: Mapping[Any, Any], decision: DecisionRecord) -> AuditRecord:
    """The record of an audit; the row has `audit_seq`, its other columns and both labels' names."""
    return AuditRecord(
        seq=row["audit_seq"],
        decision=decision,
        due=moment(row["due"]),
        label=row["audit_label"],
        second=row["audit_second"],
        double=bool(row["double"]),
        open=bool(row["open"]),
        least_rate=row["least_rate"],
    )


def label_of(row: Mapping[Any, Any], decision_id: str, audit: AuditRecord | None) -> LabelRecord:
    """The record of a row of `labels`."""
    return LabelRecord(
        seq=row["seq"],
        decision_id=decision_id,
        task=row["task"],
        label=row["label"],
        source=row["source"],
        key=row["key"],
        at=moment(row["at"]),
        received_at=moment(row["received_at"]),
        corrects=row["corrects"],
        audit=audit,
        second=bool(row["second"]),
    )


class OptionSets:
    """Names of options by their hash. They never change, so what was read once is kept."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, ...]] = {}

    def names(self, connection: Connection, hashes: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """The names behind all these hashes."""
        missing = {one for one in hashes if one not in self._known}
        if missing:
            table = schema.option_sets
            for row in connection.execute(select(table).where(table.c.hash.in_(missing))):
                self._known[row.hash] = tuple(json.loads(row.names))
        return self._known


def floats(data: bytes) -> NDArray[np.float64]:
    """The array in a column."""
    return np.frombuffer(data, dtype=_FLOATS)


def _bytes(values: NDArray[np.float64]) -> bytes:
    return values.astype(_FLOATS, copy=False).tobytes()
