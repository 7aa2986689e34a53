"""Certificates' processes: where each began, how it stands, and the audits it runs on."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, Row, select, update

from demur.server.store import schema
from demur.server.store.records import GuaranteeRecord, GuaranteeState
from demur.server.store.rows import OptionSets, insert, micros, moment

_t = schema.guarantees
_FINAL = "withdrawn"
#: Values of one query.
_AT_ONCE = 1_000


def put_guarantee(connection: Connection, record: GuaranteeRecord) -> GuaranteeRecord:
    """Keeps a certificate that is new, from whose audits those from now on count; gives it as it is kept."""
    values = {
        "key": record.key,
        "task": record.task,
        "slice": record.slice,
        "bundle": record.bundle,
        "alpha": record.alpha,
        "delta": record.delta,
        "issued_at": micros(record.issued_at),
        "expires_at": None if record.expires_at is None else micros(record.expires_at),
        "first_audit_seq": lock_sequence(connection),
        "state": record.state,
    }
    connection.execute(insert(connection.dialect.name)(_t).values(values).on_conflict_do_nothing())
    return guarantee_of(connection.execute(select(_t).where(_t.c.key == record.key)).one())


def move_guarantee(connection: Connection, key: str, state: GuaranteeState, at: datetime) -> bool:
    """Whether this call changed the state. A withdrawal is never undone."""
    values: dict[str, object] = {"state": state}
    if state == _FINAL:
        values |= {"withdrawn_at": micros(at), "ended_audit_seq": lock_sequence(connection)}
    changed = update(_t).where(_t.c.key == key, _t.c.state != state, _t.c.state != _FINAL).values(values)
    return connection.execute(changed).rowcount == 1


def guarantees(connection: Connection, keys: Iterable[str]) -> list[GuaranteeRecord]:
    """Those that are known."""
    return [guarantee_of(row) for row in connection.execute(select(_t).where(_t.c.key.in_(list(keys))))]


def outcomes(connection: Connection, key: str, options: OptionSets) -> list[tuple[int, float | None, bool | None]]:
    """All audits of a certificate in the order drawn: seq, due (seconds since 1970), whether the label says wrong.

    Of those that were let go, due is None: no label will come.
    """
    audits, decisions, labels = schema.audits, schema.decisions, schema.labels
    rows = connection.execute(
        select(audits.c.seq, audits.c.due, audits.c.open, decisions.c.options, decisions.c.option, labels.c.label)
        .join(decisions, decisions.c.seq == audits.c.decision)
        .outerjoin(labels, labels.c.seq == decisions.c.label)
        .where(audits.c.guarantee == key)
        .order_by(audits.c.seq)
    ).all()
    names = options.names(connection, [row.options for row in rows])
    return [
        (
            seq,
            due / 1e6 if wanted or label is not None else None,
            None if label is None else label != names[asked][option],
        )
        for seq, due, wanted, asked, option, label in rows
    ]


def waiting(connection: Connection) -> list[tuple[str, int, float]]:
    """All audits that may still be labelled for the first time: task, seq, due (seconds since 1970)."""
    audits, decisions = schema.audits, schema.decisions
    rows = connection.execute(
        select(audits.c.task, audits.c.seq, audits.c.due)
        .join(decisions, decisions.c.seq == audits.c.decision)
        .where(audits.c.open, decisions.c.label.is_(None), ~decisions.c.erased)
    )
    return [(row.task, row.seq, row.due / 1e6) for row in rows]


def erased_unlabelled(connection: Connection, seqs: Sequence[int]) -> dict[int, bool]:
    """Which of these audits were erased without a label, and whether that was before it was due."""
    audits, decisions = schema.audits, schema.decisions
    found: dict[int, bool] = {}
    for first in range(0, len(seqs), _AT_ONCE):
        rows = connection.execute(
            select(audits.c.seq, audits.c.open)
            .join(decisions, decisions.c.seq == audits.c.decision)
            .where(audits.c.seq.in_(seqs[first : first + _AT_ONCE]), decisions.c.erased, decisions.c.label.is_(None))
        )
        found |= {row.seq: not row.open for row in rows}
    return found


def lock_sequence(connection: Connection) -> int:
    """The last audit's seq, and the lock under which audits are numbered: none is added until this commits."""
    counters = schema.counters
    connection.execute(update(counters).where(counters.c.id == 1).values(audits=counters.c.audits))
    return int(connection.execute(select(counters.c.audits).where(counters.c.id == 1)).scalar_one())


def guarantee_of(row: Row[tuple[object, ...]]) -> GuaranteeRecord:
    """The record of a row."""
    values = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    return GuaranteeRecord(
        key=values["key"],
        task=values["task"],
        slice=values["slice"],
        bundle=values["bundle"],
        alpha=values["alpha"],
        delta=values["delta"],
        issued_at=moment(values["issued_at"]),
        expires_at=None if values["expires_at"] is None else moment(values["expires_at"]),
        first_audit_seq=values["first_audit_seq"],
        state=values["state"],
        withdrawn_at=None if values["withdrawn_at"] is None else moment(values["withdrawn_at"]),
        ended_audit_seq=values["ended_audit_seq"],
    )
