"""What shadows would have answered, beside each decision."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the column."""
    op.add_column("decisions", sa.Column("shadow", sa.Text(), nullable=True))
