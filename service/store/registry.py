"""The registry: deployments, immutable soup versions, events, workers. Every change is one transaction."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, func, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from adapt.documents.soup import Soup
from service.store.clock import Now, is_silent
from service.store.database import MAX_INTEGER, Database, is_text
from service.store.sums import Sums, add_sums, take_sums
from service.store.tables import (
    ACTIVE_STATES,
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
from service.store.transactions import Conflict, add_soup, get_deployment, get_soup, move, plan_of, soup_of, watch_of

CHUNK = 400  # versions in one statement


class Pointer(NamedTuple):
    """What a deployment points at."""

    name: str
    uid: str
    base_set: str
    version: int


class Snapshot(NamedTuple):
    """What a predictor needs to know several times a second."""

    deployments: tuple[Pointer, ...]
    reservoirs: dict[str, ReservoirPlan]  # by deployment, where there is one
    watches: dict[str, str]  # the watch's id by deployment, where there is one
    active_jobs: dict[str, int]  # queued or running, by deployment


class Registry:
    """Deployments, their soup versions, and the predictors that serve them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Deployments and soups

    def snapshot(self) -> Snapshot:
        """Return all pointers and how many jobs are queued or running."""
        with self._database.read() as session:
            pointers = (Deployment.name, Deployment.uid, Deployment.base_set, Deployment.version)
            plans = (Deployment.reservoir, Deployment.watch)
            rows = session.execute(select(*pointers, *plans).order_by(Deployment.name)).all()
            active = select(Job.deployment, func.count()).where(Job.state.in_(ACTIVE_STATES)).group_by(Job.deployment)
            jobs = session.execute(active).all()
        return Snapshot(
            tuple(Pointer(*pointer) for *pointer, _, _ in rows),
            {row.name: ReservoirPlan(**row.reservoir) for row in rows if row.reservoir is not None},
            {row.name: row.watch["id"] for row in rows if row.watch is not None},
            dict(jobs),
        )

    def deployments(self) -> Sequence[Deployment]:
        """Return all deployments by name."""
        with self._database.read() as session:
            return session.scalars(select(Deployment).order_by(Deployment.name)).all()

    def deployment(self, name: str) -> Deployment:
        """Return a deployment.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.read() as session:
            return get_deployment(session, name)

    def ensure_deployment(self, name: str, default: Soup, *, who: str | None = None) -> bool:
        """Make a deployment whose version 1 is the default soup of a base set, unless it is there already.

        Args:
            name: of the deployment.
            default: soup of the base set.
            who: name of the API key that asked, here and below; None where there are no keys.

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
            session.add(Event(deployment=name, kind="deleted", from_version=found.version, who=who))
            if (watch := watch_of(found)) is not None:
                take_sums(session, watch.id)
            session.execute(update(Pack).where(Pack.owner == found.uid).values(is_stale=True))
            session.execute(delete(Sample).where(Sample.deployment == name))
            session.execute(delete(Job).where(Job.deployment == name))
            session.execute(delete(SoupVersion).where(SoupVersion.deployment == name))
            session.delete(found)
            return jobs

    def soup(self, deployment: str, version: int, *, held_out: bool = False) -> Soup:
        """Return one soup version.

        Args:
            deployment: its name.
            version: of it.
            held_out: with its held-out answers, which only a search needs.

        Raises:
            UnknownVersion: the deployment has no such version.
        """
        with self._database.read() as session:
            return soup_of(get_soup(session, deployment, version), held_out=held_out)

    def soups(self, deployment: str) -> Sequence[SoupVersion]:
        """Return all versions, newest first.

        Raises:
            UnknownDeployment: there is no such deployment.
        """
        with self._database.read() as session:
            get_deployment(session, deployment)
            return session.scalars(
                select(SoupVersion).where(SoupVersion.deployment == deployment).order_by(SoupVersion.version.desc())
            ).all()

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
        self, deployment: str, size: int, retention_hours: float
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
            return plan, before

    def clear_reservoir(self, deployment: str) -> ReservoirPlan | None:
        """Switch the reservoir of a deployment off; return what it was, None if it was off already.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.write() as session:
            found = get_deployment(session, deployment, lock=True)
            before, found.reservoir = plan_of(found), None
            return before

    # Workers

    def beat_worker(
        self,
        worker: str,
        *,
        pid: int,
        host: str,
        provider: str | None,
        loaded: dict[str, Any],
        digests: dict[str, str] | None = None,
        confidences: Sums | None = None,
    ) -> None:
        """Say that a predictor lives and what it serves, and what watched deployments answered since the last time.

        Args:
            worker: its id.
            pid: of the process.
            host: its machine.
            provider: of ONNX Runtime, in use.
            loaded: version by deployment.
            digests: of the base sets that it has.
            confidences: what watched deployments answered.
        """
        with self._database.write(is_durable=False) as session:
            add_sums(session, confidences or {})
            values = {"pid": pid, "host": host, "provider": provider, "loaded": loaded, "digests": digests}
            row = session.merge(Worker(id=worker, **values))
            row.heartbeat_at = Now()

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

    def forget_workers(self, *, stale_seconds: float) -> None:
        """Delete predictors that have been silent for `stale_seconds`."""
        with self._database.write() as session:
            session.execute(delete(Worker).where(is_silent(Worker.heartbeat_at, stale_seconds)))


def _check_expected(found: Deployment, expected: int | None) -> None:
    if expected is not None and found.version != expected:
        raise Conflict(f"deployment {found.name!r} is at version {found.version}, expected {expected}")
