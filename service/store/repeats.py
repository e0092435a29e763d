"""Requests that an earlier job answers: the same samples against the same version are not searched on again."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.store.tables import ACTIVE_STATES, Deployment, Job

SUPERSEDED = "superseded"


def earlier_answer(
    session: Session,
    found: Deployment,
    *,
    samples_digest: str,
    strategy: str,
    promote: str,
    balance: str,
    draw: str,
    effort: str,
) -> Job | None:
    """Return the job of a locked deployment that already answers a request; None if there is none.

    The same samples against the same version return the earlier decision, so that nobody retries until it
    promotes; with `promote` "always" or "never" only for the same strategy too, as nothing is gained by retrying.
    Another `balance` or `draw` asks for something else: who is to be served better, what labels may be asked about.

    A job answers a request for less effort than its own, too, once it has ended: nobody waits for more than was asked
    for. Where a follow-up would answer, the job that it follows does, unless the request is for a full search.
    """
    same = select(Job).where(
        Job.deployment == found.name,
        Job.samples_digest == samples_digest,
        Job.base_version == found.version,
        Job.promote == promote,
        Job.balance == balance,
        Job.draw == draw,
        Job.state.in_((*ACTIVE_STATES, "kept")),
        (Job.reason.is_(None)) | (Job.reason != SUPERSEDED),
    )
    if promote in ("always", "never"):
        same = same.where(Job.strategy == strategy)
    is_full = Job.effort == "full"
    if effort == "full":
        same = same.where(is_full)
    else:
        is_as_quick = Job.effort.in_(("auto",) if effort == "auto" else ("auto", "quick"))
        same = same.where(is_as_quick | (is_full & ((Job.state == "kept") | Job.follows.is_not(None))))
    earlier = session.scalar(same.order_by(Job.seq).limit(1))
    if earlier is None or earlier.follows is None or effort == "full":
        return earlier
    return session.scalar(select(Job).where(Job.id == earlier.follows)) or earlier
