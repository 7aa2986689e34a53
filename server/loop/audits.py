"""Audits: drawn at decision time by a keyed hash of the decision's id, and durable before the answer."""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from time import monotonic

from demur.decision.task import Task
from demur.server.store import decisions
from demur.server.store.errors import StoreUnavailable
from demur.server.store.records import DecisionRecord, Draw
from demur.server.store.store import Store
from demur.server.types import Verdict

#: Seconds without a store for audits, after which nothing is trusted.
MAX_UNAUDITED_S = 600.0

_log = logging.getLogger("demur.loop")


class Auditor:
    """Draws decisions and keeps those drawn."""

    def __init__(
        self,
        store: Store,
        *,
        due_days: float,
        max_unaudited: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._store = store
        self._due = timedelta(days=due_days)
        self._max_unaudited = max_unaudited
        #: Says of a task whether its certificate is withdrawn.
        self.withdrawn: Callable[[str], bool] = lambda _task: False
        self._clock = clock
        self._down_since: float | None = None
        self._refused = False
        #: Decisions taken since audits could no longer be kept.
        self.unaudited = 0

    def draw(self, decision_id: str, task: Task, verdict: Verdict) -> Draw:
        """Whether to audit: at the verdict's rate, or at one rate for all (the largest) without a certificate."""
        rate = self._rates(task)[verdict]
        u = self._store.u(decision_id)
        return Draw(u, rate, drawn=u < rate)

    async def keep(self, record: DecisionRecord, task: Task) -> bool:
        """Stores a drawn decision and its audit; whether it is durable."""
        due = record.at + self._due
        double = self._store.u(record.id, "double") < task.double_label
        least = min(self._rates(task).values())
        try:
            await self._store.write(
                lambda connection: decisions.put_drawn(connection, record, due=due, double=double, least_rate=least)
            )
        except StoreUnavailable:
            self._missed()
            return False
        except Exception:
            _log.exception("an audit was refused by the store")
            self._refused = True
            self._missed()
            return False
        self._refused = False
        self.wrote()
        return True

    def wrote(self) -> None:
        """Decisions were stored, so audits can be kept again, unless they alone are refused.

        That the store is up is not enough: a full disk takes small writes now and then.
        """
        if not self._refused:
            self._down_since, self.unaudited = None, 0

    def count(self) -> bool:
        """Counts a decision; whether there have been so many, or for so long, without audits that none is trusted."""
        if not self._store.up:
            self._missed()
        if self._down_since is None:
            return False
        self.unaudited += 1
        return self.unaudited > self._max_unaudited or self._clock() - self._down_since > MAX_UNAUDITED_S

    def _rates(self, task: Task) -> Mapping[Verdict, float]:
        rates = {Verdict.TRUST: task.audit.trust, Verdict.REVIEW: task.audit.review, Verdict.DEFER: task.audit.defer}
        return dict.fromkeys(rates, max(rates.values())) if self.withdrawn(task.name) else rates

    def _missed(self) -> None:
        self._down_since = self._clock() if self._down_since is None else self._down_since
