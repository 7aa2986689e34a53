"""What outlives the process: decisions, audits, labels, guarantees and bundles, in SQLite or PostgreSQL."""
