"""Watches: deployments that go back by themselves when what was promoted turns out badly."""

from typing import NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.store.confidence import NOTHING, Collapse, Tally, WatchState, observe, start
from service.store.database import Database
from service.store.sums import take_sums, waiting_watches
from service.store.tables import WATCH, ConfidenceSum, Deployment, Event, WatchPlan, new_id
from service.store.transactions import get_deployment, last_move, move, watch_of


class Suspect(NamedTuple):
    """A version of a watched deployment that is judged."""

    version: int
    against: int  # the version that it replaced
    event: int  # number of the event that made it current
    since: float  # when that was, seconds since 1970


class Rollback(NamedTuple):
    """A version that is to be rolled back, or was, and why."""

    suspect: Suspect
    reason: str


class WatchStatus(NamedTuple):
    """A watch, and what was seen."""

    plan: WatchPlan
    against: int | None  # the version that the current one is judged against
    before: Tally  # of that one
    recent: Tally  # of the current one


class Watches:
    """The watches of all deployments."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def switch_on(self, deployment: str, min_images: int, confidence_drop: float, *, who: str | None = None) -> bool:
        """Watch a deployment, or change how, which forgets what was seen; return False if it was watched already.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.write() as session:
            found = get_deployment(session, deployment, lock=True)
            before = watch_of(found)
            if before is None or before[1:] != (min_images, confidence_drop):
                _exchange(session, found, WatchPlan(new_id(), min_images, confidence_drop), who)
            return before is None

    def switch_off(self, deployment: str, *, who: str | None = None) -> None:
        """Watch a deployment no more.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.write() as session:
            _exchange(session, get_deployment(session, deployment, lock=True), None, who)

    def waiting(self) -> list[str]:
        """Return the watched deployments that workers have reported confidences of."""
        with self._database.read() as session:
            if not (reported := waiting_watches(session)):
                return []
            rows = session.execute(select(Deployment.name, Deployment.watch).where(Deployment.watch.is_not(None)))
            return [name for name, plan in rows if plan["id"] in reported]

    def judge(self, deployment: str) -> Rollback | None:
        """Take in what workers reported of a deployment; if its confidence collapsed, put it back.

        One transaction under the deployment's lock: the judged version is the current one until it is done.

        Returns:
            The change; None if there was none.
        """
        with self._database.write(is_durable=False) as session:  # after a power cut it is seen, and done, again
            found = session.get(Deployment, deployment, with_for_update=True)
            plan = None if found is None else watch_of(found)
            if found is None or plan is None:
                return None
            moved = last_move(session, found)
            state = state_of(found)
            if state is None or state.event != moved.seq:
                state = start(state, event=moved.seq, version=found.version, against=replaced(moved))
            state, collapse = observe(
                state, take_sums(session, plan.id), min_images=plan.min_images, drop=plan.confidence_drop
            )
            found.watch_state = state.model_dump(mode="json")
            if collapse is None or state.against is None:
                return None
            suspect = Suspect(state.version, state.against, moved.seq, moved.at)
            rollback = Rollback(suspect, _why(suspect, collapse))
            put_back(session, found, rollback)
            return rollback

    def suspect(self, deployment: str) -> Suspect | None:
        """Return what is to be judged by labelled images; None if the deployment is not watched, or nothing is.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.read() as session:
            found = get_deployment(session, deployment)
            if found.watch is None:
                return None
            moved = last_move(session, found)
            against = replaced(moved)
            return None if against is None else Suspect(found.version, against, moved.seq, moved.at)

    def status(self, deployment: str) -> WatchStatus | None:
        """Return how a deployment is watched and what was seen of its current version; None if it is not watched.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.read() as session:
            found = get_deployment(session, deployment)
            plan, state, moved = watch_of(found), state_of(found), last_move(session, found)
        if plan is None:
            return None
        before, recent = NOTHING, NOTHING
        if state is not None and state.event == moved.seq:
            before, recent = state.before, state.recent
        return WatchStatus(plan, replaced(moved), before, recent)

    def sweep(self) -> None:
        """Delete what workers reported of watches that had just been switched off."""
        with self._database.read() as session:
            reported = waiting_watches(session)
            rows = session.scalars(select(Deployment.watch).where(Deployment.watch.is_not(None)))
            gone = reported - {plan["id"] for plan in rows if plan is not None}  # looked at later than `reported`
        if gone:
            with self._database.write() as session:
                session.execute(delete(ConfidenceSum).where(ConfidenceSum.watch.in_(gone)))


def state_of(found: Deployment) -> WatchState | None:
    """Return what is known of a watched version; it need not be the current one any more."""
    return None if found.watch_state is None else WatchState.model_validate(found.watch_state)


def replaced(moved: Event) -> int | None:
    """Return the version that an event replaced by one that has yet to prove itself; None if it did not.

    A rollback is not judged: neither the watch's own, nor an older version that somebody chose. If somebody serves a
    newer version by hand, also one that the watch rolled back, it is judged by the answers from then on.
    """
    forward = (moved.from_version or 0) < (moved.to_version or 0)
    is_judged = moved.kind in ("promoted", "dial") or (moved.kind == "rollback" and moved.who != WATCH and forward)
    return moved.from_version if is_judged else None


def put_back(session: Session, found: Deployment, rollback: Rollback, *, job: str | None = None) -> None:
    """Point a locked deployment at the version before."""
    move(session, found, rollback.suspect.against, kind="rollback", job=job, who=WATCH, reason=rollback.reason)


def is_still(session: Session, found: Deployment, suspect: Suspect) -> bool:
    """Say if a locked deployment is watched and has not moved since a version was judged."""
    return found.watch is not None and last_move(session, found).seq == suspect.event


def _exchange(session: Session, found: Deployment, plan: WatchPlan | None, who: str | None) -> None:
    before = watch_of(found)
    if before is not None:
        take_sums(session, before.id)
    found.watch, found.watch_state = None if plan is None else plan._asdict(), None
    if before != plan:
        session.add(Event(deployment=found.name, kind="watch_off" if plan is None else "watch_on", who=who))


def _why(suspect: Suspect, collapse: Collapse) -> str:
    before, now = collapse.before, collapse.now
    return (
        f"confidence collapsed: mean {now.mean:.3f} over the last {now.n} images of version {suspect.version}, "
        f"{before.mean:.3f} over the last {before.n} of version {suspect.against} before it (z = {collapse.z:.1f})"
    )
