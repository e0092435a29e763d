"""Confidences of watched deployments on their way from the workers to the adapter: one row for each version."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.store.confidence import Tally
from service.store.tables import ConfidenceSum

Sums = Mapping[tuple[str, int], Tally]  # by watch and version


def add_sums(session: Session, sums: Sums) -> None:
    """Add to the rows; several workers may do so at once."""
    if not sums:
        return
    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    rows = [{"watch": watch, "version": version, **tally._asdict()} for (watch, version), tally in sorted(sums.items())]
    added = dialect.insert(ConfidenceSum).values(
        rows
    )  # in one order for all workers: none waits for the other for ever
    session.execute(
        added.on_conflict_do_update(
            index_elements=[ConfidenceSum.watch, ConfidenceSum.version],
            set_={name: getattr(ConfidenceSum, name) + added.excluded[name] for name in Tally._fields},
        )
    )


def take_sums(session: Session, watch: str) -> dict[int, Tally]:
    """Return the sums of a watch by version, and delete its rows."""
    taken = session.execute(
        delete(ConfidenceSum)
        .where(ConfidenceSum.watch == watch)
        .returning(ConfidenceSum.version, ConfidenceSum.n, ConfidenceSum.total, ConfidenceSum.squares)
    )
    return {version: Tally(n, total, squares) for version, n, total, squares in taken}


def waiting_watches(session: Session) -> set[str]:
    """Return the watches that there are sums of."""
    return set(session.scalars(select(ConfidenceSum.watch).distinct()))
