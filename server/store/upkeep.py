"""What operators do to a store: count, export, let go of what is old, erase what somebody wants erased."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, func, select, update

from demur.server.store import schema
from demur.server.store.decisions import drawn, learnable
from demur.server.store.records import AuditRecord, DecisionRecord
from demur.server.store.rows import OptionSets, micros, moment

#: Decisions that one transaction lets go: others wait meanwhile.
BATCH = 2_000

_D, _A, _L = schema.decisions, schema.audits, schema.labels
_ERASED = {"input": None, "input_hash": "", "key": None, "subject": None, "logprobs": b"", "scores": None}


@dataclass(frozen=True, slots=True)
class AuditCounts:
    """A task's audits. `open`: without a label, and not erased; `expired`: those of them whose deadline has passed.

    `double`: audits that two people have labelled; `disagreed`: those on which they differ.
    """

    labelled: int
    open: int
    expired: int
    double: int
    disagreed: int


def audit_counts(connection: Connection, now: datetime) -> dict[str, AuditCounts]:
    """By task."""
    first, second = _L.alias("first"), _L.alias("second_label")
    unlabelled = and_(_D.c.label.is_(None), ~_D.c.erased)
    query = (
        select(
            _A.c.task,
            func.count(_D.c.label),
            func.count().filter(unlabelled),
            func.count().filter(unlabelled, _A.c.due < micros(now)),
            func.count(_A.c.second),
            func.count().filter(first.c.label != second.c.label),
        )
        .join_from(_A, _D, _A.c.decision == _D.c.seq)
        .outerjoin(first, first.c.seq == _D.c.label)
        .outerjoin(second, second.c.seq == _A.c.second)
        .group_by(_A.c.task)
    )
    return {row[0]: AuditCounts(*row[1:]) for row in connection.execute(query)}


def disagreement(connection: Connection) -> dict[str, tuple[int, int]]:
    """By task: audits that two people have labelled, and those of them on which they differ."""
    first, second = _L.alias("first"), _L.alias("second_label")
    query = (
        select(_A.c.task, func.count(), func.count().filter(first.c.label != second.c.label))
        .join_from(_A, _D, _A.c.decision == _D.c.seq)
        .join(first, first.c.seq == _D.c.label)
        .join(second, second.c.seq == _A.c.second)
        .where(_A.c.second.is_not(None))
        .group_by(_A.c.task)
    )
    return {task: (double, differ) for task, double, differ in connection.execute(query)}


@dataclass(frozen=True, slots=True)
class Totals:
    """How much is in the store, and from when to when."""

    decisions: int
    audits: int
    labels: int
    oldest: datetime | None
    newest: datetime | None


def totals(connection: Connection) -> Totals:
    """Counts of everything."""
    decisions, audits, labels = (
        connection.scalar(select(func.count()).select_from(table)) or 0 for table in (_D, _A, _L)
    )
    ends = [connection.scalar(select(_D.c.at).order_by(order).limit(1)) for order in (_D.c.seq.asc(), _D.c.seq.desc())]
    oldest, newest = (None if at is None else moment(at) for at in ends)
    return Totals(decisions, audits, labels, oldest, newest)


def exported(
    connection: Connection, options: OptionSets, task: str | None, *, batch: int = 1_000
) -> Iterator[AuditRecord]:
    """All audits in drawn order with the labels in force; those not erased have all that fits a calibrator."""
    last = 0
    while audits := drawn(connection, options, after=last, limit=batch, task=task):
        yield from audits
        last = audits[-1].seq


def training_rows(
    connection: Connection, options: OptionSets, task: str, *, batch: int = 1_000
) -> Iterator[tuple[DecisionRecord, str]]:
    """All that a model may learn from, oldest first, with the labels in force; see `decisions.learnable`."""
    last = 0
    while True:
        found, last = learnable(connection, options, task=task, after=last, limit=batch)
        if not found:
            return
        yield from found


def erase(connection: Connection, *, ids: list[str] | None = None, subject: str | None = None, now: datetime) -> int:
    """Lets go of decisions by id or by the hash of their subject, `BATCH` at most; gives how many there were.

    Those that were drawn stay as evidence without input, hash, key, subject and raw readout. A label that is not due
    at `now` is not waited for any more; one that is stays missing.
    """
    query = select(_D.c.seq, _D.c.drawn, _D.c.label).where(~_D.c.erased).limit(BATCH)
    query = query.where(_D.c.subject == subject) if ids is None else query.where(_D.c.id.in_(ids))
    return _let_go(connection, connection.execute(query).all(), now)


def expire(connection: Connection, before: datetime, now: datetime) -> int:
    """Lets go of the oldest decisions from before a time, as `erase`; gives how many there were."""
    # Oldest first by their order: times have no index. Those of a clock that was ahead would be in the way for good.
    past = (~_D.c.erased, _D.c.at <= micros(now))
    oldest = select(_D.c.seq, _D.c.drawn, _D.c.label, _D.c.at).where(*past).order_by(_D.c.seq).limit(BATCH)
    rows = connection.execute(oldest).all()
    return _let_go(connection, [row for row in rows if row.at < micros(before)], now)


def expire_replies(connection: Connection, before: datetime) -> None:
    """Forgets answers under idempotency keys from before a time."""
    connection.execute(delete(schema.replies).where(schema.replies.c.at < micros(before)))


def _let_go(connection: Connection, rows: Any, now: datetime) -> int:
    kept = [row.seq for row in rows if row.drawn]
    gone = [row.seq for row in rows if not row.drawn]
    if kept:
        connection.execute(update(_D).where(_D.c.seq.in_(kept)).values(**_ERASED, erased=True))
        unlabelled = [row.seq for row in rows if row.drawn and row.label is None]
        pending = (_A.c.decision.in_(unlabelled), _A.c.due > micros(now))
        connection.execute(update(_A).where(*pending).values(open=False))
    if gone:
        connection.execute(delete(_L).where(_L.c.decision.in_(gone)))
        connection.execute(delete(_D).where(_D.c.seq.in_(gone)))
    return len(kept) + len(gone)
