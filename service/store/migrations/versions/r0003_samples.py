"""Labelled images that are kept."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the tables of packs and samples; jobs say which samples they search on and what they changed."""
    op.create_table(
        "packs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("is_stale", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_packs"),
    )
    op.create_index("ix_packs_owner", "packs", ["owner"])
    op.create_index("ix_packs_is_stale", "packs", ["is_stale"])
    op.create_table(
        "samples",
        sa.Column("deployment", sa.String(63), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("pack", sa.String(32), nullable=False),
        sa.Column("added_at", sa.Double(), nullable=False),
        sa.Column("given_at", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["deployment"], ["deployments.name"], name="fk_samples_deployment"),
        sa.ForeignKeyConstraint(["pack"], ["packs.id"], name="fk_samples_pack"),
        sa.PrimaryKeyConstraint("deployment", "hash", name="pk_samples"),
    )
    op.create_index("ix_samples_pack", "samples", ["pack"])
    op.create_index("ix_samples_given_at", "samples", ["given_at"])
    op.add_column("jobs", sa.Column("samples", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("selection", sa.LargeBinary(), nullable=True))
