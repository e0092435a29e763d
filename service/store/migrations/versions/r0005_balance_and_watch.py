"""How classes count in a search."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Jobs say whether their classes count alike; in those there are, every image did."""
    op.add_column("jobs", sa.Column("balance", sa.String(16), nullable=False, server_default="none"))
