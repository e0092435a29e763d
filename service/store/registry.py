"""The registry: deployments, immutable soup versions, events, workers. Every change is one transaction."""

from collections.abc import Iterable, Sequence

from sqlalchemy import delete, func, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from adapt.documents.soup import Soup
from service.store.clock import Now, is_silent, read_clock
from service.store.database import MAX_INTEGER, Database, is_text
from service.store.moves import Move, Pointer, Snapshot, WorkerStatus, follows, look, pointers
from service.store.retention import Forgotten, forget_history
from service.store.sums import Sums, add_sums, take_sums
from service.store.tables import (
    Deployment,
    Event,
    Job,
    Pack,
    ReservoirPlan,
    Sample,
    SoupVersion,
    Worker,
    new_id,
)
from service.store.transactions import (
    MOVED,
    Conflict,
    UnknownDeployment,
    add_soup,
    get_deployment,
    get_soup,
    move,
    plan_of,
    soup_of,
    watch_of,
)

CHUNK = 400  # versions in one statement


class Registry:
    """Deployments, their soup versions, and the predictors that serve them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Deployments and soups

    def snapshot(self, known: Snapshot | None = None) -> Snapshot:
        """Return all pointers, and how many jobs are queued or running.

        Args:
            known: an earlier one, so that only deployments are read that events since then tell of. None reads all.
        """
        with self._database.read() as session:
            return look(session, known)

    def move(self, name: str) -> Move:
        """Return what a deployment points at.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.read() as session:
            moves, _, _ = pointers(session, [name] if is_text(name) else [])
        if name not in moves:
            raise UnknownDeployment(name)
        return moves[name]

    def is_latest(self, move: Move) -> bool:
        """Say if a deployment still points at what a move made it point at."""
        with self._database.read() as session:
            return pointers(session, [move.pointer.name])[0].get(move.pointer.name) == move

    def deployments(self, *, limit: int | None = None, before: str | None = None) -> Sequence[Deployment]:
        """Return the deployments by name.

        Args:
            limit: most of them; None for all.
            before: only names after this one, where the page before ended.
        """
        wanted = select(Deployment).order_by(Deployment.name).limit(limit)
        if before is not None:
            wanted = wanted.where(Deployment.name > before.partition("\0")[0])  # no name has a NUL, or could be between
        with self._database.read() as session:
            return session.scalars(wanted).all()

    def deployment(self, name: str) -> Deployment:
        """Return a deployment.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.read() as session:
            return get_deployment(session, name)

    def deployment_moved(self, name: str) -> tuple[Deployment, int]:
        """Return a deployment, and the number of the event that made its version current.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.read() as session:
            query = select(Deployment, MOVED).where(Deployment.name == name)
            found = session.execute(query).first() if is_text(name) else None
        if found is None:
            raise UnknownDeployment(name)
        return found[0], found[1]

    def ensure_deployment(self, name: str, default: Soup, *, who: str | None = None) -> bool:
        """Make a deployment whose version 1 is the default soup of a base set, unless it is there already.

        Args:
            name: of the deployment.
            default: soup of the base set.
            who: name of the API key that asked, here and below; None if there are no keys.

        Returns:
            True if it was made, False if it was there.

        Raises:
            Conflict: it is there with another base set.
        """
        try:
            return self._ensure_deployment(name, default, who)
        except IntegrityError:  # another process has made it since we looked
            return self._ensure_deployment(name, default, who)

    def _ensure_deployment(self, name: str, default: Soup, who: str | None) -> bool:
        with self._database.write() as session:
            found = session.get(Deployment, name, with_for_update=True)
            if found is None:
                session.add(Deployment(name=name, base_set=default.base_set, version=1))
                session.flush()
                add_soup(session, name, default, source="default")
                session.add(Event(deployment=name, kind="created", to_version=1, who=who))
                return True
            if found.base_set != default.base_set:
                raise Conflict(f"deployment {name!r} serves base set {found.base_set!r}, not {default.base_set!r}")
            return False

    def delete_deployment(self, name: str, *, who: str | None = None) -> list[str]:
        """Delete a deployment with its soups, jobs and samples; return the jobs.

        The objects of jobs and samples stay in the store until the caller deletes them.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.write() as session:
            found = get_deployment(session, name, lock=True)
            jobs = list(session.scalars(select(Job.id).where(Job.deployment == name)))
            if (watch := watch_of(found)) is not None:
                take_sums(session, watch.id)
            session.execute(update(Pack).where(Pack.owner == found.uid).values(is_stale=True))
            session.execute(delete(Sample).where(Sample.deployment == name))
            session.execute(delete(Job).where(Job.deployment == name))
            session.execute(delete(SoupVersion).where(SoupVersion.deployment == name))
            session.delete(found)
            session.add(Event(deployment=name, kind="deleted", from_version=found.version, who=who))
            return jobs

    def soup(self, deployment: str, version: int, *, held_out: bool = False) -> Soup:
        """Return one soup version; UnknownVersion if there is none. Only a search needs its held-out answers."""
        with self._database.read() as session:
            return soup_of(get_soup(session, deployment, version), held_out=held_out)

    def soup_version(self, deployment: str, version: int) -> SoupVersion:
        """Return the row of one soup version, without the bytes beside its document: a patch may have megabytes.

        Raises:
            UnknownVersion: the deployment has no such version.
        """
        with self._database.read() as session:
            return get_soup(session, deployment, version)

    def soups(self, deployment: str, *, limit: int | None = None, before: int | None = None) -> Sequence[SoupVersion]:
        """Return the versions, newest first.

        Args:
            deployment: its name.
            limit: most of them; None for all.
            before: only lower versions.

        Raises:
            UnknownDeployment: there is no such deployment.
        """
        mine = SoupVersion.deployment == deployment
        wanted = select(SoupVersion).where(mine).order_by(SoupVersion.version.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(SoupVersion.version < min(before, MAX_INTEGER))
        with self._database.read() as session:
            get_deployment(session, deployment)
            return session.scalars(wanted).all()

    def base_digests(self, pointers: Iterable[Pointer]) -> dict[Pointer, str]:
        """Return for which weights the versions were made; those that are not there are left out."""
        wanted = {(pointer.name, pointer.version): pointer for pointer in pointers}
        keys, found = list(wanted), dict[Pointer, str]()
        key = tuple_(SoupVersion.deployment, SoupVersion.version)
        digests = select(SoupVersion.deployment, SoupVersion.version, SoupVersion.soup["base_digest"].as_string())
        with self._database.read() as session:
            for start in range(0, len(keys), CHUNK):
                rows = session.execute(digests.where(key.in_(keys[start : start + CHUNK])))
                found |= {wanted[name, version]: digest for name, version, digest in rows}
        return found

    def versions(self, deployment: str, *, base_digest: str) -> list[int]:
        """Return the numbers of the versions that were made for these weights, oldest first."""
        made_for = SoupVersion.soup["base_digest"].as_string()
        with self._database.read() as session:
            return list(
                session.scalars(
                    select(SoupVersion.version)
                    .where(SoupVersion.deployment == deployment, made_for == base_digest)
                    .order_by(SoupVersion.version)
                )
            )

    def events(self, deployment: str, *, limit: int, before: int | None = None) -> Sequence[Event]:
        """Return what happened to the deployments of a name, newest first; deleting one does not end that.

        Args:
            deployment: the name.
            limit: most events.
            before: only events with a lower number.
        """
        if not is_text(deployment):
            return []
        wanted = select(Event).where(Event.deployment == deployment).order_by(Event.seq.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(Event.seq < min(before, MAX_INTEGER))
        with self._database.read() as session:
            return session.scalars(wanted).all()

    def forget(self, *, older_than: float) -> Forgotten:
        """Delete versions and events older than so many seconds that nobody can miss: see `service.store.retention`."""
        with self._database.read() as session:
            before = read_clock(session) - older_than
        return forget_history(self._database, before=before)

    def point_at(
        self, deployment: str, version: int, *, expected_version: int | None = None, who: str | None = None
    ) -> Deployment:
        """Point a deployment at an existing version: a rollback (or the way back).

        Raises:
            UnknownDeployment, UnknownVersion: there is no such thing.
            Conflict: the current version is not `expected_version`.
        """
        with self._database.write() as session:
            found = get_deployment(session, deployment, lock=True)
            _check_expected(found, expected_version)
            get_soup(session, deployment, version)
            if found.version != version:
                was_served = session.scalar(
                    select(Event.seq).where(Event.deployment == deployment, Event.to_version == version).limit(1)
                )
                move(session, found, version, kind="rollback", unproven=was_served is None, who=who)
            return found

    def dial(
        self, deployment: str, soup: Soup, *, expected_version: int | None = None, who: str | None = None
    ) -> Deployment:
        """Store coefficients set by hand as a new version and point the deployment at it.

        Raises:
            UnknownDeployment: there is none of that name.
            Conflict: the current version is not `expected_version`.
        """
        with self._database.write() as session:
            found = get_deployment(session, deployment, lock=True)
            _check_expected(found, expected_version)
            version = add_soup(session, deployment, soup, source="dial")
            move(session, found, version, kind="dial", unproven=True, who=who)
            return found

    def set_reservoir(
        self, deployment: str, size: int, retention_hours: float, *, who: str | None = None
    ) -> tuple[ReservoirPlan, ReservoirPlan | None]:
        """Switch the reservoir of a deployment on, or change it, which starts an empty one.

        Returns:
            The plan from now on, the same if nothing changed; and the one before, None if there was none.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.write() as session:
            found = get_deployment(session, deployment, lock=True)
            before = plan_of(found)
            if before is not None and (before.size, before.retention_hours) == (size, retention_hours):
                return before, before
            plan = ReservoirPlan(new_id(), size, retention_hours)
            found.reservoir = plan._asdict()
            session.add(Event(deployment=deployment, kind="reservoir_on", who=who))
            return plan, before

    def clear_reservoir(self, deployment: str, *, who: str | None = None) -> ReservoirPlan | None:
        """Switch the reservoir of a deployment off; return what it was, None if it was off already.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.write() as session:
            found = get_deployment(session, deployment, lock=True)
            before, found.reservoir = plan_of(found), None
            if before is not None:
                session.add(Event(deployment=deployment, kind="reservoir_off", who=who))
            return before

    # Workers

    def beat_worker(
        self,
        worker: str,
        *,
        pid: int,
        host: str,
        provider: str | None,
        loaded: dict[str, int],
        moves: dict[str, int] | None = None,
        digests: dict[str, str] | None = None,
        is_news: bool = True,
        batch: int = 0,
        confidences: Sums | None = None,
    ) -> None:
        """Say that a predictor lives and what it serves, and what watched deployments answered since the last time.

        Args:
            worker: its id.
            pid: of its process.
            host: its machine.
            provider: of ONNX Runtime, in use.
            loaded: version by deployment.
            moves: number of the event that made this version current, by uid of the deployment.
            digests: of the base sets that it has; they never change.
            is_news: `loaded` and `moves` are not what was said the last time.
            batch: number of the confidences, which are added once however often they are handed over; from 1.
            confidences: what watched deployments answered.
        """
        mine, first = Worker.id == worker, {"pid": pid, "host": host, "digests": digests}
        served = {"loaded": loaded, "moves": moves} if is_news else {}
        with self._database.write(is_durable=False) as session:
            known = update(Worker).where(mine).values(provider=provider, heartbeat_at=Now(), **served)
            if session.execute(known.returning(Worker.id)).first() is None:
                session.add(Worker(id=worker, provider=provider, loaded=loaded, moves=moves, **first))
                session.flush()
            if confidences:
                fresh = update(Worker).where(mine, func.coalesce(Worker.batch, 0) < batch).values(batch=batch)
                if session.execute(fresh.returning(Worker.id)).first() is not None:
                    add_sums(session, confidences)

    def remove_worker(self, worker: str) -> None:
        """Forget a predictor that stops in good order."""
        with self._database.write() as session:
            session.execute(delete(Worker).where(Worker.id == worker))

    def workers(self, *, stale_seconds: float) -> Sequence[Worker]:
        """Return the predictors that reported within `stale_seconds`, oldest first."""
        with self._database.read() as session:
            return session.scalars(
                select(Worker).where(~is_silent(Worker.heartbeat_at, stale_seconds)).order_by(Worker.started_at)
            ).all()

    def workers_of(self, deployment: str, uid: str, *, stale_seconds: float) -> list[WorkerStatus]:
        """Return what the predictors that reported within `stale_seconds` serve of a deployment, oldest first."""
        columns = (Worker.id, Worker.pid, Worker.host, Worker.provider, Worker.heartbeat_at)
        served = (Worker.loaded[deployment].as_integer(), Worker.moves[uid].as_integer())
        live = ~is_silent(Worker.heartbeat_at, stale_seconds)
        with self._database.read() as session:
            rows = session.execute(select(*columns, *served).where(live).order_by(Worker.started_at))
            return [WorkerStatus(*row) for row in rows]

    def is_followed(self, move: Move, *, stale_seconds: float) -> bool:
        """Say if every predictor that reported within `stale_seconds` follows a move or a later one of the deployment.

        So it is, too, if the deployment is gone.
        """
        name, uid = move.pointer.name, move.pointer.uid
        workers = self.workers_of(name, uid, stale_seconds=stale_seconds)
        if workers and all(follows(worker, move.seq) for worker in workers):
            return True
        with self._database.read() as session:
            return session.scalar(select(Deployment.name).where(Deployment.uid == uid)) is None

    def forget_workers(self, *, stale_seconds: float) -> None:
        """Delete predictors that have been silent for `stale_seconds`."""
        with self._database.write() as session:
            session.execute(delete(Worker).where(is_silent(Worker.heartbeat_at, stale_seconds)))


def _check_expected(found: Deployment, expected: int | None) -> None:
    if expected is not None and found.version != expected:
        raise Conflict(f"deployment {found.name!r} is at version {found.version}, expected {expected}")
