"""The queue of adaptations: a table, claimed by one adapter at a time, that outlives every process."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.orm import Session

from adapt.documents.landscape import Landscape
from adapt.documents.soup import Outcome, Soup, SupportSummary
from service.store.clock import Now, is_silent, read_clock
from service.store.database import Database, is_text
from service.store.follow_ups import end_follow_ups, is_ordinary, queue_follow_up
from service.store.keeping import mark_used
from service.store.material import unpack_selection
from service.store.repeats import SUPERSEDED, earlier_answer
from service.store.tables import ROLLED_BACK_TO, Deployment, Job, SoupVersion
from service.store.transactions import Conflict, add_soup, get_deployment, get_soup, is_served_by, move, soup_of
from service.store.turns import is_made_for, next_job
from service.store.watches import Rollback, is_still, put_back

MAX_ATTEMPTS = 2  # a job whose worker died is tried once more
QUEUE_LOCK = 0x5A_0C_1E  # of PostgreSQL's advisory locks, held by who counts the jobs that wait, and adds one
LANDSCAPE = "landscape"  # beside the fields of the outcome in a job's row


class QueueFull(RuntimeError):
    """Too many jobs wait already."""


class UnknownJob(KeyError):
    """The deployment has no such job."""


class JobQueue:
    """Adaptations in the registry's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, job: str) -> Job | None:
        """Return a job, or None."""
        with self._database.read() as session:
            return session.scalar(select(Job).where(Job.id == job)) if is_text(job) else None

    def check_room(self, max_queued: int) -> None:
        """Look whether another job may be queued: `add_job` decides, but much can be saved by asking before.

        Raises:
            QueueFull: `max_queued` jobs wait already.
        """
        with self._database.read() as session:
            _check_room(session, max_queued)

    def forget(self, *, older_than: float) -> int:
        """Delete jobs that ended more than a number of seconds ago; return how many.

        The job stays that made the version which its deployment serves.
        """
        is_behind = exists().where(
            SoupVersion.job == Job.id,
            SoupVersion.deployment == Deployment.name,
            SoupVersion.version == Deployment.version,
            Deployment.name == Job.deployment,
        )
        unseen = {"synchronize_session": False}  # no row of theirs is held in memory
        with self._database.write() as session:
            old = delete(Job).where(Job.finished_at < Now() - older_than, ~is_behind).returning(Job.seq)
            return len(session.execute(old, execution_options=unseen).all())

    def latest(self, deployment: str, *, limit: int, before: str | None = None) -> Sequence[Job]:
        """Return the newest jobs of a deployment, newest first.

        Args:
            deployment: its name.
            limit: most of them.
            before: a job; only earlier ones.

        Raises:
            UnknownDeployment: there is none of that name.
            UnknownJob: it has no job `before`.
        """
        wanted = select(Job).where(Job.deployment == deployment).order_by(Job.seq.desc()).limit(limit)
        with self._database.read() as session:
            get_deployment(session, deployment)
            if before is not None:
                named = select(Job.seq).where(Job.deployment == deployment, Job.id == before)
                if (seq := session.scalar(named) if is_text(before) else None) is None:
                    raise UnknownJob(before)
                wanted = wanted.where(Job.seq < seq)
            return session.scalars(wanted).all()

    def ids(self) -> set[str]:
        """Return the ids of all jobs."""
        with self._database.read() as session:
            return set(session.scalars(select(Job.id)))

    def claim(self, owner: str, *, stale_seconds: float, digests: Collection[str] | None = None) -> Job | None:
        """Take a queued job for `owner`, or return None.

        Deployments take turns: the oldest job of the one that was worked on least recently comes first. Jobs whose base
        version was made for weights other than those in `digests` are left for adapters that have them; None takes all.

        Before that, running jobs whose heartbeat is older than `stale_seconds` go back to the queue, or fail if it is
        not the first time. A job that compares with its base version gets the number of that comparison, and keeps it
        if it is put back.
        """
        with self._database.read() as session:  # nothing to do, mostly: then nobody is locked out
            is_of_interest = (Job.state == "running") | ((Job.state == "queued") & is_made_for(digests))
            if session.scalar(select(Job.seq).where(is_of_interest).limit(1)) is None:
                return None
        with self._database.write() as session:
            now = read_clock(session)
            stale = (Job.state == "running") & is_silent(Job.heartbeat_at, stale_seconds)
            session.execute(
                update(Job).where(stale, Job.attempts < MAX_ATTEMPTS).values(state="queued", claimed_by=None)
            )
            session.execute(
                update(Job)
                .where(stale)
                .values(
                    state="failed",
                    selection=None,
                    finished_at=now,
                    version=select(Deployment.version).where(Deployment.name == Job.deployment).scalar_subquery(),
                    reason=f"the adapter stopped {MAX_ATTEMPTS} times while it worked on this job",
                )
            )
            job = session.scalar(next_job(digests))
            if job is None:
                return None
            job.state, job.claimed_by, job.heartbeat_at = "running", owner, now
            job.attempts += 1
            job.started_at = job.started_at or now
            job.progress, job.message = 0.0, ""
            if job.attempt is None and _compares(job):
                job.attempt = _next_attempt(session, job)
            return job

    def earlier(self, job: Job, hashes: Sequence[str]) -> tuple[int, ...]:
        """Return how many labelled images the earlier attempts against a job's base version had, the latest last.

        0 stands for an attempt whose images are not all among those of the next one, and for one of which that is not
        known: its candidate was the base version, or its job was forgotten, or its labels were used otherwise.

        Args:
            job: with an attempt, or without.
            hashes: of the job's labelled images.
        """
        if job.attempt is None or job.attempt == 1:
            return ()
        sizes = dict.fromkeys(range(1, job.attempt), 0)
        later = set(hashes)
        rows = select(Job.attempt, Job.candidate_version, Job.support).where(
            Job.deployment == job.deployment,
            Job.base_version == job.base_version,
            Job.balance == job.balance,
            Job.draw == job.draw,
            Job.attempt < job.attempt,
        )
        with self._database.read() as session:
            for attempt, version, support in session.execute(rows.order_by(Job.attempt.desc())):
                if version is None or version == job.base_version:
                    continue
                candidate = soup_of(get_soup(session, job.deployment, version), patch=False, held_out=True)
                images = set() if candidate.held_out is None else set(candidate.held_out.answers().hashes)
                if images and images <= later:
                    sizes[attempt], later = support["n"], images
        return tuple(sizes.values())

    def beat(self, job: Job, *, progress: float, message: str) -> bool:
        """Say that a job is being worked on; False if it is no longer the caller's."""
        with self._database.write(is_durable=False) as session:
            mine = session.execute(
                update(Job)
                .where(Job.seq == job.seq, Job.state == "running", Job.claimed_by == job.claimed_by)
                .where(Job.attempts == job.attempts)
                .values(heartbeat_at=Now(), progress=progress, message=message)
                .returning(Job.seq)
            )
            return mine.first() is not None

    def is_somebody_waiting(self, digests: Collection[str] | None = None) -> bool:
        """Say if a job waits that somebody asked for, of those that `claim` with these digests may take."""
        waiting = (Job.state == "queued") & is_ordinary() & is_made_for(digests)
        with self._database.read() as session:
            return session.scalar(select(Job.seq).where(waiting).limit(1)) is not None

    def cancel(self, job: str, *, who: str | None = None) -> Job | None:
        """End a job that waits or runs, and return it; None if there is none. `beat` tells the adapter.

        Raises:
            Conflict: it has ended already.
        """
        with self._database.write() as session:
            row = session.scalar(select(Job).where(Job.id == job).with_for_update()) if is_text(job) else None
            if row is not None:
                if row.is_finished:
                    raise Conflict(f"the job has ended already: {row.state}")
                _end(session, row, "cancelled" if who is None else f"cancelled by {who}")
                row.claimed_by = None
            return row

    def release(self, job: Job) -> None:
        """Put a job back because its worker stops in good order; this does not count as an attempt."""
        with self._database.write() as session:
            if mine := _mine(session, job):
                mine.state, mine.claimed_by, mine.attempts = "queued", None, mine.attempts - 1

    def fail(self, job: Job, reason: str) -> None:
        """End a job that cannot be done."""
        with self._database.write() as session:
            if mine := _mine(session, job):
                _end(session, mine, reason)

    def finish(
        self,
        job: Job,
        candidate: Soup,
        outcome: Outcome,
        landscape: Landscape | None = None,
        *,
        rollback: Rollback | None = None,
        is_more_to_try: bool = False,
    ) -> Job | None:
        """Store the candidate with its evidence and, if the evidence says so, point the deployment at it.

        One transaction. If the deployment moved on since the job was accepted, the candidate is kept and the reason is
        "superseded".

        A job of effort "auto" is followed by a full search if there is more to try, unless the deployment moved by
        other means than its own promotion.

        Args:
            job: as it was claimed.
            candidate: what was found.
            outcome: its evidence.
            landscape: of the search.
            rollback: the watch's verdict by the job's images, if it rolls back the current version: done unless the
                candidate is promoted, or the deployment moved or is not watched any more.
            is_more_to_try: rungs were left out that take long.

        Returns:
            The finished job, also if an earlier call finished it and its answer was lost; None if it is no longer the
            caller's (it was cancelled, or taken for dead) or its deployment is gone.
        """
        with self._database.write() as session:
            # The deployment is locked before the job, as by whoever deletes both: none waits for the other for ever.
            found = session.get(Deployment, job.deployment, with_for_update=True)
            mine = _mine(session, job)
            if found is None or mine is None:
                return _ended_by(session, job)
            is_new = not is_served_by(get_soup(session, mine.deployment, mine.base_version), candidate)
            version = mine.base_version
            if is_new:
                version = add_soup(session, mine.deployment, candidate, source="adapt", job=mine.id)
            mine.candidate_version = version
            selection, mine.selection = mine.selection, None
            mark_used(session, mine.deployment, unpack_selection(selection or b""))
            mine.outcome = outcome.model_dump(mode="json") | _landscape(landscape)
            mine.state, mine.reason, mine.progress = "kept", outcome.reason, 1.0
            mine.finished_at = read_clock(session)
            if outcome.state == "promoted" and found.version != mine.base_version:
                mine.reason = SUPERSEDED
            elif outcome.state == "promoted" and is_new:
                mine.state, mine.previous_version = "promoted", found.version
                proven = mine.promote != "always" and _is_proven(outcome)
                move(session, found, version, kind="promoted", job=mine.id, who=mine.who, unproven=not proven)
            elif rollback is not None and is_still(session, found, rollback.suspect):
                put_back(session, found, rollback, job=mine.id)
                mine.outcome = mine.outcome | {ROLLED_BACK_TO: found.version}
                mine.reason = f"rolled back to version {found.version}: {rollback.reason}; the candidate: {mine.reason}"
            mine.version = found.version
            is_current = found.version == mine.base_version or mine.state == "promoted"
            if is_more_to_try and is_current and mine.effort == "auto":
                queue_follow_up(session, found, mine, selection)
            return mine

    def keep_landscape(self, job: Job, landscape: Landscape) -> None:
        """Replace the landscape of a finished job, if the job is still there."""
        with self._database.write() as session:
            row = session.scalar(select(Job).where(Job.seq == job.seq).with_for_update())
            if row is not None and row.outcome is not None:
                row.outcome = row.outcome | _landscape(landscape)


def landscape_of(job: Job) -> Landscape | None:
    """Return the soups that the search of a job evaluated; None without labels, or if it is not over."""
    found = (job.outcome or {}).get(LANDSCAPE)
    return None if found is None else Landscape.model_validate(found)


def _landscape(landscape: Landscape | None) -> dict[str, Any]:
    return {} if landscape is None else {LANDSCAPE: landscape.model_dump(mode="json")}


def _check_room(session: Session, max_queued: int) -> None:
    waiting = select(func.count()).select_from(Job).where(Job.state == "queued", is_ordinary())
    if (session.scalar(waiting) or 0) >= max_queued:
        raise QueueFull


def add_job(
    session: Session,
    found: Deployment,
    *,
    job: str,
    strategy: str,
    promote: str,
    balance: str = "none",
    effort: str = "auto",
    draw: str = "any",
    samples_digest: str,
    support: SupportSummary,
    max_queued: int,
    samples: dict[str, Any] | None = None,
    selection: bytes | None = None,
    who: str | None = None,
) -> Job:
    """Queue an adaptation of a locked deployment, or return the one that already answers it: see `earlier_answer`.

    New labelled images end the full search on earlier ones that follows a quick one.

    Returns:
        A job whose `id` is `job` if it was queued now, another one if there was an earlier one.

    Raises:
        QueueFull: `max_queued` jobs wait already.
    """
    asked = {"strategy": strategy, "promote": promote, "balance": balance, "draw": draw, "effort": effort}
    if earlier := earlier_answer(session, found, samples_digest=samples_digest, **asked):
        return earlier
    if session.get_bind().dialect.name == "postgresql":  # others queue at the same time; on SQLite there is one writer
        session.execute(select(func.pg_advisory_xact_lock(QUEUE_LOCK)))
    _check_room(session, max_queued)
    queued = Job(
        id=job,
        deployment=found.name,
        base_version=found.version,
        strategy=strategy,
        promote=promote,
        balance=balance,
        effort=effort,
        draw=draw,
        samples_digest=samples_digest,
        support=support.model_dump(mode="json"),
        samples=samples,
        selection=selection,
        who=who,
    )
    if support.n:
        end_follow_ups(session, found, f"newer labelled images came, with job {job}")
    session.add(queued)
    return queued


def _end(session: Session, row: Job, reason: str) -> None:
    """End a locked job without a result."""
    row.state, row.reason, row.finished_at = "failed", reason, read_clock(session)
    row.selection = None
    row.version = get_deployment(session, row.deployment).version


def _mine(session: Session, job: Job) -> Job | None:
    """Return the row of a job if the caller still works on it, locked."""
    row = session.scalar(select(Job).where(Job.seq == job.seq).with_for_update())
    owned = row is not None and (row.state, row.claimed_by, row.attempts) == ("running", job.claimed_by, job.attempts)
    return row if owned else None


def _ended_by(session: Session, job: Job) -> Job | None:
    """Return the row of a job that the caller has finished."""
    row = session.scalar(select(Job).where(Job.seq == job.seq))
    is_ours = row is not None and (row.claimed_by, row.attempts) == (job.claimed_by, job.attempts)
    return row if is_ours and row is not None and row.candidate_version is not None else None


def _compares(job: Job) -> bool:
    """Say if a job tests its candidate on labelled images. With "always" no test decides, so none is counted."""
    return job.promote != "always" and job.support.get("n", 0) > 0


def _next_attempt(session: Session, job: Job) -> int:
    """Return the number of the next comparison with a job's base version; no number is given twice."""
    base = (SoupVersion.deployment == job.deployment) & (SoupVersion.version == job.base_version)
    count = update(SoupVersion).where(base).values(attempts=SoupVersion.attempts + 1).returning(SoupVersion.attempts)
    return session.scalars(count, execution_options={"synchronize_session": False}).one()


def _is_proven(outcome: Outcome) -> bool:
    """Say if the test on held-out images, at the level of its attempt, is behind a promotion."""
    accuracy, level = outcome.accuracy, outcome.level
    return accuracy is not None and level is not None and accuracy.p_value < level
