"""Moving deployments to other weights: new ones of their base set, or another base set. Only on request.

Workers that are alive and could not serve the new version stand in the way.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from adapt.documents.soup import Soup
from service.store.clock import is_silent, read_clock
from service.store.database import Database
from service.store.tables import Deployment, Job, SoupVersion, Worker
from service.store.transactions import Conflict, add_soup, get_deployment, get_soup, move

MAX_NAMED = 5  # deployments or workers in a message


class Move(NamedTuple):
    """A deployment that is at a new version, made for the new weights."""

    deployment: str
    from_version: int
    to_version: int


def made_for_other_weights(database: Database, digests: Mapping[str, str]) -> list[str]:
    """Return the deployments whose current soup was made for other weights than those that their base set has here.

    Args:
        database: the registry's.
        digests: of the base sets that are here, by name.
    """
    with database.read() as session:
        return _outdated(session, digests)


def rebase(
    database: Database, defaults: Mapping[str, Soup], *, stale_seconds: float, who: str | None = None
) -> list[Move]:
    """Move deployments whose base set has new weights to a new version, the default soup of these weights.

    The coefficients found for other weights mean nothing for the new ones.

    Args:
        database: the registry's.
        defaults: default soups of the base sets that are here, by name.
        stale_seconds: silence after which a worker counts as gone.
        who: name of the API key that asked.

    Raises:
        Conflict: a live worker has other weights, and could not serve the new versions; nothing was changed.
    """
    digests = {name: soup.base_digest for name, soup in defaults.items()}
    with database.write() as session:
        moves = []
        for name in _outdated(session, digests):
            found = get_deployment(session, name, lock=True)
            default = defaults[found.base_set]
            if get_soup(session, name, found.version).soup["base_digest"] == default.base_digest:
                continue  # another start has moved it while we waited for the lock
            before = found.version
            move(session, found, add_soup(session, name, default, source="default"), kind="rebased", who=who)
            _end_jobs(session, found)
            moves.append((found.base_set, Move(name, before, found.version)))
        wanted = {base_set: digests[base_set] for base_set, _ in moves}
        if others := _workers_with_other_weights(session, wanted, stale_seconds):
            raise Conflict(
                f"expected no live worker with other weights of {listed(wanted)}, found {listed(others)}: stop them, "
                f"wait {stale_seconds:g} s, and try again"
            )
    return [moved for _, moved in moves]


def change_base_set(
    database: Database,
    deployment: str,
    default: Soup,
    *,
    stale_seconds: float,
    is_alone: bool = False,
    who: str | None = None,
) -> Move | None:
    """Move a deployment to a new version, the default soup of another base set; its versions, images and jobs stay.

    Images of another size, or with labels that the new base set lacks, take no part in its adaptations.

    Args:
        database: the registry's.
        deployment: its name.
        default: soup of the other base set.
        stale_seconds: silence after which a worker counts as gone.
        is_alone: refuse while any worker is alive: it may have been told another base set.
        who: name of the API key that asked.

    Returns:
        None if it has that base set already.

    Raises:
        UnknownDeployment: there is none of that name.
        Conflict: a live worker stands in the way; nothing was changed.
    """
    name = default.base_set
    with database.write() as session:
        found = get_deployment(session, deployment, lock=True)
        if found.base_set == name:
            return None
        expected = "no live worker" if is_alone else f"that every live worker has the base set {name!r}"
        alive = _live_workers(session, stale_seconds)
        others = alive if is_alone else [one for one in alive if (one.digests or {}).get(name) != default.base_digest]
        if others:
            raise Conflict(f"expected {expected}, found {listed(map(_named, others))}")
        before, found.base_set = found.version, name
        move(session, found, add_soup(session, deployment, default, source="default"), kind="rebased", who=who)
        _end_jobs(session, found)
        return Move(deployment, before, found.version)


def _end_jobs(session: Session, found: Deployment) -> None:
    """End the jobs that wait for an adapter with the weights of before, which there is none of any more."""
    reason = "the deployment moved to other weights: send the images again"
    waiting = update(Job).where(Job.deployment == found.name, Job.state == "queued")
    values = {"selection": None, "finished_at": read_clock(session), "version": found.version, "reason": reason}
    session.execute(waiting.values(state="failed", **values))


def _outdated(session: Session, digests: Mapping[str, str]) -> list[str]:
    made_for = SoupVersion.soup["base_digest"].as_string()
    current = (SoupVersion.deployment == Deployment.name) & (SoupVersion.version == Deployment.version)
    rows = session.execute(
        select(Deployment.name, Deployment.base_set, made_for).join(SoupVersion, current).order_by(Deployment.name)
    )
    return [name for name, base_set, digest in rows if digests.get(base_set, digest) != digest]


def _workers_with_other_weights(session: Session, wanted: Mapping[str, str], stale_seconds: float) -> list[str]:
    """Return the live workers that have other weights, or do not say which, as those of earlier versions do."""
    return [
        _named(worker)
        for worker in _live_workers(session, stale_seconds)
        if wanted and (worker.digests is None or any(worker.digests.get(n, d) != d for n, d in wanted.items()))
    ]


def _live_workers(session: Session, stale_seconds: float) -> list[Worker]:
    alive = select(Worker).where(~is_silent(Worker.heartbeat_at, stale_seconds))
    return list(session.scalars(alive.order_by(Worker.started_at)))


def _named(worker: Worker) -> str:
    return f"process {worker.pid} on {worker.host}"


def listed(names: Iterable[str]) -> str:
    """Return names for a message: the first few, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return ", ".join(found[:MAX_NAMED]) + more
