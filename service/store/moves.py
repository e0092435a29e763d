"""The moves that predictors follow: which version a deployment points at since which event."""

from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeVar

from sqlalchemy import func, literal, select, union_all
from sqlalchemy.orm import Session

from service.store.tables import ACTIVE_STATES, Deployment, Event, Job, ReservoirPlan
from service.store.transactions import MOVED

MANY = 500  # deployments that changed: then reading all is as fast

Value = TypeVar("Value")


class Pointer(NamedTuple):
    """The version that a deployment points at."""

    name: str
    uid: str
    base_set: str
    version: int


class Move(NamedTuple):
    """The version that a deployment points at since an event: a rollback is another move."""

    pointer: Pointer
    seq: int  # number of the event; those of a deployment rise


class Snapshot(NamedTuple):
    """The state that a predictor reads several times a second."""

    latest: int  # number of the newest event that it knows of
    moves: Mapping[str, Move]  # by deployment
    reservoirs: Mapping[str, ReservoirPlan]  # by deployment, where there is one
    watches: Mapping[str, str]  # the watch's id by deployment, where there is one
    active_jobs: Mapping[str, int]  # queued or running, by deployment


class WorkerStatus(NamedTuple):
    """A predictor, and what it serves of one deployment."""

    id: str
    pid: int
    host: str
    provider: str | None
    heartbeat_at: float
    version: int | None  # None if it has none yet
    move: int | None  # number of its event; None as well for a worker of an earlier version of the code


def follows(worker: WorkerStatus, seq: int) -> bool:
    """Say if a worker serves a deployment by the move of this number, or by a later one."""
    return worker.move is not None and worker.move >= seq


def look(session: Session, known: Snapshot | None) -> Snapshot:
    """Return what is known now, from what was known before: only deployments are read that events since then tell of.

    Args:
        session: a transaction.
        known: an earlier one; None reads all.
    """
    latest, active = _news(session)
    if known is None or latest < known.latest:  # a backup was restored
        return Snapshot(latest, *pointers(session), active)
    if latest == known.latest:
        return known._replace(active_jobs=active)
    told = select(Event.deployment).where(Event.seq > known.latest).distinct().limit(MANY + 1)
    changed = set(session.scalars(told))
    if len(changed) > MANY:
        return Snapshot(latest, *pointers(session), active)
    moves, reservoirs, watches = pointers(session, changed)
    return Snapshot(
        latest,
        _others(known.moves, changed) | moves,
        _others(known.reservoirs, changed) | reservoirs,
        _others(known.watches, changed) | watches,
        active,
    )


def _others(known: Mapping[str, Value], changed: Collection[str]) -> dict[str, Value]:
    return {name: value for name, value in known.items() if name not in changed}


def pointers(
    session: Session, names: Collection[str] | None = None
) -> tuple[dict[str, Move], dict[str, ReservoirPlan], dict[str, str]]:
    """Return moves, reservoirs and watches by deployment; of these deployments, or of all."""
    pointer = (Deployment.name, Deployment.uid, Deployment.base_set, Deployment.version)
    query = select(*pointer, MOVED.label("moved"), Deployment.reservoir, Deployment.watch)
    rows = session.execute(query if names is None else query.where(Deployment.name.in_(names))).all()
    return (
        {row.name: Move(Pointer(*row[:4]), row.moved) for row in rows},
        {row.name: ReservoirPlan(**row.reservoir) for row in rows if row.reservoir is not None},
        {row.name: row.watch["id"] for row in rows if row.watch is not None},
    )


def _news(session: Session) -> tuple[int, dict[str, int]]:
    """Return the number of the newest event, and how many jobs of which deployment are queued or running."""
    newest = select(literal("").label("deployment"), func.coalesce(func.max(Event.seq), 0))
    active = select(Job.deployment, func.count()).where(Job.state.in_(ACTIVE_STATES)).group_by(Job.deployment)
    counts: dict[str, int] = dict(session.execute(union_all(newest, active)).all())
    return counts.pop(""), counts
