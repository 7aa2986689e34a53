"""One thread that writes: whatever waits goes into one transaction, so that callers share the wait for the disk."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from demur.server.store.errors import StoreUnavailable

Job = Callable[[Connection], Any]

_log = logging.getLogger("demur.store")

#: Jobs that share a transaction at most.
_GROUP = 128
#: Seconds after a failure before the database is tried again.
_RETRY_S = 0.5
#: Times that a job is tried which another process's came in the way of.
_ATTEMPTS = 4


class Writer:
    """Runs jobs in the order given, many to a transaction; a job's future is done once its transaction is durable.

    A group that fails is run again job by job, so that one that cannot be done takes no other along; jobs must
    therefore do nothing but use the connection. While the database does not answer, jobs fail at once.
    """

    def __init__(self, engine: Engine, *, timeout_s: float) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._jobs: deque[tuple[Job, Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._failed_at: float | None = None
        self._busy_since: float | None = None
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name="demur-store", daemon=True)
        self._thread.start()

    @property
    def up(self) -> bool:
        """Whether the database took the last write, and is not taking too long over the present one."""
        busy = self._busy_since
        return self._failed_at is None and (busy is None or monotonic() - busy < self._timeout_s)

    def submit(self, job: Job) -> "Future[Any]":
        """Queues a job. Its future raises StoreUnavailable where the database does not take it."""
        future: Future[Any] = Future()
        with self._wake:
            if self._closing or not self.up:
                future.set_exception(StoreUnavailable("the store does not answer"))
            else:
                self._jobs.append((job, future))
                self._wake.notify()
        return future

    def close(self, timeout_s: float = 10.0) -> None:
        """Runs what waits, and ends the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._jobs and not self._closing:
                    # A store that is down is tried now and then, so that it is known when it is back.
                    self._wake.wait(_RETRY_S if self._failed_at is not None else None)
                group = [self._jobs.popleft() for _ in range(min(len(self._jobs), _GROUP))]
                if not group and self._closing:
                    return
            live = [(job, future) for job, future in group if future.set_running_or_notify_cancel()]
            if live:
                self._do(live)
            elif self._failed_at is not None:
                self._probe()

    def _probe(self) -> None:
        future: Future[Any] = Future()
        self._do([(_touch, future)])
        with suppress(Exception):
            future.result()

    def _do(self, group: list[tuple[Job, "Future[Any]"]], attempt: int = 0) -> None:
        self._busy_since = monotonic()
        try:
            results = self._transaction([job for job, _ in group])
        except Exception as error:
            self._failed(group, error, attempt)
            return
        self._busy_since = None
        if self._failed_at is not None:
            self._failed_at = None
            _log.warning("the store takes writes again")
        for (_, future), result in zip(group, results, strict=True):
            future.set_result(result)

    def _transaction(self, jobs: list[Job]) -> list[Any]:
        with self._engine.begin() as connection:
            return [job(connection) for job in jobs]

    def _failed(self, group: list[tuple[Job, "Future[Any]"]], error: Exception, attempt: int) -> None:
        down = unavailable(error)
        if down and self._failed_at is None:
            _log.error("the store does not take writes: %s", type(getattr(error, "orig", error)).__name__)
        # In this order, so that a store which failed after too long is not taken for one that is up in between.
        self._failed_at = monotonic() if down else self._failed_at
        self._busy_since = None
        if down:
            self.failures += 1
            with self._wake:
                group = [
                    *group,
                    *((job, future) for job, future in self._jobs if future.set_running_or_notify_cancel()),
                ]
                self._jobs.clear()
            for _, future in group:
                future.set_exception(StoreUnavailable("the store does not take writes"))
        elif len(group) > 1 or (_collided(error) and attempt < _ATTEMPTS):
            for each in group:
                self._do([each], attempt + 1)
        else:
            if isinstance(error, SQLAlchemyError):
                self.failures += 1
            group[0][1].set_exception(error)


def unavailable(error: BaseException) -> bool:
    """Whether an error is the database's state (down, full, read-only, locked), not the fault of what was asked."""
    if isinstance(error, PoolTimeout | OSError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    kind = type(error.orig).__name__
    if error.connection_invalidated or kind in ("OperationalError", "InterfaceError", "DatabaseError"):
        return True
    # PostgreSQL's classes of what will pass: no connection, no resources, intervention, system and read-only.
    state = getattr(error.orig, "sqlstate", None) or ""
    return state[:2] in ("08", "53", "57", "58") or state in ("25006", "55P03")


def _collided(error: BaseException) -> bool:
    """Whether the database broke off a transaction in favour of another process's, or both made the same row."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    return state[:2] == "40" or isinstance(error, IntegrityError)


def _touch(connection: Connection) -> None:
    """The smallest write."""
    connection.exec_driver_sql("UPDATE counters SET audits = audits WHERE id = 1")
