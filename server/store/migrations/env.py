"""Alembic's entry: runs on the connection that `demur.server.store.migrate` gives it."""

from alembic import context

from demur.server.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, compare_type=True)
context.run_migrations()
