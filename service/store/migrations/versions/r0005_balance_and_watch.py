"""How classes count in a search; deployments that are watched."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Jobs say what counts alike, in those there are every image; watches, their sums, and reasons of events."""
    op.add_column("jobs", sa.Column("balance", sa.String(16), nullable=False, server_default="none"))
    op.add_column("deployments", sa.Column("watch", sa.JSON(), nullable=True))
    op.add_column("deployments", sa.Column("watch_state", sa.JSON(), nullable=True))
    op.add_column("events", sa.Column("reason", sa.String(), nullable=True))
    op.create_table(
        "confidence_sums",
        sa.Column("watch", sa.String(32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("total", sa.Double(), nullable=False),
        sa.Column("squares", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("watch", "version", name="pk_confidence_sums"),
    )
