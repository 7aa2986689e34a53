"""The decision log: written behind the answers, in batches, from a buffer that is bounded."""

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from time import monotonic

from demur.server.closing import finished
from demur.server.store import decisions
from demur.server.store.errors import StoreUnavailable
from demur.server.store.records import DecisionRecord
from demur.server.store.store import Store

#: Seconds that decisions gather for a batch, unless somebody asks for one: a transaction costs as much as many rows.
_GATHER_S = 1.0
_BATCH = 500
_RETRY_S = 0.5

_log = logging.getLogger("demur.loop")


class DecisionLog:
    """Takes decisions at once and writes them soon. While the store is down they wait; beyond `capacity` they are lost.

    Owned by one event loop. `lost` counts by reason: `full` buffer, `refused` (cannot be stored), `closed` at the end.
    """

    def __init__(self, store: Store, *, capacity: int, written: Callable[[], None] = lambda: None) -> None:
        """`written` is told of every batch that is durable."""
        self._store = store
        self._written = written
        self._capacity = capacity
        self._fresh: list[tuple[float, str, Callable[[], DecisionRecord]]] = []
        self._waiting: deque[tuple[float, DecisionRecord]] = deque()
        self._ids: set[str] = set()
        self._progress = asyncio.Event()
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._closing = False
        #: So many are written one by one, since one of them was refused.
        self._singly = 0
        self._work: asyncio.Task[None] | None = None
        self.lost: Counter[str] = Counter()

    def start(self) -> None:
        """Begins to write."""
        self._work = asyncio.create_task(self._run())

    def put(self, decision_id: str, make: Callable[[], DecisionRecord]) -> None:
        """Takes a decision; never waits. Records are made many at once, which costs less than one by one."""
        if self.buffered >= self._capacity:
            self.lost["full"] += 1
            return
        self._fresh.append((monotonic(), decision_id, make))
        self._ids.add(decision_id)
        if self.buffered >= _BATCH:
            self._hurry.set()
        self._wake.set()

    @property
    def buffered(self) -> int:
        """Decisions that wait."""
        return len(self._waiting) + len(self._fresh)

    @property
    def lag_s(self) -> float:
        """Age of the oldest decision that waits, 0 without any."""
        oldest = self._waiting or self._fresh
        return monotonic() - oldest[0][0] if oldest else 0.0

    async def stored(self, ids: Iterable[str], timeout_s: float = 5.0) -> None:
        """Returns when none of these decisions waits any more. Raises StoreUnavailable if that takes too long."""
        missing = self._ids.intersection(ids)
        if missing:
            self._hurry.set()
        try:
            async with asyncio.timeout(timeout_s):
                while missing := missing & self._ids:
                    await self._progress.wait()
        except TimeoutError:
            raise StoreUnavailable("the decision is not stored yet") from None

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Writes what waits, for so long; the rest is lost, and counted."""
        self._closing = True
        self._wake.set()
        self._hurry.set()
        if self._work is not None:
            _, late = await asyncio.wait((self._work,), timeout=timeout_s)
            for task in late:
                task.cancel()
            await finished(self._work)
        if self.buffered:  # nobody asks for metrics any more
            said = {"decisions": self.buffered}
            _log.error("decisions are lost: the store did not take them before the end", extra={"fields": said})
        self._lose("closed", self.buffered)

    async def _run(self) -> None:
        while self.buffered or not self._closing:
            if not self._waiting:
                await self._wake.wait()
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GATHER_S):
                        await self._hurry.wait()
                self._hurry.clear()
            self._make_records()
            if self._waiting:
                size = 1 if self._singly else min(len(self._waiting), _BATCH)
                await self._write([record for _, record in islice(self._waiting, size)])

    def _make_records(self) -> None:
        fresh, self._fresh = self._fresh, []
        for at, decision_id, make in fresh:
            try:
                self._waiting.append((at, make()))
            except Exception:
                _log.exception("a decision cannot be stored")
                self._ids.discard(decision_id)
                self._lose("refused", 1)

    async def _write(self, batch: Sequence[DecisionRecord]) -> None:
        """Writes the oldest; they stay in the buffer until they are durable."""
        try:
            await self._store.write(lambda connection: decisions.put(connection, batch))
        except StoreUnavailable:
            await asyncio.sleep(_RETRY_S)
            return
        except Exception:
            if len(batch) > 1:
                self._singly = len(batch)
                return
            _log.exception("a decision was refused by the store")
            self._lose("refused", 1)
        else:
            self._written()
        self._singly = max(0, self._singly - 1)
        for record in batch:
            self._waiting.popleft()
            self._ids.discard(record.id)
        self._progress.set()
        self._progress = asyncio.Event()

    def _lose(self, reason: str, n: int) -> None:
        if n:
            self.lost[reason] += n
