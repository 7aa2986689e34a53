"""The smallest rate at which any verdict was drawn, beside each audit."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds the column. For audits that are there: the smallest rate of all decisions of their task, drawn or not."""
    op.add_column("audits", sa.Column("least_rate", sa.Double(), nullable=False, server_default=sa.text("0")))
    audits = sa.table("audits", sa.column("task"), sa.column("least_rate"))
    decisions = sa.table("decisions", sa.column("task"), sa.column("rate"))
    connection = op.get_bind()
    rates = connection.execute(sa.select(decisions.c.task, sa.func.min(decisions.c.rate)).group_by(decisions.c.task))
    for task, rate in rates.all():
        connection.execute(sa.update(audits).where(audits.c.task == task).values(least_rate=rate))
