"""Which versions and events may be deleted: not versions that are or can be served, nor the events that served them."""

from typing import NamedTuple

from sqlalchemy import Select, and_, delete, exists, func, or_, select
from sqlalchemy.orm import aliased

from service.store.database import Database
from service.store.tables import ACTIVE_STATES, Deployment, Event, Job, SoupVersion
from service.store.transactions import UnknownDeployment, get_deployment

CHUNK = 500  # rows of one statement


class Forgotten(NamedTuple):
    """How much was deleted."""

    versions: int
    events: int


def forget_history(database: Database, *, before: float) -> Forgotten:
    """Delete versions and events from before a time (seconds since 1970) that nobody can miss.

    A version goes if no job that is still listed made it or compares with it, and if it was never served, or was made
    for other weights than the version served now. The served version and the newest one stay.

    An event goes unless it put a version in service that is still stored. The newest of all stays.
    """
    with database.read() as session:
        deployments = {name for name, _ in session.execute(_dispensable(before))}
    versions = 0
    for name in sorted(deployments):
        with database.write() as session:
            try:
                get_deployment(session, name, lock=True)
            except UnknownDeployment:
                continue
            gone = [version for _, version in session.execute(_dispensable(before, name))]
            session.execute(delete(SoupVersion).where(SoupVersion.deployment == name, SoupVersion.version.in_(gone)))
            versions += len(gone)
    return Forgotten(versions, _drop_events(database, before))


def _dispensable(before: float, deployment: str | None = None) -> "Select[str, int]":
    """Return the query for deployment and number of versions that may go; of one deployment, or of all."""
    served, other = aliased(SoupVersion), aliased(SoupVersion)
    served_digest = (
        select(served.soup["base_digest"].as_string())
        .where(served.deployment == Deployment.name, served.version == Deployment.version)
        .correlate(Deployment)
        .scalar_subquery()
    )
    newest = select(func.max(other.version)).where(other.deployment == Deployment.name).correlate(Deployment)
    was_served = exists().where(
        Event.deployment == SoupVersion.deployment,
        Event.to_version == SoupVersion.version,
        Event.at >= Deployment.created_at,
    )
    is_needed = exists().where(
        Job.deployment == SoupVersion.deployment,
        or_(
            Job.id == SoupVersion.job,
            Job.candidate_version == SoupVersion.version,
            and_(Job.state.in_(ACTIVE_STATES), Job.base_version == SoupVersion.version),
        ),
    )
    query = (
        select(SoupVersion.deployment, SoupVersion.version)
        .join(Deployment, Deployment.name == SoupVersion.deployment)
        .where(
            SoupVersion.created_at < before,
            SoupVersion.version != Deployment.version,
            SoupVersion.version < newest.scalar_subquery(),  # so that no number is given twice
            or_(~was_served, SoupVersion.soup["base_digest"].as_string() != served_digest),
            ~is_needed,
        )
    )
    return query if deployment is None else query.where(Deployment.name == deployment)


def _drop_events(database: Database, before: float) -> int:
    put_in_service = (
        exists()
        .where(
            Deployment.name == Event.deployment,
            Deployment.created_at <= Event.at,
            SoupVersion.deployment == Event.deployment,
            SoupVersion.version == Event.to_version,
        )
        .correlate(Event)
    )
    with database.read() as session:
        newest = session.scalar(select(func.max(Event.seq)))
        old = select(Event.seq).where(Event.at < before, Event.seq != newest, ~put_in_service)
        gone = session.scalars(old).all()
    for start in range(0, len(gone), CHUNK):
        with database.write() as session:
            session.execute(delete(Event).where(Event.seq.in_(gone[start : start + CHUNK])))
    return len(gone)
