"""Labels: given, repeated, corrected. History is kept, and one label of a decision is in force."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, bindparam, select, update

from demur.server.store import schema
from demur.server.store.rows import OptionSets, insert, kept_text, micros

#: Clocks of others may be ahead by so much.
TOLERANCE = timedelta(minutes=5)

LabelStatus = Literal["stored", "unchanged", "corrected", "rejected"]

_D, _A, _L = schema.decisions, schema.audits, schema.labels
_FIRST, _SECOND = _L.alias("first"), _L.alias("second_label")


@dataclass(frozen=True, slots=True)
class LabelGiven:
    """A label as it came in. `at` is when the truth was found, as its giver says."""

    decision_id: str
    label: str
    source: str | None = None
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class LabelResult:
    """What became of a label, and whether it is evidence; `problem` says why it was rejected.

    `second`: it is the second person's, of an audit that two are asked about; the label in force stays as it is.
    """

    decision_id: str
    status: LabelStatus
    evidence: bool = False
    problem: str | None = None
    task: str | None = None
    second: bool = False


@dataclass(frozen=True, slots=True)
class _Kept:
    """A label that was given before; `key` names who gave it."""

    seq: int
    label: str
    key: str | None


@dataclass(slots=True)
class _Standing:
    """What is known of one decision while labels are taken."""

    seq: int
    task: str
    options: tuple[str, ...]
    audit: int | None
    double: bool
    label: _Kept | None
    second: _Kept | None
    changed: bool = False

    @property
    def wants_second(self) -> bool:
        """Whether another person is asked. Nobody is where keys don't tell people apart."""
        return self.double and self.second is None and (self.label is None or self.label.key is not None)

    def is_second(self, key: str | None) -> bool:
        """Whether a key's label is the second person's, or corrects that; else it is, or corrects, the one in force."""
        if self.second is not None:
            return key is not None and key == self.second.key
        return self.wants_second and self.label is not None and key not in (None, self.label.key)


@dataclass(slots=True)
class _Taking:
    rows: list[dict[str, Any]] = field(default_factory=list)
    results: list[LabelResult] = field(default_factory=list)


def give(
    connection: Connection, options: OptionSets, given: Sequence[LabelGiven], *, key: str | None, now: datetime
) -> list[LabelResult]:
    """Takes labels in their order; `key` names the person who gives them, None for nobody in particular.

    One result for each.
    """
    counters = schema.counters
    # Taken first: whoever else gives labels or draws waits here, and so seqs are committed in their order.
    last = connection.scalar(select(counters.c.labels).where(counters.c.id == 1).with_for_update())
    standing = _standings(connection, options, [one.decision_id for one in given])
    taking = _Taking()
    for one in given:
        taking.results.append(_take(one, standing.get(one.decision_id), taking, last or 0, key, now))
    if taking.rows:
        _write(connection, taking.rows, [each for each in standing.values() if each.changed])
        connection.execute(update(counters).where(counters.c.id == 1).values(labels=taking.rows[-1]["seq"]))
    return taking.results


def _take(
    one: LabelGiven, known: _Standing | None, taking: _Taking, last: int, key: str | None, now: datetime
) -> LabelResult:
    if known is None:
        return LabelResult(one.decision_id, "rejected", problem="unknown_id")
    evidence = known.audit is not None
    label = kept_text(one.label)
    if label not in known.options:
        return LabelResult(one.decision_id, "rejected", evidence, "not_an_option", known.task)
    if one.at is not None and one.at > now + TOLERANCE:
        return LabelResult(one.decision_id, "rejected", evidence, "in_the_future", known.task)
    second = known.is_second(key)
    before = known.second if second else known.label
    if before is not None and before.label == label:
        return LabelResult(one.decision_id, "unchanged", evidence, task=known.task, second=second)
    seq = last + len(taking.rows) + 1
    taking.rows.append(
        {
            "seq": seq,
            "decision": known.seq,
            "audit": known.audit,
            "label": label,
            "source": one.source,
            "key": key,
            "at": micros(one.at or now),
            "received_at": micros(now),
            "corrects": None if before is None else before.seq,
            "second": second,
        }
    )
    if second:
        known.second = _Kept(seq, label, key)
    else:
        known.label = _Kept(seq, label, key)
    known.changed = True
    status: LabelStatus = "stored" if before is None else "corrected"
    return LabelResult(one.decision_id, status, evidence, task=known.task, second=second)


def _standings(connection: Connection, options: OptionSets, ids: Sequence[str]) -> dict[str, _Standing]:
    query = (
        select(
            *(_D.c.id, _D.c.seq, _D.c.task, _D.c.options),
            *(_A.c.seq.label("audit"), _A.c.double),
            *(_FIRST.c.seq.label("label"), _FIRST.c.label.label("label_name"), _FIRST.c.key),
            *(_SECOND.c.seq.label("second"), _SECOND.c.label.label("second_name"), _SECOND.c.key.label("second_key")),
        )
        .outerjoin_from(_D, _A, _A.c.decision == _D.c.seq)
        .outerjoin(_FIRST, _FIRST.c.seq == _D.c.label)
        .outerjoin(_SECOND, _SECOND.c.seq == _A.c.second)
        .where(_D.c.id.in_(set(ids)), ~_D.c.erased)
    )
    rows = connection.execute(query).mappings().all()
    names = options.names(connection, [row["options"] for row in rows])
    return {row["id"]: _standing(row, names[row["options"]]) for row in rows}


def _standing(row: Mapping[Any, Any], options: tuple[str, ...]) -> _Standing:
    return _Standing(
        seq=row["seq"],
        task=row["task"],
        options=options,
        audit=row["audit"],
        double=bool(row["double"]),
        label=None if row["label"] is None else _Kept(row["label"], row["label_name"], row["key"]),
        second=None if row["second"] is None else _Kept(row["second"], row["second_name"], row["second_key"]),
    )


def _write(connection: Connection, rows: list[dict[str, Any]], changed: list[_Standing]) -> None:
    connection.execute(_L.insert(), rows)
    connection.execute(
        update(_D)
        .where(_D.c.seq == bindparam("of"))
        .values(label=bindparam("now"), claimed_by=None, claimed_until=None),
        [{"of": each.seq, "now": each.label.seq} for each in changed if each.label is not None],
    )
    drawn = [each for each in changed if each.audit is not None]
    if drawn:
        connection.execute(
            update(_A).where(_A.c.seq == bindparam("of")).values(second=bindparam("other"), open=bindparam("wanted")),
            [
                {
                    "of": each.audit,
                    "other": None if each.second is None else each.second.seq,
                    "wanted": each.wants_second,
                }
                for each in drawn
            ],
        )


def first_reply(connection: Connection, key: str) -> tuple[str, str] | None:
    """What was sent (a hash) and answered under an idempotency key (a hash), if it was used before."""
    table = schema.replies
    row = connection.execute(select(table.c.body, table.c.reply).where(table.c.key == key)).first()
    return None if row is None else (row.body, row.reply)


def keep_reply(connection: Connection, key: str, body: str, reply: str, now: datetime) -> None:
    """Keeps the answer to the first request under a key."""
    connection.execute(
        insert(connection.dialect.name)(schema.replies), {"key": key, "body": body, "reply": reply, "at": micros(now)}
    )
