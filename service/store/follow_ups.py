"""Follow-ups: jobs that search in full, at low priority, on the images for which a quick search has given the answer.

At most one of them waits or runs for each deployment. It ends as soon as its deployment moves, or as newer labelled
images come: it compares with the version that was current when it was queued, and its images are not the newest then.
"""

from sqlalchemy import ColumnElement, exists, select
from sqlalchemy.orm import Session

from service.store.clock import read_clock
from service.store.tables import ACTIVE_STATES, Deployment, Job, new_id


def is_ordinary() -> ColumnElement[bool]:
    """Say of a job that somebody asked for it: it follows no other."""
    return Job.follows.is_(None)


def queue_follow_up(session: Session, found: Deployment, job: Job, selection: bytes | None) -> None:
    """Queue a full search on the images of a quick job that has just ended, unless newer labelled images have come.

    Args:
        session: holds the locks of deployment and job.
        found: the deployment; the follow-up compares with the version that it serves now.
        job: says what else was asked for, and is told its follow-up.
        selection: the labelled images of the job.
    """
    newer = exists().where(
        Job.deployment == found.name,
        Job.seq > job.seq,
        Job.state != "failed",
        is_ordinary(),
        Job.support["n"].as_integer() > 0,
    )
    if session.scalar(select(newer)):
        return
    job.followed_by = new_id()
    session.add(
        Job(
            id=job.followed_by,
            deployment=found.name,
            base_version=found.version,
            strategy=job.strategy,
            promote=job.promote,
            balance=job.balance,
            draw=job.draw,
            effort="full",
            follows=job.id,
            samples_digest=job.samples_digest,
            support=job.support,
            selection=selection,
            who=job.who,
        )
    )


def end_follow_ups(session: Session, found: Deployment, reason: str, *, but: str | None = None) -> None:
    """End the follow-ups of a locked deployment that wait or run; its heartbeat tells the adapter.

    Args:
        session: holds the deployment's lock.
        found: the deployment.
        reason: why, after the word "cancelled".
        but: a job that goes on.
    """
    active = select(Job).where(Job.deployment == found.name, Job.state.in_(ACTIVE_STATES), ~is_ordinary())
    for job in session.scalars(active.with_for_update()).all():
        if job.id != but:
            job.state, job.reason, job.finished_at = "failed", f"cancelled: {reason}", read_clock(session)
            job.selection, job.claimed_by, job.version = None, None, found.version
