"""The tables, the same in SQLite and PostgreSQL. Times are integers: microseconds since 1970, UTC.

`migrations/` makes them; a test holds the two against each other.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
    }
)

# A decision that a person may still be asked about, besides audits.
WAITING = text("label IS NULL AND NOT drawn AND NOT erased AND verdict <> 'trust'")
# SQLite numbers rows by itself only in a column that is an INTEGER.
RowNumber = BigInteger().with_variant(Integer, "sqlite")

#: The secret behind draws and hashes.
secrets = Table(
    "secrets", metadata, Column("name", Text, primary_key=True), Column("value", LargeBinary, nullable=False)
)

#: One row: the last seq given to an audit and to a label. Its lock orders the commits of all processes.
counters = Table(
    "counters",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("audits", BigInteger, nullable=False),
    Column("labels", BigInteger, nullable=False),
)

#: Names of options, as JSON, under a hash of them: most decisions share a few.
option_sets = Table(
    "option_sets", metadata, Column("hash", Text, primary_key=True), Column("names", Text, nullable=False)
)

decisions = Table(
    "decisions",
    metadata,
    Column("seq", RowNumber, primary_key=True),
    Column("id", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("task_hash", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("options", Text, nullable=False),  # a hash in option_sets
    Column("option", Integer, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("probabilities", LargeBinary, nullable=False),  # float64, little-endian
    Column("logprobs", LargeBinary, nullable=False),
    Column("scores", LargeBinary),  # null: the same as logprobs
    Column("label_mass", Double, nullable=False),
    Column("p_correct", Double),
    Column("score", Double),
    Column("bundle", Text),
    Column("guarantee", Text),
    Column("slice", Text),
    Column("model", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("readout", Text, nullable=False),
    Column("input", Text),
    Column("input_hash", Text, nullable=False),
    Column("key", Text),
    Column("subject", Text),
    Column("u", Double, nullable=False),
    Column("rate", Double, nullable=False),
    Column("drawn", Boolean, nullable=False),
    Column("erased", Boolean, nullable=False, server_default=text("false")),
    Column("label", BigInteger),  # seq of the label in force
    Column("claimed_by", Text),
    Column("claimed_until", BigInteger),
    Column("shadow", Text),  # JSON: what a candidate would have answered
    Index("ix_decisions_id", "id", unique=True),
    Index("ix_decisions_task_seq", "task", "seq"),
    Index(
        "ix_decisions_waiting",
        "task",
        "verdict",
        "seq",
        sqlite_where=WAITING,
        postgresql_where=WAITING,
    ),
    Index(
        "ix_decisions_waiting_anywhere",
        "verdict",
        "seq",
        sqlite_where=WAITING,
        postgresql_where=WAITING,
    ),
    Index(
        "ix_decisions_subject",
        "subject",
        sqlite_where=text("subject IS NOT NULL"),
        postgresql_where=text("subject IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

audits = Table(
    "audits",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("decision", RowNumber, ForeignKey("decisions.seq"), nullable=False),
    Column("task", Text, nullable=False),
    Column("guarantee", Text),
    Column("due", BigInteger, nullable=False),
    Column("double", Boolean, nullable=False),
    Column("second", BigInteger),  # seq of the second person's label
    Column("open", Boolean, nullable=False),
    # The smallest in force for any verdict. What an older server writes, which does not know it, certifies nothing.
    Column("least_rate", Double, nullable=False, server_default=text("0")),
    Index("ix_audits_decision", "decision", unique=True),
    Index("ix_audits_task_seq", "task", "seq"),
    Index("ix_audits_guarantee_seq", "guarantee", "seq"),
    Index(
        "ix_audits_double",
        "task",
        sqlite_where=text("second IS NOT NULL"),
        postgresql_where=text("second IS NOT NULL"),
    ),
    Index("ix_audits_open", "task", "seq", sqlite_where=text("open"), postgresql_where=text("open")),
)

labels = Table(
    "labels",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("decision", RowNumber, ForeignKey("decisions.seq"), nullable=False),
    Column("audit", BigInteger),  # null: not evidence
    Column("label", Text, nullable=False),
    Column("source", Text),
    Column("key", Text),
    Column("at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("corrects", BigInteger),
    Column("second", Boolean, nullable=False),
    Index("ix_labels_decision", "decision"),
)

#: First answers to requests that carried an idempotency key.
replies = Table(
    "replies",
    metadata,
    Column("key", Text, primary_key=True),  # a hash of caller and key
    Column("body", Text, nullable=False),  # a hash of what was sent
    Column("reply", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index("ix_replies_at", "at"),
)

guarantees = Table(
    "guarantees",
    metadata,
    Column("key", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("slice", Text),
    Column("bundle", Text, nullable=False),
    Column("alpha", Double, nullable=False),
    Column("delta", Double, nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("first_audit_seq", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("withdrawn_at", BigInteger),
    Column("ended_audit_seq", BigInteger),  # the last audit when it was withdrawn
    Index("ix_guarantees_task", "task"),
)

bundles = Table("bundles", metadata, Column("id", Text, primary_key=True), Column("files", LargeBinary, nullable=False))

bundle_versions = Table(
    "bundle_versions",
    metadata,
    Column("task", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("bundle", Text, ForeignKey("bundles.id"), nullable=False),
    Column("guarantees", Text, nullable=False),  # JSON list of keys
    Column("adopted_at", BigInteger, nullable=False),
    Column("adopted_by", Text),
    Column("active", Boolean, nullable=False),
)

attempts = Table(
    "attempts",
    metadata,
    Column("question", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("task", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("delta", Double, nullable=False),
    Column("outcome", Text),
)
