"""Workers report the moves that they serve, and number the confidences that they hand over."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add columns, empty for workers of the code before; find the last event of a deployment without a look at all."""
    op.add_column("workers", sa.Column("moves", sa.JSON(), nullable=True))
    op.add_column("workers", sa.Column("batch", sa.Integer(), nullable=True))
    op.create_index("ix_events_deployment_seq", "events", ["deployment", "seq"])
    op.drop_index("ix_events_deployment", table_name="events")
