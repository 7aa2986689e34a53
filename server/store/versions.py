"""The bundles that tasks were and are served with, whole, so that any process can serve any version again."""

import json
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, select, update

from demur.server.store import schema
from demur.server.store.errors import Superseded
from demur.server.store.guarantees import guarantees as guarantees_of
from demur.server.store.guarantees import lock_sequence
from demur.server.store.records import BundleVersion
from demur.server.store.rows import insert, micros, moment

_t = schema.bundle_versions


def adopt(
    connection: Connection,
    task: str,
    bundle: str,
    files: bytes,
    guarantees: Sequence[str],
    *,
    at: datetime,
    by: str | None,
    only_new: bool = False,
    instead_of: str | None = None,
    standing: Sequence[str] = (),
) -> BundleVersion:
    """Makes a bundle the task's newest version, and active.

    `only_new`: a bundle that is a version already changes nothing, so that a restart undoes no rollback. Gives the
    active version. `instead_of`: the bundle that must be active still; `standing`: keys of certificates that must not
    have been withdrawn. Raises Superseded where that is not so.
    """
    lock_sequence(connection)
    known = versions(connection, task)
    if instead_of is not None and any(one.active and one.bundle != instead_of for one in known):
        raise Superseded("another version became active meanwhile, and stays; look at it and try again")
    if any(record.state == "withdrawn" for record in guarantees_of(connection, standing)):
        raise Superseded("the certificate was withdrawn meanwhile; try again with audits that are drawn from now on")
    if only_new and any(one.bundle == bundle for one in known):
        return next(one for one in known if one.active)
    connection.execute(
        insert(connection.dialect.name)(schema.bundles).values(id=bundle, files=files).on_conflict_do_nothing()
    )
    number = max((one.version for one in known), default=0) + 1
    connection.execute(
        _t.insert().values(
            task=task,
            version=number,
            bundle=bundle,
            guarantees=json.dumps(list(guarantees)),
            adopted_at=micros(at),
            adopted_by=by,
            active=False,
        )
    )
    _switch(connection, task, number)
    return BundleVersion(task, number, bundle, tuple(guarantees), at, by, active=True)


def activate(connection: Connection, task: str, version: int) -> BundleVersion | None:
    """Makes an earlier version the active one; None if there is no such version."""
    lock_sequence(connection)
    found = next((one for one in versions(connection, task) if one.version == version), None)
    if found is not None:
        _switch(connection, task, version)
    return next((one for one in versions(connection, task) if one.version == version), None)


def versions(connection: Connection, task: str) -> list[BundleVersion]:
    """All versions of a task, oldest first."""
    rows = connection.execute(select(_t).where(_t.c.task == task).order_by(_t.c.version))
    return [
        BundleVersion(
            row.task,
            row.version,
            row.bundle,
            tuple(json.loads(row.guarantees)),
            moment(row.adopted_at),
            row.adopted_by,
            bool(row.active),
        )
        for row in rows
    ]


def active_bundles(connection: Connection) -> dict[str, str]:
    """The id of every task's active bundle."""
    rows = connection.execute(select(_t.c.task, _t.c.bundle).where(_t.c.active))
    return {row.task: row.bundle for row in rows}


def known_bundles(connection: Connection) -> set[tuple[str, str]]:
    """Task and bundle of every version."""
    return {(row.task, row.bundle) for row in connection.execute(select(_t.c.task, _t.c.bundle))}


def bundle_archive(connection: Connection, bundle: str) -> bytes:
    """A bundle's files, as `adopt` was given them."""
    table = schema.bundles
    return bytes(connection.execute(select(table.c.files).where(table.c.id == bundle)).scalar_one())


def _switch(connection: Connection, task: str, version: int) -> None:
    connection.execute(update(_t).where(_t.c.task == task).values(active=_t.c.version == version))
