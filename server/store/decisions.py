"""Decisions in the store: put there, found again, drawn for audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, CursorResult, Dialect, select
from sqlalchemy.sql.selectable import Select

from demur.server.store import schema
from demur.server.store.errors import Rewound
from demur.server.store.records import AuditRecord, DecisionRecord, LabelRecord
from demur.server.store.rows import (
    OptionSets,
    audit_of,
    decision_of,
    decision_row,
    floats,
    insert,
    label_of,
    micros,
    moment,
    option_set,
)

_D, _A, _L = schema.decisions, schema.audits, schema.labels
_FIRST, _SECOND = _L.alias("first"), _L.alias("second_label")
_NEXT_AUDIT = "UPDATE counters SET audits = audits + 1 WHERE id = 1 RETURNING audits"


def put(connection: Connection, records: Sequence[DecisionRecord]) -> None:
    """Stores decisions. Of one that is there already, the verdict is brought up to date."""
    _put_options(connection, records)
    _driven(connection, _inserts(connection.dialect.name).decision, [decision_row(record) for record in records])


def put_drawn(connection: Connection, record: DecisionRecord, *, due: datetime, double: bool, least_rate: float) -> int:
    """Stores a decision that was drawn, with its audit; gives the audit's seq."""
    _put_options(connection, [record])
    insert = _inserts(connection.dialect.name)
    decision = _driven(connection, insert.drawn, [decision_row(record)]).scalar_one()
    seq: int = connection.exec_driver_sql(_NEXT_AUDIT).scalar_one()
    audit = {
        "seq": seq,
        "decision": decision,
        "task": record.task,
        "guarantee": record.guarantee,
        "due": micros(due),
        "double": double,
        "open": True,
        "least_rate": least_rate,
    }
    _driven(connection, insert.audit, [audit])
    return seq


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A decision with its history: labels in the order given, and its audit if it was drawn."""

    decision: DecisionRecord
    labels: tuple[LabelRecord, ...]
    audit: AuditRecord | None


def find(connection: Connection, options: OptionSets, decision_id: str) -> Found | None:
    """A decision by id; None where there is none, or it was erased."""
    row = connection.execute(_whole().where(_D.c.id == decision_id, ~_D.c.erased)).mappings().first()
    if row is None:
        return None
    decision = decision_of(row, options.names(connection, [row["options"]])[row["options"]])
    audit = None if row["audit_seq"] is None else audit_of(row, decision)
    labels = connection.execute(select(_L).where(_L.c.decision == row["seq"]).order_by(_L.c.seq)).mappings()
    given = tuple(label_of({**label, "task": decision.task}, decision.id, audit) for label in labels)
    return Found(decision, given, audit)


def recent(connection: Connection, options: OptionSets, task: str, limit: int) -> list[DecisionRecord]:
    """The last decisions of a task that were stored, oldest first."""
    query = select(_D).where(_D.c.task == task).order_by(_D.c.seq.desc()).limit(limit)
    rows = connection.execute(query).mappings().all()
    names = options.names(connection, [row["options"] for row in rows])
    return [decision_of(row, names[row["options"]]) for row in reversed(rows)]


def drawn(
    connection: Connection,
    options: OptionSets,
    *,
    after: int = 0,
    limit: int | None = None,
    task: str | None = None,
    guarantee: str | None = None,
) -> list[AuditRecord]:
    """Audits after a seq, in drawn order, of a task or of a guarantee, with the labels in force."""
    query = _whole().where(_A.c.seq > after).order_by(_A.c.seq).limit(limit)
    if task is not None:
        query = query.where(_A.c.task == task)
    if guarantee is not None:
        query = query.where(_A.c.guarantee == guarantee)
    return _audits(connection, options, connection.execute(query).mappings().all())


def learnable(
    connection: Connection, options: OptionSets, *, task: str, after: int = 0, limit: int
) -> tuple[list[tuple[DecisionRecord, str]], int]:
    """Labelled decisions with a stored input that are no audits, after a row; and the last row that was looked at.

    No input of an audit is among them, whoever else asked it: audits certify, and may not be learned from.
    """
    audited = select(_D.c.input_hash).where(_D.c.task == task, _D.c.drawn)
    wanted = (_D.c.task == task, _D.c.seq > after, ~_D.c.drawn, _D.c.label.is_not(None), _D.c.input.is_not(None))
    query = _whole().where(*wanted, _D.c.input_hash.not_in(audited)).order_by(_D.c.seq).limit(limit)
    rows = connection.execute(query).mappings().all()
    names = options.names(connection, [row["options"] for row in rows])
    found = [(decision_of(row, names[row["options"]]), str(row["audit_label"])) for row in rows]
    return found, rows[-1]["seq"] if rows else after


class Labelled(NamedTuple):
    """What calibration needs of an audit with a label. `probabilities` float64 [K] of `options`, [0] once erased."""

    seq: int
    rate: float
    option: int
    p_correct: float | None
    probabilities: NDArray[np.float64]
    options: tuple[str, ...]
    label: str


def last_labelled(connection: Connection, options: OptionSets, *, task: str, bundle: str, limit: int) -> list[Labelled]:
    """The last audits of a task under a bundle that have a label, in drawn order."""
    query = (
        select(_A.c.seq, _D.c.rate, _D.c.option, _D.c.p_correct, _D.c.probabilities, _D.c.options, _L.c.label)
        .join_from(_A, _D, _A.c.decision == _D.c.seq)
        .join(_L, _L.c.seq == _D.c.label)
        .where(_A.c.task == task, _D.c.bundle == bundle)
        .order_by(_A.c.seq.desc())
        .limit(limit)
    )
    rows = connection.execute(query).all()
    names = options.names(connection, [row.options for row in rows])
    return [
        Labelled(seq, rate, option, p_correct, floats(probabilities), names[asked], label)
        for seq, rate, option, p_correct, probabilities, asked, label in reversed(rows)
    ]


class Mark(NamedTuple):
    """What is at two places: the decision of an audit; that of a label, and when it came. None where nothing is."""

    audit: str | None = None
    label: tuple[str, datetime] | None = None


def changes(
    connection: Connection,
    options: OptionSets,
    after_audit: int,
    after_label: int,
    limit: int,
    *,
    there: Mark | None = None,
) -> tuple[list[AuditRecord], list[LabelRecord]]:
    """Audits and labels after two places, each in its order, `limit` of each at most. No label precedes its audit.

    Raises Rewound if the places lie behind the end, or something else is at them than was `there`.
    """
    last_audit, last_label = heads(connection)
    lost = last_audit < after_audit or last_label < after_label
    if not lost and there is not None:
        # Others may have gone on by now, past these places. A label may be gone without harm: its decision was erased.
        now = mark(connection, after_audit, after_label)
        lost = any(was != one and None not in (was, one) for was, one in zip(there, now, strict=True))
    if lost:
        raise Rewound("the store has lost audits or labels that were read from it")
    audits = drawn(connection, options, after=after_audit, limit=limit) if last_audit > after_audit else []
    if last_label <= after_label:
        return audits, []
    query = (
        select(_L, _D.c.id, _D.c.task)
        .join_from(_L, _D, _L.c.decision == _D.c.seq)
        .where(_L.c.seq > after_label)
        .order_by(_L.c.seq)
        .limit(limit)
    )
    rows = connection.execute(query).mappings().all()
    if len(audits) == limit:
        seen = audits[-1].seq
        early = next((i for i, row in enumerate(rows) if (row["audit"] or 0) > seen), len(rows))
        rows = rows[:early]
    wanted = {row["audit"] for row in rows if row["audit"] is not None}
    known = {audit.seq: audit for audit in audits if audit.seq in wanted}
    if missing := wanted - known.keys():
        some = connection.execute(_whole().where(_A.c.seq.in_(missing))).mappings().all()
        known |= {audit.seq: audit for audit in _audits(connection, options, some)}
    return audits, [label_of(row, row["id"], known.get(row["audit"])) for row in rows]


def heads(connection: Connection) -> tuple[int, int]:
    """The last seq given to an audit and to a label, 0 before the first."""
    row = connection.exec_driver_sql("SELECT audits, labels FROM counters WHERE id = 1").one()
    return row.audits, row.labels


def mark(connection: Connection, audit: int, label: int) -> Mark:
    """What these numbers were given to."""
    drawn_ = select(_D.c.id).join_from(_A, _D, _A.c.decision == _D.c.seq).where(_A.c.seq == audit)
    given = select(_D.c.id, _L.c.received_at).join_from(_L, _D, _L.c.decision == _D.c.seq).where(_L.c.seq == label)
    row = connection.execute(given).one_or_none()
    return Mark(connection.scalar(drawn_), None if row is None else (row.id, moment(row.received_at)))


def _audits(connection: Connection, options: OptionSets, rows: Sequence[Mapping[Any, Any]]) -> list[AuditRecord]:
    names = options.names(connection, [row["options"] for row in rows])
    return [audit_of(row, decision_of(row, names[row["options"]])) for row in rows]


def _whole() -> Select[Any]:
    """Decisions with their audits, and the names of the labels in force."""
    return (
        select(
            _D,
            _A.c.seq.label("audit_seq"),
            _A.c.due,
            _A.c.double,
            _A.c.open,
            _A.c.least_rate,
            _FIRST.c.label.label("audit_label"),
            _SECOND.c.label.label("audit_second"),
        )
        .outerjoin_from(_D, _A, _A.c.decision == _D.c.seq)
        .outerjoin(_FIRST, _FIRST.c.seq == _D.c.label)
        .outerjoin(_SECOND, _SECOND.c.seq == _A.c.second)
    )


@dataclass(frozen=True, slots=True)
class _Inserts:
    """Statements of the hot path; to build one takes as long as to run it."""

    options: Any
    decision: Any
    drawn: Any
    audit: Any


@cache
def _inserts(dialect: str) -> _Inserts:
    statement = insert(dialect)(_D)
    new = statement.excluded
    decision = statement.on_conflict_do_update(
        index_elements=["id"], set_={"verdict": new.verdict, "reason": new.reason}
    )
    options = insert(dialect)(schema.option_sets).on_conflict_do_nothing()
    return _Inserts(options, decision, decision.returning(_D.c.seq), insert(dialect)(_A))


def _driven(connection: Connection, statement: Any, rows: Sequence[Mapping[str, Any]]) -> CursorResult[Any]:
    """Executes an insert of the hot path by the driver's own call: SQLAlchemy's way costs as much again.

    `statement` is kept for good. Values must be what the driver takes; nothing is converted.
    """
    text, order = _in_drivers_words(connection.dialect, statement, tuple(rows[0]), len(rows) > 1)
    given: list[Any] = [row if order is None else tuple(map(row.__getitem__, order)) for row in rows]
    return connection.exec_driver_sql(text, given if len(rows) > 1 else given[0])


@cache
def _in_drivers_words(
    dialect: Dialect, statement: Any, columns: tuple[str, ...], many: bool
) -> tuple[str, Sequence[str] | None]:
    """The text of an insert, and the order of its parameters where they have no names there."""
    compiled = statement.compile(dialect=dialect, column_keys=columns, for_executemany=many)
    return str(compiled), compiled.positiontup


def _put_options(connection: Connection, records: Sequence[DecisionRecord]) -> None:
    sets = {option_set(record.options) for record in records}
    # In one order, so that two processes never wait for each other.
    rows = [{"hash": key, "names": names} for key, names in sorted(sets)]
    _driven(connection, _inserts(connection.dialect.name).options, rows)
