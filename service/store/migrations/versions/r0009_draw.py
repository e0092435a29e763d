"""How the labelled images of a job were drawn."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Jobs say whether their labelled images are a fair draw; of those there nobody said so."""
    op.add_column("jobs", sa.Column("draw", sa.String(16), nullable=False, server_default="any"))
