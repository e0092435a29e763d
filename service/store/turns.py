"""Whose turn it is: which queued job an adapter takes next. Follow-ups come after all that somebody asked for."""

from collections.abc import Collection

from sqlalchemy import ColumnElement, Select, case, exists, func, select, true

from service.store.follow_ups import is_ordinary
from service.store.tables import Job, SoupVersion


def next_job(digests: Collection[str] | None) -> Select[Job]:
    """Return the query for the job whose turn it is, locked; of those whose base version has one of these digests."""
    waiting = select(Job.deployment).where(Job.state == "queued")
    worked_at = func.max(Job.heartbeat_at).filter(is_ordinary())  # nobody waits longer because of a follow-up
    turns = (
        select(Job.deployment, worked_at.label("worked_at"), func.max(Job.heartbeat_at).label("followed_at"))
        .where(Job.deployment.in_(waiting))
        .group_by(Job.deployment)
        .subquery()
    )
    queued = select(Job).join(turns, turns.c.deployment == Job.deployment)
    return (
        queued.where(Job.state == "queued", is_made_for(digests))
        .order_by(
            case((is_ordinary(), 0), else_=1),
            case((is_ordinary(), turns.c.worked_at), else_=turns.c.followed_at).asc().nulls_first(),
            Job.seq,
        )
        .limit(1)
        .with_for_update(of=Job, skip_locked=True)
    )


def is_made_for(digests: Collection[str] | None) -> ColumnElement[bool]:
    """Say of a job if its base version was made for one of these weights; None: for any."""
    if digests is None:
        return true()
    base = (SoupVersion.deployment == Job.deployment) & (SoupVersion.version == Job.base_version)
    return exists().where(base, SoupVersion.soup["base_digest"].as_string().in_(digests))
