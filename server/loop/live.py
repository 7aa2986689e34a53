"""The live state of this process: it reads what changed in the store, and says how certificates stand.

Every process tails the same two sequences, audits and labels, and so comes to the same numbers. One that cannot read
them for `STALE_S` knows nothing: whatever rests on a certificate is then not trusted.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count

from sqlalchemy import Connection

from demur.calibration.monitor import State
from demur.server.loop.process import Row
from demur.server.loop.state import GuaranteeStatus, LiveState, TaskStatus
from demur.server.loop.window import WINDOW
from demur.server.store.decisions import Labelled, Mark, changes, heads, last_labelled, mark
from demur.server.store.errors import Rewound, StoreUnavailable
from demur.server.store.guarantees import (
    erased_unlabelled,
    guarantees,
    move_guarantee,
    outcomes,
    put_guarantee,
    waiting,
)
from demur.server.store.records import AuditRecord, GuaranteeRecord, LabelRecord
from demur.server.store.store import Store
from demur.server.types import Standing

#: Without a successful read for so long nothing is known any more.
STALE_S = 10.0
#: Between two looks at the store.
POLL_S = 1.0
#: Between two looks for audits past their deadline that were erased since.
_ERASED_EVERY_S = 60.0
_EVENTS = 2_000
_STANDINGS: dict[State, Standing] = {
    "valid": Standing.VALID,
    "starved": Standing.STARVED,
    "withdrawn": Standing.WITHDRAWN,
    # Decisions are judged by the dates in the certificate itself.
    "expired": Standing.VALID,
}

_log = logging.getLogger("demur.loop")


@dataclass(frozen=True, slots=True)
class Served:
    """What a task is served with: its bundle's id, and the certificates of that bundle, as new ones."""

    task: str
    bundle: str
    guarantees: tuple[GuaranteeRecord, ...]


@dataclass(frozen=True, slots=True)
class StateChange:
    """A certificate's state changed, and this process is the one that says so."""

    status: GuaranteeStatus
    before: State
    at: datetime


@dataclass(frozen=True, slots=True)
class LiveView:
    """What is known, all of one moment."""

    guarantees: Mapping[str, GuaranteeStatus]
    tasks: Mapping[str, TaskStatus]


class LiveLoop:
    """Owned by one event loop; `run` polls until it is cancelled."""

    def __init__(
        self,
        store: Store,
        *,
        max_missing: float = 0.1,
        on_change: Callable[[StateChange], None] = lambda _: None,
        on_view: Callable[[LiveView], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_change` is told of states that this process was the first to change; `on_view` of every look."""
        self._store, self._max_missing = store, max_missing
        self._state = LiveState(max_missing=max_missing)
        self._on_change, self._on_view = on_change, on_view
        self._clock, self._monotonic = clock, monotonic
        self._place: tuple[int, int] | None = None
        self._mark = Mark()
        self._due_until, self._asked_all = -math.inf, -math.inf
        self._wanted: dict[str, Served] = {}
        self._served: dict[str, Served] = {}
        self._known: dict[str, State] = {}
        self._standings: Mapping[str, Standing] = {}
        #: Certificates that were withdrawn before the store lost what it knew of that.
        self._lost: set[str] = set()
        self._fresh: float | None = None
        self._watched_since: float | None = None
        self._lock = asyncio.Lock()
        self._tickets, self._covered = count(1), 0
        self.view = LiveView({}, {})

    def standing(self, key: str) -> Standing:
        """How a certificate stands; unknown where that could not be read lately."""
        if self.age > STALE_S:
            return Standing.UNKNOWN
        return self._standings.get(key, Standing.UNKNOWN)

    def withdrawn(self, task: str) -> bool:
        """Whether a certificate that the task is served with is withdrawn: all its decisions are then drawn alike."""
        served = self._served.get(task)
        keys = () if served is None else (record.key for record in served.guarantees)
        return any(self._standings.get(key) is Standing.WITHDRAWN for key in keys)

    @property
    def age(self) -> float:
        """Seconds since the store was last read; infinite before that."""
        return float("inf") if self._fresh is None else self._monotonic() - self._fresh

    @property
    def unread_s(self) -> float:
        """As `age`, but no longer than something has been served: a start that takes its time is no failure yet."""
        return min(self.age, 0.0 if self._watched_since is None else self._monotonic() - self._watched_since)

    @property
    def watches(self) -> bool:
        """Whether something is served, and so has to be known."""
        return bool(self._wanted or self._served)

    def serve(self, served: Served) -> None:
        """Watches what a task is served with from the next look on; until then its certificates are unknown."""
        self._wanted[served.task] = served
        self._watched_since = self._monotonic() if self._watched_since is None else self._watched_since

    async def run(self) -> None:
        """Looks at the store again and again."""
        while True:
            try:
                await self.catch_up()
            except StoreUnavailable:
                _log.debug("the store cannot be read")
            except Exception:
                _log.exception("cannot follow the store")
            await asyncio.sleep(POLL_S)

    async def catch_up(self) -> None:
        """Takes all that was committed before this call. Raises StoreUnavailable. Calls that wait share a look."""
        ticket = next(self._tickets)
        async with self._lock:
            if self._covered > ticket:
                return
            covered = next(self._tickets)
            while await self._look():
                pass
            self._covered = covered

    async def _look(self) -> bool:
        """One look; whether there may be more to see."""
        try:
            return await self._new()
        except Rewound as error:
            _log.error("%s; certificates are unknown until all of it is read again", error)
            self._begin_again()
            return True

    def _begin_again(self) -> None:
        """Numbers are given a second time by now, so nothing that hangs on them is worth keeping."""
        self._lost |= {key for key, standing in self._standings.items() if standing is Standing.WITHDRAWN}
        self._state = LiveState(max_missing=self._max_missing)
        self._place, self._due_until, self._asked_all = None, -math.inf, -math.inf
        self._wanted = {**self._served, **self._wanted}
        self._known, self._standings = {}, {}

    async def _new(self) -> bool:
        began = self._monotonic()
        if self._place is None:
            # Before the tables of certificates: what happens between the two comes again as changes.
            place, there, unlabelled = await self._store.read(_ends)
            for task, seq, due in unlabelled:
                self._state.wait(task, seq, due)
            self._place, self._mark = place, there
        await self._begin_serving()
        place, there, now = self._place, self._mark, self._clock()
        everything = began - self._asked_all >= _ERASED_EVERY_S
        since = -math.inf if everything else self._due_until
        audits, labels, erased = await self._store.read(
            lambda connection: (
                *changes(connection, self._store.options, *place, _EVENTS, there=there),
                # No label is missing before it was seen that the audit is still there.
                erased_unlabelled(connection, self._state.falling_due(since, now)),
            )
        )
        view = await asyncio.to_thread(self._apply, audits, labels, erased, now)
        self._due_until, self._asked_all = now, began if everything else self._asked_all
        self._place = (
            audits[-1].seq if audits else place[0],
            labels[-1].seq if labels else place[1],
        )
        self._mark = Mark(
            audits[-1].decision.id if audits else there.audit,
            (labels[-1].decision_id, labels[-1].received_at) if labels else there.label,
        )
        self.view = view
        self._standings = {key: _STANDINGS[status.state] for key, status in view.guarantees.items()}
        self._fresh = began
        await self._tell(view, now)
        if self._on_view is not None:
            await self._on_view(view)
        return max(len(audits), len(labels)) >= _EVENTS

    def _apply(
        self, audits: list[AuditRecord], labels: list[LabelRecord], erased: Mapping[int, bool], now: float
    ) -> LiveView:
        for audit in audits:
            self._state.drawn(audit)
        for label in labels:
            if label.audit is not None and not label.second:
                self._state.labelled(label.audit, label.label)
        for seq, before_due in erased.items():
            self._state.erased(seq, before_due=before_due)
        return LiveView(self._state.statuses(now), self._state.tasks(now))

    async def _begin_serving(self) -> None:
        wanted = tuple(self._wanted.items())
        if not wanted:
            return
        keys = [record.key for _, served in wanted for record in served.guarantees]
        known = await self._store.read(lambda connection: {one.key: one for one in guarantees(connection, keys)})
        for task, served in wanted:
            try:
                if not all(record.key in known for record in served.guarantees):
                    known |= await self._store.write(partial(_put, served))
                records = [known[record.key] for record in served.guarantees]
            except StoreUnavailable:
                _log.warning(
                    "the store does not take a certificate, which stays unknown", extra={"fields": {"task": task}}
                )
                continue
            # What happens after this was read comes again as changes, which does no harm.
            rows, audits = await self._store.read(partial(self._table, served, records))
            await asyncio.to_thread(self._restore, served, records, rows, audits)
            self._served[task] = replace(served, guarantees=tuple(records))
            if self._wanted.get(task) is served:
                del self._wanted[task]

    def _table(
        self, served: Served, records: list[GuaranteeRecord], connection: Connection
    ) -> tuple[list[list[Row]], list[Labelled]]:
        options = self._store.options
        return (
            [outcomes(connection, record.key, options) for record in records],
            last_labelled(connection, options, task=served.task, bundle=served.bundle, limit=WINDOW),
        )

    def _restore(
        self, served: Served, records: list[GuaranteeRecord], rows: list[list[Row]], audits: list[Labelled]
    ) -> None:
        for record, table in zip(records, rows, strict=True):
            self._known.setdefault(record.key, record.state)
            lost = record.key in self._lost
            self._state.know(replace(record, state="withdrawn") if lost else record, table)
        self._state.serve(served.task, served.bundle, audits)

    async def _tell(self, view: LiveView, now: float) -> None:
        """Stores states that changed here; of several processes that see a change, one is the first."""
        at = datetime.fromtimestamp(now, UTC)
        for key, status in view.guarantees.items():
            before, state = self._known[key], status.state
            if before == state:
                continue
            try:
                first = await self._store.write(partial(_move, key, state, at))
            except StoreUnavailable:
                return  # it holds here all the same, and is stored at a later look
            self._known[key] = state
            if first:
                self._on_change(StateChange(status, before, at))


def _ends(connection: Connection) -> tuple[tuple[int, int], Mark, list[tuple[str, int, float]]]:
    ends = heads(connection)
    return ends, mark(connection, *ends), waiting(connection)


def _put(served: Served, connection: Connection) -> dict[str, GuaranteeRecord]:
    return {record.key: put_guarantee(connection, record) for record in served.guarantees}


def _move(key: str, state: State, at: datetime, connection: Connection) -> bool:
    return move_guarantee(connection, key, state, at)
