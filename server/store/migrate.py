"""Brings a database to this version's schema, once, however many processes start at the same time."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from demur.server.store.errors import StoreError

#: PostgreSQL's advisory lock that migrations hold.
_LOCK = 0x64656D7572


def migrate(engine: Engine) -> tuple[str | None, str]:
    """Migrates; gives the revision found and the one that is there now.

    Raises StoreError for a database that a later version of Demur has made, SQLAlchemy's errors otherwise.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            # What a migration does to a large table takes longer than any other statement may.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        found = revision(connection)
        head = latest()
        if found == head:
            return found, head
        if found is not None and found not in _known():
            raise StoreError(
                f"the store has schema {found}, which this version of Demur does not know; use a later one"
            )
        command.upgrade(_config(connection), "head")
        return found, head


def revision(connection: Connection) -> str | None:
    """The revision that a database is at, None where it is empty."""
    return MigrationContext.configure(connection).get_current_revision()


def latest() -> str:
    """The revision of this version."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None  # noqa: S101 - the package carries its migrations
    return head


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
