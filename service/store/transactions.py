"""Reads and changes of deployments and their soup versions, within a transaction."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from adapt.documents.patch import PatchSummary
from adapt.documents.soup import Soup, soup_from_parts
from service.store.database import MAX_INTEGER, is_text
from service.store.follow_ups import end_follow_ups
from service.store.tables import Deployment, Event, ReservoirPlan, SoupVersion, WatchPlan


class UnknownDeployment(KeyError):
    """No deployment of that name."""


class UnknownVersion(KeyError):
    """The deployment has no such soup version."""


class Conflict(ValueError):
    """The deployment is not in the state the caller expected."""


def get_deployment(session: Session, name: str, *, lock: bool = False) -> Deployment:
    """Return a deployment within a transaction, locked if asked for.

    Raises:
        UnknownDeployment: there is none of that name.
    """
    found = session.get(Deployment, name, with_for_update=lock or None) if is_text(name) else None
    if found is None:
        raise UnknownDeployment(name)
    return found


def plan_of(deployment: Deployment) -> ReservoirPlan | None:
    """Return the reservoir of a deployment, None if it is off."""
    return None if deployment.reservoir is None else ReservoirPlan(**deployment.reservoir)


def watch_of(deployment: Deployment) -> WatchPlan | None:
    """Return the watch of a deployment, None if it is off."""
    return None if deployment.watch is None else WatchPlan(**deployment.watch)


# A part of queries on deployments: number of the event that made the current version current.
MOVED = (
    select(Event.seq)
    .where(Event.deployment == Deployment.name, Event.to_version.is_not(None))
    .order_by(Event.seq.desc())
    .limit(1)
    .correlate(Deployment)
    .scalar_subquery()
)


def last_move(session: Session, found: Deployment) -> Event:
    """Return the event that made a deployment's current version current."""
    moves = select(Event).where(Event.deployment == found.name, Event.to_version.is_not(None))
    return session.scalars(moves.order_by(Event.seq.desc()).limit(1)).one()


def get_soup(session: Session, deployment: str, version: int) -> SoupVersion:
    """Return a soup version within a transaction.

    Raises:
        UnknownVersion: the deployment has no such version.
    """
    found = session.get(SoupVersion, (deployment, version)) if version <= MAX_INTEGER else None
    if found is None:
        raise UnknownVersion(version)
    return found


def soup_of(row: SoupVersion, *, patch: bool = True, held_out: bool = False) -> Soup:
    """Return the soup of a row, within the transaction that read it: the bytes beside the document are read only now.

    Args:
        row: a version.
        patch: with its patch, which can be megabytes.
        held_out: with its held-out answers.
    """
    wanted = {"patch": patch, "held_out": held_out}
    document = row.soup | {part: None for part, is_wanted in wanted.items() if not is_wanted}
    patch_data, answers = (None if document.get(part) is None else getattr(row, part) for part in wanted)
    return soup_from_parts(document, patch_data, answers)


def is_served_by(row: SoupVersion, soup: Soup) -> bool:
    """Say if a version serves the same network as a soup; patches are compared by their digests."""
    told = {"evidence": None, "held_out": None, "patch": None}  # no part of the network, or compared apart
    if soup.model_copy(update=told) != soup_of(row, patch=False).model_copy(update=told):
        return False
    found = row.soup.get("patch")
    return (soup.patch and soup.patch.summary) == (found and PatchSummary.model_validate(found))


def add_soup(session: Session, deployment: str, soup: Soup, *, source: str, job: str | None = None) -> int:
    """Insert a version; the caller holds the deployment's lock, so numbers are not given twice."""
    latest = session.scalar(select(func.max(SoupVersion.version)).where(SoupVersion.deployment == deployment)) or 0
    session.add(
        SoupVersion(
            deployment=deployment,
            version=latest + 1,
            soup=soup.model_dump(mode="json"),
            patch=None if soup.patch is None else soup.patch.data,
            held_out=None if soup.held_out is None else soup.held_out.data,
            source=source,
            job=job,
        )
    )
    return latest + 1


def move(
    session: Session,
    found: Deployment,
    version: int,
    *,
    kind: str,
    job: str | None = None,
    who: str | None = None,
    unproven: bool = False,
    reason: str | None = None,
) -> None:
    """Point a locked deployment at another version and append the event; its follow-ups, but `job`, end with that."""
    session.add(
        Event(
            deployment=found.name,
            kind=kind,
            from_version=found.version,
            to_version=version,
            job=job,
            who=who,
            reason=reason,
            unproven=unproven,
        )
    )
    found.version = version
    end_follow_ups(session, found, f"the deployment moved to version {version} ({kind})", but=job)
