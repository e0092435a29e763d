"""Held-out answers of versions, attempts against a version, patches that name their rungs."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import safetensors.numpy
import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

NO_FOLD = -1

_SOUPS = sa.table(
    "soups",
    sa.column("deployment", sa.String()),
    sa.column("version", sa.Integer()),
    sa.column("soup", sa.JSON()),
    sa.column("source", sa.String()),
    sa.column("created_at", sa.Double()),
    sa.column("held_out", sa.LargeBinary()),
)
_JOBS = sa.table("jobs", sa.column("seq", sa.Integer()), sa.column("outcome", sa.JSON()))
_SAMPLES = sa.table(
    "samples",
    sa.column("deployment", sa.String()),
    sa.column("hash", sa.String()),
    sa.column("added_at", sa.Double()),
    sa.column("used_at", sa.Double()),
)


def upgrade() -> None:
    """Add the columns, bring stored patches up to date, and note the images that earlier versions were made from."""
    op.add_column("soups", sa.Column("held_out", sa.LargeBinary(), nullable=True))
    op.add_column("soups", sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("attempt", sa.Integer(), nullable=True))
    connection = op.get_bind()
    _convert(connection, _SOUPS, "soup", (_SOUPS.c.deployment, _SOUPS.c.version), _soup_with_rungs)
    _convert(connection, _JOBS, "outcome", (_JOBS.c.seq,), with_rungs)
    _note_images(connection)


def with_rungs(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document whose `patch` names its rungs; earlier ones had a boolean for each."""
    patch = document.get("patch")
    if not isinstance(patch, dict) or "rungs" in patch:
        return document
    flags = {"statistics": patch.get("recalibrated", 0) > 0, "head": patch.get("head"), "early": patch.get("early")}
    kept = {key: value for key, value in patch.items() if key not in ("head", "early")}
    return document | {"patch": kept | {"rungs": [name for name, has in flags.items() if has]}}


def _soup_with_rungs(document: dict[str, Any]) -> dict[str, Any]:
    evidence = document.get("evidence")
    if isinstance(evidence, dict):
        document = document | {"evidence": with_rungs(evidence)}
    return with_rungs(document)


def _convert(
    connection: sa.Connection,
    table: sa.TableClause,
    column: str,
    keys: tuple[sa.ColumnElement[Any], ...],
    change: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """Change the documents of a column, one row at a time: those of jobs can be large."""
    for where in _rows(connection, keys):
        document = connection.scalar(sa.select(table.c[column]).where(where))
        if isinstance(document, dict) and (changed := change(document)) != document:
            connection.execute(sa.update(table).where(where).values({column: changed}))


def _note_images(connection: sa.Connection) -> None:
    """Note for every version of a search which images it can have been made from; it has no held-out answers to them.

    Which they were was not kept, so these are all that were there when it was made and that a search has used. The
    version is then not judged by them.
    """
    versions = connection.execute(
        sa.select(_SOUPS.c.deployment, _SOUPS.c.version, _SOUPS.c.created_at).where(_SOUPS.c.source == "adapt")
    ).all()
    for deployment, version, created_at in versions:
        ours = (_SAMPLES.c.deployment == deployment) & (_SAMPLES.c.added_at <= created_at)
        used = sa.select(_SAMPLES.c.hash).where(ours, _SAMPLES.c.used_at.is_not(None)).order_by(_SAMPLES.c.hash)
        if not (hashes := list(connection.scalars(used))):
            continue
        data = _without_answers(hashes)
        where = (_SOUPS.c.deployment == deployment) & (_SOUPS.c.version == version)
        document: dict[str, Any] = connection.execute(sa.select(_SOUPS.c.soup).where(where)).scalar_one()
        summary = {"digest": hashlib.sha256(data).hexdigest(), "images": len(hashes), "answered": 0}
        values = {"soup": document | {"held_out": summary}, "held_out": data}
        connection.execute(sa.update(_SOUPS).where(where).values(values))


def _without_answers(hashes: list[str]) -> bytes:
    """Return the content of `held-out.safetensors` for images without an answer."""
    return safetensors.numpy.save(
        {
            "hashes": np.frombuffer("\n".join(hashes).encode(), dtype=np.uint8),
            "folds": np.full(len(hashes), NO_FOLD, dtype=np.int8),
            "logits": np.full((len(hashes), 1), np.nan, dtype=np.float16),
        }
    )


def _rows(connection: sa.Connection, keys: tuple[sa.ColumnElement[Any], ...]) -> Iterator[sa.ColumnElement[bool]]:
    """Yield a condition for every row of a table."""
    for row in connection.execute(sa.select(*keys)).all():
        yield sa.and_(*(key == value for key, value in zip(keys, row, strict=True)))
