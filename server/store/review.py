"""What people are asked to label: audits first, oldest first and blind, then reviews, then defers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, and_, false, not_, or_, select, text, update
from sqlalchemy.sql.selectable import Select

from demur.server.store import schema
from demur.server.store.rows import OptionSets, micros, moment

Kind = Literal["audit", "review", "defer"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: A claim lasts no longer.
MAX_CLAIM = timedelta(days=1)

_D, _A, _L = schema.decisions, schema.audits, schema.labels


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """Something to label. Of an audit neither decision nor probability is told."""

    id: str
    task: str
    kind: Kind
    at: datetime
    input: str | None
    options: tuple[str, ...]
    claimed_by: str | None
    claimed_until: datetime | None
    decision: str | None = None
    p_correct: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended: after this seq of this kind."""

    kind: Kind
    seq: int


def page(
    connection: Connection,
    options: OptionSets,
    *,
    task: str | None,
    kind: Kind | None,
    after: Place | None,
    limit: int,
    person: str | None,
    now: datetime,
) -> tuple[list[ReviewItem], Place | None]:
    """What `person` may be asked, and where to go on (None: that was all). What others have claimed is left out.

    `person` is None where people cannot be told apart.
    """
    kinds = KINDS if kind is None else (kind,)
    if after is not None:
        kinds = tuple(one for one in kinds if KINDS.index(one) >= KINDS.index(after.kind))
    found: list[ReviewItem] = []
    place: Place | None = None
    for one in kinds:
        start = after.seq if after is not None and after.kind == one else 0
        rows = _rows(connection, task, one, start, limit - len(found), person, now)
        names = options.names(connection, [row["options"] for row in rows])
        found += [_item(row, one, names[row["options"]]) for row in rows]
        if rows:
            place = Place(one, rows[-1]["place"])
        if len(found) == limit:
            return found, place
    return found, None


def open_audit(
    connection: Connection, options: OptionSets, decision_id: str, *, person: str | None
) -> ReviewItem | None:
    """A decision as the queue shows it, blind, if it is an audit that waits for a label of `person`."""
    row = connection.execute(_open(person).where(_D.c.id == decision_id)).mappings().first()
    return None if row is None else _item(row, "audit", options.names(connection, [row["options"]])[row["options"]])


def claim(
    connection: Connection, ids: Sequence[str], *, person: str, until: datetime, now: datetime
) -> Mapping[str, bool]:
    """Claims what nobody else has; says of every id that is known whether it is the person's now."""
    known = connection.scalars(select(_D.c.id).where(_D.c.id.in_(ids), ~_D.c.erased)).all()
    taken = connection.scalars(
        update(_D)
        .where(_D.c.id.in_(known), _free(person, now))
        .values(claimed_by=person, claimed_until=micros(until))
        .returning(_D.c.id)
    ).all()
    return {one: one in set(taken) for one in known}


def release(connection: Connection, ids: Sequence[str], *, person: str) -> Mapping[str, bool]:
    """Gives claims back; says of every id that is known whether it was the person's."""
    known = connection.scalars(select(_D.c.id).where(_D.c.id.in_(ids), ~_D.c.erased)).all()
    given = connection.scalars(
        update(_D)
        .where(_D.c.id.in_(known), _D.c.claimed_by == person)
        .values(claimed_by=None, claimed_until=None)
        .returning(_D.c.id)
    ).all()
    return {one: one in set(given) for one in known}


def _rows(
    connection: Connection, task: str | None, kind: Kind, start: int, limit: int, person: str | None, now: datetime
) -> Sequence[Mapping[Any, Any]]:
    if kind == "audit":
        query = _open(person).where(_A.c.seq > start).order_by(_A.c.seq)
        query = query if task is None else query.where(_A.c.task == task)
    else:
        query = (
            select(_D, _D.c.seq.label("place"))
            .where(schema.WAITING, _D.c.verdict == kind, _D.c.seq > start)
            .order_by(_D.c.seq)
        )
        query = query if task is None else query.where(_D.c.task == task)
    return connection.execute(query.where(_free(person, now)).limit(limit)).mappings().all()


def _open(person: str | None) -> Select[Any]:
    """Audits that wait for a label of this person."""
    # The second label comes from somebody else, and only where that can be told.
    other = false() if person is None else and_(_L.c.key.is_not(None), _L.c.key != person)
    return (
        select(_D, _A.c.seq.label("place"))
        .join_from(_A, _D, _A.c.decision == _D.c.seq)
        .outerjoin(_L, _L.c.seq == _D.c.label)
        .where(text("open"), ~_D.c.erased, or_(_L.c.seq.is_(None), other))
    )


def _free(person: str | None, now: datetime) -> ColumnElement[bool]:
    """Nobody else's. A claim that ends absurdly late was made before the clock was set back."""
    held = and_(_D.c.claimed_until > micros(now), _D.c.claimed_until <= micros(now + MAX_CLAIM))
    free = or_(_D.c.claimed_by.is_(None), not_(held))
    return free if person is None else or_(free, _D.c.claimed_by == person)


def _item(row: Mapping[Any, Any], kind: Kind, options: tuple[str, ...]) -> ReviewItem:
    blind = kind == "audit"
    return ReviewItem(
        id=row["id"],
        task=row["task"],
        kind=kind,
        at=moment(row["at"]),
        input=row["input"],
        options=options,
        claimed_by=row["claimed_by"],
        claimed_until=None if row["claimed_until"] is None else moment(row["claimed_until"]),
        decision=None if blind else options[row["option"]],
        p_correct=None if blind else row["p_correct"],
        reason=None if blind else row["reason"],
    )
