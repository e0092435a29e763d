"""Whose turn it is in the queue, and jobs that are cancelled, on a real SQLite file and a real PostgreSQL."""

import pytest

from service.store.database import Database
from service.store.jobs import JobQueue
from service.store.registry import Registry
from service.store.transactions import Conflict
from tests.service.test_registry import STALE, add, claimed, outcome, soup


@pytest.fixture
def registry(database: Database) -> Registry:
    registry = Registry(database)
    registry.ensure_deployment("default", soup(1.0))
    registry.ensure_deployment("gate", soup(1.0))
    registry.ensure_deployment("yard", soup(1.0))
    return registry


def test_deployments_take_turns(jobs: JobQueue) -> None:
    """The fault: who sent many jobs had all others wait for all of them."""
    for name in ("a1", "a2", "a3"):
        add(jobs, name)
    for name in ("b1", "b2"):
        add(jobs, name, deployment="gate")
    add(jobs, "c1", deployment="yard")
    order = []
    while (job := jobs.claim("me", stale_seconds=STALE)) is not None:
        order.append(job.id)
        jobs.fail(job, "no")
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_deployment_that_was_served_last_comes_last_again(jobs: JobQueue) -> None:
    add(jobs, "a1")
    jobs.fail(claimed(jobs), "no")
    add(jobs, "a2")
    add(jobs, "b1", deployment="gate")
    assert [claimed(jobs).id, claimed(jobs).id] == ["b1", "a2"]


def test_waiting_job_is_cancelled_at_once(jobs: JobQueue, registry: Registry) -> None:
    add(jobs, "one")
    cancelled = jobs.cancel("one", who="gardener")
    assert cancelled is not None
    assert (cancelled.state, cancelled.reason, cancelled.version) == ("failed", "cancelled by gardener", 1)
    assert cancelled.finished_at is not None
    assert jobs.claim("me", stale_seconds=STALE) is None
    assert registry.snapshot().active_jobs == {}
    assert add(jobs, "two", samples_digest="one").id == "two"  # the same images may be asked about again


def test_running_job_that_is_cancelled_changes_nothing_any_more(jobs: JobQueue, registry: Registry) -> None:
    add(jobs, "one")
    job = claimed(jobs)
    assert jobs.cancel("one") is not None
    assert not jobs.beat(job, progress=0.5, message="")
    assert jobs.finish(job, soup(0.5), outcome(soup(0.5))) is None
    jobs.fail(job, "no")
    jobs.release(job)
    found = jobs.get("one")
    assert found is not None
    assert (found.state, found.reason) == ("failed", "cancelled")
    assert registry.deployment("default").version == 1
    assert jobs.claim("me", stale_seconds=0.0) is None


def test_job_that_has_ended_is_not_cancelled(jobs: JobQueue) -> None:
    add(jobs, "one")
    jobs.finish(claimed(jobs), soup(0.5), outcome(soup(0.5)))
    with pytest.raises(Conflict, match="ended already: promoted"):
        jobs.cancel("one")
    assert jobs.cancel("none") is None
    assert jobs.cancel("a\0b") is None


def test_job_whose_answer_was_lost_is_finished_once(jobs: JobQueue, registry: Registry) -> None:
    """The database committed, and the connection broke before it said so: the adapter asks again."""
    add(jobs, "one")
    job = claimed(jobs)
    first = jobs.finish(job, soup(0.5), outcome(soup(0.5)))
    again = jobs.finish(job, soup(0.5), outcome(soup(0.5)))
    assert first is not None
    assert again is not None
    assert (again.id, again.state, again.version) == (first.id, "promoted", 2)
    assert len(registry.soups("default")) == 2
