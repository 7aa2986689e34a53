"""Connections: SQLite in WAL mode with one writer, or PostgreSQL, both giving up rather than waiting long."""

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import ConnectionPoolEntry

from demur.server.store.errors import StoreError

#: The store's file in a state directory.
FILE = "demur.db"


def store_url(url: str | None, state_dir: Path | None) -> URL | None:
    """Where the store is: at a URL, else in the state directory, else nowhere. Raises StoreError."""
    if url is None:
        return None if state_dir is None else URL.create("sqlite", database=str(state_dir / FILE))
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError("the store's URL is not one: sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME") from None
    kind = parsed.get_backend_name()
    if kind == "sqlite" and parsed.database:
        return parsed.set(drivername="sqlite")
    if kind in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise StoreError(f"a store in {kind} is not supported: sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME")


def connect(url: URL, *, timeout_s: float, pool_size: int, writes: bool) -> Engine:
    """An engine whose statements give up after `timeout_s`. `writes`: transactions take SQLite's write lock at once.

    Raises StoreError where PostgreSQL's driver is not installed.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, timeout_s=timeout_s, pool_size=pool_size, writes=writes)
    milliseconds = max(1, round(timeout_s * 1e3))
    options = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds} -c timezone=UTC"
    arguments = {
        "connect_timeout": max(2, round(timeout_s)),
        "options": options,
        "application_name": "demur",
        "tcp_user_timeout": milliseconds,
        # The system's own probes come after two hours, until when an answer from a host that is gone is waited for.
        "keepalives_idle": max(1, round(timeout_s)),
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }
    try:
        return create_engine(
            url, connect_args=arguments, pool_size=pool_size, max_overflow=0, pool_timeout=timeout_s, pool_pre_ping=True
        )
    except (ModuleNotFoundError, NoSuchModuleError):
        raise StoreError("PostgreSQL needs its driver: install demur[postgres]") from None


def _sqlite(url: URL, *, timeout_s: float, pool_size: int, writes: bool) -> Engine:
    if url.database is not None:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        connect_args={"timeout": timeout_s, "check_same_thread": False},
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout_s,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver's own transactions begin too late; see _begin
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",  # a commit is on disk before it is acknowledged
            "foreign_keys=ON",
            f"busy_timeout={round(timeout_s * 1e3)}",
            "cache_size=-65536",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> Any:
        return connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
