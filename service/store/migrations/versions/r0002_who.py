"""Whose key it was."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the name of the API key to jobs and events; null if there was none."""
    op.add_column("jobs", sa.Column("who", sa.String(100), nullable=True))
    op.add_column("events", sa.Column("who", sa.String(100), nullable=True))
