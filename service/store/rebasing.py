"""Moving deployments to the new weights of their base set: only on request, and while no worker has other ones."""

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


def _end_jobs(session: Session, found: Deployment) -> None:
    """End the jobs that wait for an adapter with the weights of before, which there is none of any more."""
    reason = "the deployment moved to new weights of its base set: send the images again"
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
    alive = select(Worker).where(~is_silent(Worker.heartbeat_at, stale_seconds))
    return [
        f"process {worker.pid} on {worker.host}"
        for worker in session.scalars(alive.order_by(Worker.started_at))
        if wanted and (worker.digests is None or any(worker.digests.get(n, d) != d for n, d in wanted.items()))
    ]


def listed(names: Iterable[str]) -> str:
    """Return names for a message: the first few, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return ", ".join(found[:MAX_NAMED]) + more
