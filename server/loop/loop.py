"""The loop of one server process: its store, what writes to it, and what follows from labels."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Self, TypeVar

from sqlalchemy import Connection

from demur.server.closing import closed, finished
from demur.server.errors import StoreUnavailable as NotNow
from demur.server.loop.audits import Auditor
from demur.server.loop.log import DecisionLog
from demur.server.loop.logged import LoggedDecider
from demur.server.settings import Settings, SettingsError
from demur.server.store import upkeep
from demur.server.store.database import store_url
from demur.server.store.errors import StoreError, StoreUnavailable, StoreUnreachable
from demur.server.store.store import Store
from demur.server.types import Decider

T = TypeVar("T")

_UPKEEP_EVERY_S = 15.0
_RETENTION_EVERY_S = 600.0
#: Answers under idempotency keys are kept for so long.
_REPLIES = timedelta(days=7)

_log = logging.getLogger("demur.loop")


class Loop:
    """What the wires and the decider use of the store. Owned by one event loop; `start` and `aclose` it there."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.auditor = Auditor(store, due_days=settings.audit_days, max_unaudited=settings.max_unaudited)
        self.log = DecisionLog(store, capacity=settings.log_buffer, written=self.auditor.wrote)
        #: Told of a stored label: its task, its source, and whether it is an audit's.
        self.count_feedback: Callable[[str, str | None, bool], None] = lambda _task, _source, _evidence: None
        #: Awaited before labels are acknowledged, so that what follows from them holds from the next decision on.
        self.labelled: Callable[[], Awaitable[None]] = _nothing
        #: By task: audits that two people have labelled, and those of them on which they differ.
        self.disagreement: Mapping[str, tuple[int, int]] = {}
        self._upkeep: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, settings: Settings) -> Self | None:
        """Opens the store that the settings name, if any. Raises SettingsError, and StoreUnreachable."""
        url = None if settings.store_url is None else settings.store_url.get_secret_value()
        try:
            place = store_url(url, settings.state_dir)
            return None if place is None else cls(Store.open(place, timeout_s=settings.store_timeout_s), settings)
        except StoreUnreachable:
            raise
        except StoreError as error:
            raise SettingsError(str(error)) from None

    def decider(self, decider: Decider) -> Decider:
        """The decider whose decisions are logged and audited."""
        return LoggedDecider(decider, self.store, self.log, self.auditor, log_adhoc=self.settings.log_adhoc)

    def start(self) -> None:
        """Begins to write, and to let go of what is old."""
        self.log.start()
        self._upkeep = asyncio.create_task(self._keep_up())

    async def aclose(self) -> None:
        """Writes what waits, and closes the store."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await finished(self._upkeep)
        await closed(self.log.aclose, partial(asyncio.to_thread, self.store.close))

    async def write(self, job: Callable[[Connection], T]) -> T:
        """As `Store.write`; raises what callers are answered with."""
        try:
            return await self.store.write(job)
        except StoreUnavailable as error:
            raise NotNow(f"{error}; try again later", retry_after=self.settings.retry_after_s) from None

    async def read(self, job: Callable[[Connection], T]) -> T:
        """As `Store.read`; raises what callers are answered with."""
        try:
            return await self.store.read(job)
        except StoreUnavailable as error:
            raise NotNow(f"{error}; try again later", retry_after=self.settings.retry_after_s) from None

    async def stored(self, ids: Iterable[str]) -> None:
        """As `DecisionLog.stored`: whoever just had an answer may ask for it, or label it, at once."""
        try:
            await self.log.stored(ids)
        except StoreUnavailable as error:
            raise NotNow(f"{error}; try again later", retry_after=self.settings.retry_after_s) from None

    async def _keep_up(self) -> None:
        retained: float | None = None
        while True:
            try:
                self.disagreement = await self.store.read(upkeep.disagreement)
                if retained is None or monotonic() - retained >= _RETENTION_EVERY_S:
                    await self._retain(datetime.now(UTC))
                    retained = monotonic()
            except StoreUnavailable:
                pass
            except Exception:
                _log.exception("the store's upkeep failed")
            await asyncio.sleep(_UPKEEP_EVERY_S)

    async def _retain(self, now: datetime) -> None:
        await self.store.write(lambda connection: upkeep.expire_replies(connection, now - _REPLIES))
        if not self.settings.retention_days:
            return
        before = now - timedelta(days=self.settings.retention_days)
        while await self.store.write(lambda connection: upkeep.expire(connection, before, now)) == upkeep.BATCH:
            pass


async def _nothing() -> None:
    pass
