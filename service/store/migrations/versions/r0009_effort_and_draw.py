"""How thoroughly a job searches, which job it follows or is followed by, and how its labelled images were drawn."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the columns; jobs there are, and those that the code before queues, try all rungs at once on any labels."""
    op.add_column("jobs", sa.Column("effort", sa.String(16), nullable=False, server_default="full"))
    op.add_column("jobs", sa.Column("follows", sa.String(32), nullable=True))
    op.add_column("jobs", sa.Column("followed_by", sa.String(32), nullable=True))
    op.add_column("jobs", sa.Column("draw", sa.String(16), nullable=False, server_default="any"))
