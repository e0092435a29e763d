"""Reference images."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Deployments say which reference images they have; null for none."""
    op.add_column("deployments", sa.Column("reference", sa.JSON(), nullable=True))
