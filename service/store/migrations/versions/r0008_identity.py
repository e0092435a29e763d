"""An id of the registry, which names its objects; the weights that each predictor has."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the table with its row, and the columns."""
    table = op.create_table(
        "registry",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("place", sa.String(), nullable=True),
        sa.Column("owns_unnamed", sa.Boolean(), nullable=False),
        sa.Column("works_from", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_registry"),
    )
    row = {"id": uuid.uuid4().hex, "place": None, "owns_unnamed": True, "works_from": revision}
    op.bulk_insert(table, [row])
    op.add_column("packs", sa.Column("origin", sa.String(32), nullable=True))
    op.add_column("workers", sa.Column("digests", sa.JSON(), nullable=True))
