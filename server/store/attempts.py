"""Attempts at certificates: counted when they begin, so that one that fails or crashes is paid for too."""

from datetime import datetime

from sqlalchemy import Connection, func, select, update

from demur.server.store import schema
from demur.server.store.errors import Superseded
from demur.server.store.guarantees import lock_sequence
from demur.server.store.records import Attempt, AttemptKind
from demur.server.store.rows import micros, moment

_t = schema.attempts


def begin_attempt(
    connection: Connection,
    task: str,
    question: str,
    kind: AttemptKind,
    delta: float,
    at: datetime,
    *,
    only_after: int | None = None,
) -> Attempt:
    """Counts the next attempt on a question; attempt j of them may spend `delta/(j(j+1))`.

    Raises Superseded, and counts none, if the task has had more attempts than `only_after`.
    """
    lock_sequence(connection)
    if only_after is not None and attempts_made(connection, task) > only_after:
        raise Superseded(f"another attempt to certify {task} was made meanwhile")
    last = connection.execute(select(func.max(_t.c.number)).where(_t.c.question == question)).scalar() or 0
    number = int(last) + 1
    attempt = Attempt(task, question, number, kind, at, delta / (number * (number + 1)))
    connection.execute(
        _t.insert().values(question=question, number=number, task=task, kind=kind, at=micros(at), delta=attempt.delta)
    )
    return attempt


def finish_attempt(connection: Connection, attempt: Attempt, outcome: str) -> None:
    """Says what came of an attempt."""
    here = (_t.c.question == attempt.question) & (_t.c.number == attempt.number)
    connection.execute(update(_t).where(here).values(outcome=outcome))


def attempts_made(connection: Connection, task: str) -> int:
    """How many attempts a task has had, on all questions."""
    return connection.scalar(select(func.count()).where(_t.c.task == task)) or 0


def last_attempt(connection: Connection, task: str) -> Attempt | None:
    """The attempt of a task that began last."""
    row = connection.execute(select(_t).where(_t.c.task == task).order_by(_t.c.at.desc()).limit(1)).one_or_none()
    if row is None:
        return None
    return Attempt(row.task, row.question, row.number, row.kind, moment(row.at), row.delta, row.outcome)
