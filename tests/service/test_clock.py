"""Times in the registry are the database's: what the clocks of machines say, and when they are set, changes nothing."""

import time
from collections.abc import Callable

import pytest
from sqlalchemy import select, text, update

from service.store.clock import read_clock
from service.store.database import Database
from service.store.jobs import JobQueue
from service.store.registry import Registry
from service.store.tables import Job, Worker
from tests.service.test_registry import STALE, add, claimed, outcome, soup

HOUR = 3600.0


@pytest.fixture(params=[-HOUR, HOUR], ids=["back", "ahead"])
def set_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Set the clock of this process wrong, once it is called."""
    right = time.time
    return lambda: monkeypatch.setattr(time, "time", lambda: right() + request.param)


def beat(registry: Registry, worker: str) -> None:
    registry.beat_worker(worker, pid=1, host="h", provider=None, loaded={"default": 1})


def test_database_tells_the_time(database: Database) -> None:
    with database.read() as session:
        assert abs(read_clock(session) - time.time()) < 5


def test_machine_whose_clock_is_wrong_kills_no_worker_and_revives_none(
    registry: Registry, set_clock: Callable[[], None]
) -> None:
    beat(registry, "one")
    set_clock()
    assert [worker.id for worker in registry.workers(stale_seconds=5)] == ["one"]
    registry.forget_workers(stale_seconds=5)
    assert [worker.id for worker in registry.workers(stale_seconds=5)] == ["one"]
    time.sleep(0.3)
    assert registry.workers(stale_seconds=0.2) == []


def test_machine_whose_clock_is_wrong_takes_no_job_that_is_worked_on(
    database: Database, registry: Registry, set_clock: Callable[[], None]
) -> None:
    jobs = JobQueue(database)
    add(jobs, "one")
    job = claimed(jobs)
    set_clock()
    assert jobs.claim("other", stale_seconds=STALE) is None
    assert jobs.beat(job, progress=0.5, message="")
    assert jobs.claim("other", stale_seconds=STALE) is None
    assert jobs.finish(job, soup(0.5), outcome(soup(0.5))) is not None
    assert jobs.forget(older_than=60) == 0


def test_all_times_of_a_job_are_of_one_clock(
    database: Database, registry: Registry, set_clock: Callable[[], None]
) -> None:
    jobs = JobQueue(database)
    add(jobs, "one")
    set_clock()
    finished = jobs.finish(claimed(jobs), soup(0.5), outcome(soup(0.5)))
    assert finished is not None
    assert finished.started_at is not None
    assert finished.finished_at is not None
    assert finished.created_at <= finished.started_at <= finished.finished_at
    (promoted, _) = registry.events("default", limit=2)
    assert abs(promoted.at - finished.finished_at) < 60
    with database.read() as session:
        assert abs(read_clock(session) - finished.finished_at) < 60


def test_heartbeats_from_the_future_are_of_the_dead(database: Database, registry: Registry) -> None:
    """The database's clock was set back: whoever lives beats again within a second, the others never."""
    jobs = JobQueue(database)
    add(jobs, "one")
    claimed(jobs)
    beat(registry, "dead")
    beat(registry, "alive")
    with database.write() as session:
        session.execute(update(Worker).values(heartbeat_at=Worker.heartbeat_at + HOUR))
        session.execute(update(Job).values(heartbeat_at=Job.heartbeat_at + HOUR))
    beat(registry, "alive")
    assert [worker.id for worker in registry.workers(stale_seconds=5)] == ["alive"]
    assert jobs.claim("other", stale_seconds=STALE) is not None
    registry.forget_workers(stale_seconds=60)
    with database.read() as session:
        assert session.scalars(select(Worker.id)).all() == ["alive"]


def test_time_goes_on_within_a_transaction(database: Database) -> None:
    """What waits for a lock is written with the time when it got it, not when it began to wait."""
    with database.write() as session:
        before = read_clock(session)
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("SELECT pg_sleep(0.2)"))
        else:
            time.sleep(0.2)
        assert read_clock(session) - before > 0.1
