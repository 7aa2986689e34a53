"""The bundles of all tasks as versions in the store: one is active, in every process, and each can be again.

A bundle in the server's directory becomes a version when it is first seen. From then on the store says which version is
active, so that a restart undoes neither a renewal nor a rollback.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from demur.decision.bundle import Bundle, pack_bundle, unpack_bundle
from demur.decision.errors import BundleError
from demur.decision.task import Task
from demur.server.bundles import ServedBundle
from demur.server.calibrated import Calibrated
from demur.server.loop.live import Served
from demur.server.store.errors import StoreUnavailable
from demur.server.store.guarantees import guarantees
from demur.server.store.records import BundleVersion, GuaranteeRecord
from demur.server.store.store import Store
from demur.server.store.versions import activate, active_bundles, adopt, bundle_archive, known_bundles, versions

_log = logging.getLogger("demur.loop")

#: Serves a task with a bundle from the next request on, in this process.
Swap = Callable[[str, Calibrated], None]


class Shelf:
    """Owned by one event loop. `swap` is called for what became active, `swapped` is awaited after a change here."""

    def __init__(self, store: Store, swap: Swap, swapped: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._swap = swap
        self._swapped = swapped
        self._unusable: set[str] = set()
        self._changes = 0

    async def settled(self, tasks: Mapping[str, Task], found: Mapping[str, Calibrated]) -> Mapping[str, Calibrated]:
        """What to serve these tasks with: what is new in the directory, else the active versions.

        Nothing is kept yet: that is for `keep`, once what is served was found to fit. Without an answer of the store:
        what was found.
        """
        try:
            known = await self._store.read(known_bundles)
            active = await self._store.read(active_bundles)
            settled = dict(found)
            for name, bundle in active.items():
                new = name in found and (name, found[name].bundle.id) not in known
                same = name in found and found[name].bundle.id == bundle
                if name in tasks and not new and not same:
                    settled[name] = await self.load(bundle)
                    _log.info("a version of the store is active", extra={"fields": {"task": name, "bundle": bundle}})
        except (StoreUnavailable, BundleError) as error:
            _log.warning("bundles are served as they lie in their directory: %s", error)
            return found
        return settled

    async def keep(self, found: Mapping[str, Calibrated]) -> None:
        """Makes those of the directory that are new the active versions; with a warning where the store fails."""
        try:
            known = await self._store.read(known_bundles)
            for name, calibrated in found.items():
                if (name, calibrated.bundle.id) not in known:
                    await self._store.write(partial(_adopt, name, calibrated, None, True, None, ()))
        except StoreUnavailable as error:
            _log.warning("new bundles are not active for other processes or after a restart: %s", error)

    async def adopt(
        self,
        task: str,
        calibrated: Calibrated,
        by: str | None,
        *,
        instead_of: str | None = None,
        standing: Sequence[str] = (),
    ) -> BundleVersion:
        """Makes a bundle the active version, in this process at once.

        Raises StoreUnavailable, and Superseded where another bundle than `instead_of` is active, or one of the
        certificates in `standing` was withdrawn; nothing changes then.
        """
        self._changes += 1
        version = await self._store.write(partial(_adopt, task, calibrated, by, False, instead_of, standing))
        self._changes += 1
        self._swap(task, calibrated)
        await self._swapped()
        return version

    async def rollback(self, task: str, version: int) -> BundleVersion | None:
        """Makes a version active again, with the state of its certificate; None if there is none of that number.

        Raises StoreUnavailable, BundleError.
        """
        known = next((one for one in await self.versions(task) if one.version == version), None)
        if known is None:
            return None
        calibrated = await self.load(known.bundle)
        self._changes += 1
        found = await self._store.write(lambda connection: activate(connection, task, version))
        self._changes += 1
        self._swap(task, calibrated)
        await self._swapped()
        return found

    async def versions(self, task: str) -> list[BundleVersion]:
        """All versions of a task, oldest first. Raises StoreUnavailable."""
        return await self._store.read(lambda connection: versions(connection, task))

    async def history(self, task: str) -> tuple[list[BundleVersion], Mapping[str, GuaranteeRecord]]:
        """As `versions`, with what is known of their certificates, by key. Raises StoreUnavailable."""

        def read(connection: Connection) -> tuple[list[BundleVersion], Mapping[str, GuaranteeRecord]]:
            found = versions(connection, task)
            keys = {key for version in found for key in version.guarantees}
            return found, {record.key: record for record in guarantees(connection, keys)}

        return await self._store.read(read)

    async def load(self, bundle: str) -> Calibrated:
        """A bundle of the store. Raises StoreUnavailable, BundleError."""
        packed = await self._store.read(lambda connection: bundle_archive(connection, bundle))
        return Calibrated.of(unpack_bundle(packed, Path(f"bundle-{bundle[:12]}")))

    async def follow(self, served: Mapping[str, ServedBundle], tasks: Mapping[str, Task]) -> None:
        """Serves what other processes made active. Raises StoreUnavailable."""
        changes = self._changes
        for task, bundle in (await self._store.read(active_bundles)).items():
            now = served.get(task)
            same = now is not None and now.calibrated.bundle.id == bundle
            if task not in tasks or same or bundle in self._unusable:
                continue
            try:
                calibrated = await self.load(bundle)
            except BundleError as error:
                self._unusable.add(bundle)
                _log.error("a version cannot be served; the task goes on with the one it has: %s", error)
                continue
            if self._changes != changes:
                return  # what was read may be older than a change that was made here meanwhile
            self._swap(task, calibrated)


def watched(task: str, calibrated: Calibrated) -> Served:
    """What there is to watch of a bundle: the certificates, of every slice, that let something be trusted."""
    whole, bundle = calibrated.guarantee, calibrated.bundle
    parts = [] if whole is None else [whole, *whole.slices.values()]
    records = [
        GuaranteeRecord(
            key=part.key,
            task=task,
            slice=part.slice,
            bundle=bundle.id,
            alpha=part.trusted.alpha,
            delta=part.trusted.delta,
            issued_at=part.issued_at,
            expires_at=part.ends_at,
            first_audit_seq=0,
        )
        for part in parts
        if part.trusted is not None and part.trust_at is not None
    ]
    return Served(task, bundle.id, tuple(records))


def _adopt(
    task: str,
    calibrated: Calibrated,
    by: str | None,
    only_new: bool,
    instead_of: str | None,
    standing: Sequence[str],
    connection: Connection,
) -> BundleVersion:
    bundle: Bundle = calibrated.bundle
    keys = [record.key for record in watched(task, calibrated).guarantees]
    now = datetime.now(UTC)
    packed = pack_bundle(bundle)
    return adopt(
        connection,
        task,
        bundle.id,
        packed,
        keys,
        at=now,
        by=by,
        only_new=only_new,
        instead_of=instead_of,
        standing=standing,
    )
