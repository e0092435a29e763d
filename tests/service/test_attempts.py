"""Attempts: every comparison with the same version has a number of its own; on SQLite and PostgreSQL."""

import time
from concurrent.futures import ThreadPoolExecutor

from adapt.documents.soup import SupportSummary
from adapt.evidence.levels import attempt_chance
from service.store.jobs import JobQueue
from service.store.registry import Registry
from service.store.tables import Job
from tests.service.test_registry import add, claimed, outcome, soup

NO_LABELS = SupportSummary(n=0, unlabelled=5, per_class={})


def done(jobs: JobQueue, name: str, share: float, state: str = "kept", promote: str = "auto") -> Job:
    """Queue a job, search, finish; return it."""
    add(jobs, name, promote=promote)
    finished = jobs.finish(claimed(jobs), soup(share), outcome(soup(share), state))
    assert finished is not None
    return finished


def test_every_comparison_counts_but_those_that_no_test_decides(jobs: JobQueue) -> None:
    assert done(jobs, "one", 0.1).attempt == 1
    assert done(jobs, "shown", 0.2, promote="never").attempt == 2
    assert done(jobs, "probable", 0.3, promote="likely").attempt == 3
    assert done(jobs, "forced", 0.4, promote="always").attempt is None
    add(jobs, "unlabelled", support=NO_LABELS)
    assert claimed(jobs).attempt is None
    assert done(jobs, "two", 0.5).attempt == 4


def test_the_same_samples_again_are_no_new_attempt(jobs: JobQueue) -> None:
    add(jobs, "one", samples_digest="same")
    jobs.finish(claimed(jobs), soup(0.1), outcome(soup(0.1), "kept"))
    assert add(jobs, "again", samples_digest="same").id == "one"
    assert done(jobs, "two", 0.2).attempt == 2


def test_number_is_given_once_and_kept_by_a_job_that_is_put_back(jobs: JobQueue) -> None:
    add(jobs, "one")
    assert claimed(jobs, "dead").attempt == 1
    time.sleep(0.02)
    again = jobs.claim("next", stale_seconds=0.01)
    assert again is not None
    assert (again.id, again.attempts, again.attempt) == ("one", 2, 1)
    jobs.release(again)
    assert claimed(jobs).attempt == 1
    add(jobs, "two")
    assert claimed(jobs).attempt == 2


def test_failed_and_superseded_jobs_count(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    jobs.fail(claimed(jobs), "no")
    add(jobs, "two")
    late = claimed(jobs)
    registry.dial("default", soup(0.5))
    jobs.finish(late, soup(0.25), outcome(soup(0.25)))
    registry.point_at("default", 1)
    assert done(jobs, "three", 0.1).attempt == 3


def test_a_new_version_starts_at_one_and_an_old_one_goes_on(registry: Registry, jobs: JobQueue) -> None:
    for number in (1, 2):
        assert done(jobs, f"kept-{number}", 0.1 * number).attempt == number
    promoted = done(jobs, "promoted", 0.5, "promoted")
    assert (promoted.state, promoted.attempt) == ("promoted", 3)
    assert done(jobs, "next", 0.6).attempt == 1
    registry.point_at("default", 1)
    assert done(jobs, "back", 0.7).attempt == 4
    assert promoted.version is not None
    registry.point_at("default", promoted.version)
    assert done(jobs, "forth", 0.8).attempt == 2


def test_count_is_of_one_deployment_and_survives_the_jobs(registry: Registry, jobs: JobQueue) -> None:
    registry.ensure_deployment("gate", soup(1.0))
    done(jobs, "one", 0.1)
    add(jobs, "gate-1", deployment="gate")
    assert claimed(jobs).attempt == 1
    assert jobs.forget(older_than=-1) == 1
    assert done(jobs, "two", 0.2).attempt == 2


def test_adapters_that_claim_at_once_get_different_numbers(jobs: JobQueue) -> None:
    count = 12
    for number in range(count):
        add(jobs, f"job-{number}", max_queued=count)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: claimed(jobs, f"adapter-{number}"), range(count)))
    assert sorted(str(job.attempt) for job in found) == sorted(map(str, range(1, count + 1)))
    assert len({job.id for job in found}) == count


def test_levels_of_all_attempts_stay_below_the_total() -> None:
    assert attempt_chance(1, total=0.05) == 0.025
    assert sum(attempt_chance(number, total=0.05) for number in range(1, 10_000)) < 0.05
