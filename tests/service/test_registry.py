"""The registry and its queue, on a real SQLite file."""

import json
import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapt.patch import Patch, make_patch
from adapt.soup import Outcome, SearchSummary, Soup, SupportSummary
from service.http.schemas import soup_view
from service.store.database import Database
from service.store.jobs import SUPERSEDED, JobQueue, QueueFull
from service.store.registry import Conflict, Registry, UnknownDeployment, UnknownVersion
from service.store.tables import Job

SUPPORT = SupportSummary(n=2, per_class={"cat": 1, "dog": 1})
STALE = 30.0


def soup(share: float, *, digest: str = "a" * 64, base_set: str = "tiny", patch: Patch | None = None) -> Soup:
    coefficients = {"linf": share, "nominal": 1 - share}
    return Soup(base_set=base_set, base_digest=digest, coefficients=coefficients, patch=patch)


def head(bias: float) -> Patch:
    return make_patch({"head.bias": np.full(3, bias, dtype=np.float32)}, head=True)


def outcome(found: Soup, state: str = "promoted") -> Outcome:
    return Outcome.model_validate(
        {
            "state": state,
            "reason": "because",
            "coefficients": found.coefficients,
            "temperature": found.temperature,
            "bn_mode": found.bn_mode,
            "patch": found.patch and found.patch.summary,
            "support": SUPPORT,
            "accuracy": None,
            "search": SearchSummary(strategy="grid", candidates=3, image_forwards=6, seconds=0.1),
            "ingredients": {"linf": 0.5, "nominal": 0.5},
        }
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    database.create()
    yield database
    database.close()


@pytest.fixture
def registry(database: Database) -> Registry:
    registry = Registry(database)
    registry.ensure_deployment("default", soup(1.0))
    return registry


@pytest.fixture
def jobs(database: Database, registry: Registry) -> JobQueue:
    return JobQueue(database)


def add(jobs: JobQueue, name: str, **changes: Any) -> Job:
    arguments: dict[str, Any] = {
        "job": name,
        "deployment": "default",
        "strategy": "auto",
        "promote": "auto",
        "samples_digest": name,
        "support": SUPPORT,
        "max_queued": 10,
    }
    return jobs.add(**{**arguments, **changes})


def claimed(jobs: JobQueue, owner: str = "me") -> Job:
    job = jobs.claim(owner, stale_seconds=STALE)
    assert job is not None
    return job


def test_default_soup_is_version_1(registry: Registry) -> None:
    assert registry.deployment("default").version == 1
    assert registry.soup("default", 1) == soup(1.0)
    assert not registry.ensure_deployment("default", soup(1.0))
    assert [event.kind for event in registry.events("default")] == ["created"]


def test_deployment_keeps_its_base_set(registry: Registry) -> None:
    with pytest.raises(Conflict, match="'tiny', not 'other'"):
        registry.ensure_deployment("default", soup(1.0, base_set="other"))


def test_new_weights_move_a_deployment_on_and_keep_its_history(registry: Registry) -> None:
    registry.dial("default", soup(0.5))
    registry.ensure_deployment("default", soup(1.0, digest="b" * 64))
    assert registry.deployment("default").version == 3
    assert registry.soup("default", 2) == soup(0.5)
    assert registry.events("default")[-1].kind == "rebased"


def test_patch_comes_back_with_its_soup(registry: Registry, jobs: JobQueue) -> None:
    registry.dial("default", soup(0.5, patch=head(1)))
    assert registry.soup("default", 2) == soup(0.5, patch=head(1))
    assert registry.soup("default", 1).patch is None
    add(jobs, "one")
    finished = jobs.finish(claimed(jobs), soup(0.5, patch=head(2)), outcome(soup(0.5, patch=head(2))))
    assert finished is not None
    assert (finished.state, finished.candidate_version) == ("promoted", 3)
    assert registry.soup("default", 3).patch == head(2)
    registry.point_at("default", 2)
    assert registry.soup("default", registry.deployment("default").version).patch == head(1)
    digests = [(row.soup["patch"] or {}).get("digest") for row in registry.soups("default")]
    assert digests == [head(2).digest, head(1).digest, None]


def test_candidate_with_the_patch_of_the_current_soup_makes_no_version(registry: Registry, jobs: JobQueue) -> None:
    registry.dial("default", soup(0.5, patch=head(1)))
    for name, found, version in (("one", soup(0.5, patch=head(1)), 2), ("two", soup(0.5), 3)):
        add(jobs, name)
        finished = jobs.finish(claimed(jobs), found, outcome(found, "kept"))
        assert finished is not None
        assert finished.candidate_version == version


# What `Database.create` made before soups had patches.
EARLIER_TABLES = """
CREATE TABLE deployments (
    name VARCHAR(63) NOT NULL, uid VARCHAR(32) NOT NULL, base_set VARCHAR(63) NOT NULL, version INTEGER NOT NULL,
    created_at DOUBLE NOT NULL, CONSTRAINT pk_deployments PRIMARY KEY (name)
);
CREATE TABLE soups (
    deployment VARCHAR(63) NOT NULL, version INTEGER NOT NULL, soup JSON NOT NULL, source VARCHAR(16) NOT NULL,
    job VARCHAR(32), created_at DOUBLE NOT NULL, CONSTRAINT pk_soups PRIMARY KEY (deployment, version),
    CONSTRAINT fk_soups_deployment FOREIGN KEY(deployment) REFERENCES deployments (name)
);
"""


def test_registry_of_an_earlier_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    document = {
        "format_version": 1,
        "base_set": "tiny",
        "base_digest": "a" * 64,
        "coefficients": {"linf": 0.25, "nominal": 0.75},
        "bn_mode": "folded",
        "temperature": 1.5,
        "evidence": None,
    }
    with sqlite3.connect(path) as connection:
        connection.executescript(EARLIER_TABLES)
        connection.execute("INSERT INTO deployments VALUES ('default', 'u', 'tiny', 1, 7.0)")
        connection.execute("INSERT INTO soups VALUES ('default', 1, ?, 'default', NULL, 7.0)", (json.dumps(document),))
    connection.close()
    for _ in range(2):  # nothing is left to do the second time
        database = Database(f"sqlite:///{path}")
        database.create()
        registry = Registry(database)
        assert not registry.ensure_deployment("default", soup(1.0))
        assert registry.soup("default", 1) == soup(0.25).model_copy(update={"temperature": 1.5})
        database.close()
    registry.dial("default", soup(0.5, patch=head(1)))
    assert registry.soup("default", 2).patch == head(1)
    assert soup_view(registry.soups("default")[1], 2).patch is None
    database.close()


def test_unknown_names_are_said_so(registry: Registry) -> None:
    with pytest.raises(UnknownDeployment):
        registry.deployment("nobody")
    with pytest.raises(UnknownVersion):
        registry.point_at("default", 9)


def test_dial_and_rollback_move_the_pointer_with_an_event(registry: Registry) -> None:
    assert registry.dial("default", soup(0.5), expected_version=1).version == 2
    assert registry.point_at("default", 1).version == 1
    assert [soup.version for soup in registry.soups("default")] == [2, 1]
    last = registry.events("default")[-1]
    assert (last.kind, last.from_version, last.to_version, last.unproven) == ("rollback", 2, 1, False)
    assert registry.events("default")[-2].unproven


def test_expected_version_decides_between_two_dials(registry: Registry) -> None:
    registry.dial("default", soup(0.5), expected_version=1)
    with pytest.raises(Conflict, match="at version 2, expected 1"):
        registry.dial("default", soup(0.25), expected_version=1)
    assert len(registry.soups("default")) == 2


def test_pointing_at_a_candidate_never_served_is_flagged(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    jobs.finish(claimed(jobs), soup(0.25), outcome(soup(0.25), "kept"))
    registry.point_at("default", 2)
    assert registry.events("default")[-1].unproven


def test_promotion_stores_evidence_and_moves_the_pointer(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    finished = jobs.finish(claimed(jobs), soup(0.25), outcome(soup(0.25)))
    assert finished is not None
    assert (finished.state, finished.version, finished.previous_version, finished.candidate_version) == (
        "promoted",
        2,
        1,
        2,
    )
    assert registry.deployment("default").version == 2
    event = registry.events("default")[-1]
    assert (event.kind, event.job, event.unproven) == ("promoted", "one", False)


def test_kept_candidate_gets_a_version_that_is_not_served(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    finished = jobs.finish(claimed(jobs), soup(0.25), outcome(soup(0.25), "kept"))
    assert finished is not None
    assert (finished.state, finished.version, finished.previous_version, finished.candidate_version) == (
        "kept",
        1,
        None,
        2,
    )
    assert registry.deployment("default").version == 1


def test_candidate_equal_to_the_current_soup_makes_no_version(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    finished = jobs.finish(claimed(jobs), soup(1.0), outcome(soup(1.0), "kept"))
    assert finished is not None
    assert finished.candidate_version == 1
    assert len(registry.soups("default")) == 1


def test_of_two_concurrent_adaptations_one_is_superseded(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    add(jobs, "two")
    first, second = claimed(jobs, "a"), claimed(jobs, "b")
    winner = jobs.finish(second, soup(0.5), outcome(soup(0.5)))
    loser = jobs.finish(first, soup(0.25), outcome(soup(0.25)))
    assert winner is not None
    assert loser is not None
    assert winner.state == "promoted"
    assert (loser.state, loser.reason, loser.version) == ("kept", SUPERSEDED, 2)
    assert loser.candidate_version == 3
    assert loser.outcome is not None
    assert registry.deployment("default").version == 2


def test_same_samples_return_the_earlier_decision(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one", samples_digest="same")
    assert add(jobs, "two", samples_digest="same").id == "one"
    jobs.finish(claimed(jobs), soup(0.25), outcome(soup(0.25), "kept"))
    assert add(jobs, "three", samples_digest="same").id == "one"
    assert add(jobs, "four", samples_digest="same", strategy="grid").id == "one"
    assert add(jobs, "five", samples_digest="same", promote="never").id == "five"
    registry.dial("default", soup(0.5))
    assert add(jobs, "six", samples_digest="same").id == "six"


def test_superseded_decision_is_not_returned_again(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one", samples_digest="same")
    job = claimed(jobs)
    registry.dial("default", soup(0.5))
    jobs.finish(job, soup(0.25), outcome(soup(0.25)))
    registry.point_at("default", 1)
    assert add(jobs, "two", samples_digest="same").id == "two"


def test_queue_is_bounded_and_in_order(jobs: JobQueue) -> None:
    add(jobs, "one", max_queued=2)
    add(jobs, "two", max_queued=2)
    with pytest.raises(QueueFull):
        add(jobs, "three", max_queued=2)
    assert [claimed(jobs).id, claimed(jobs).id] == ["one", "two"]
    assert jobs.claim("me", stale_seconds=STALE) is None


def test_stale_job_goes_back_once_and_then_fails(jobs: JobQueue) -> None:
    add(jobs, "one")
    claimed(jobs, "dead")
    time.sleep(0.02)
    again = jobs.claim("next", stale_seconds=0.01)
    assert again is not None
    assert (again.id, again.attempts) == ("one", 2)
    time.sleep(0.02)
    assert jobs.claim("third", stale_seconds=0.01) is None
    failed = jobs.get("one")
    assert failed is not None
    assert (failed.state, failed.version) == ("failed", 1)
    assert "stopped 2 times" in str(failed.reason)


def test_owner_taken_for_dead_can_change_nothing(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    old = claimed(jobs, "dead")
    time.sleep(0.02)
    assert jobs.claim("next", stale_seconds=0.01) is not None
    assert not jobs.beat(old, progress=0.5, message="")
    assert jobs.finish(old, soup(0.25), outcome(soup(0.25))) is None
    jobs.fail(old, "no")
    jobs.release(old)
    found = jobs.get("one")
    assert found is not None
    assert (found.state, found.claimed_by) == ("running", "next")
    assert registry.deployment("default").version == 1


def test_heartbeat_keeps_a_job(jobs: JobQueue) -> None:
    add(jobs, "one")
    job = claimed(jobs)
    time.sleep(0.1)
    assert jobs.beat(job, progress=0.5, message="half")
    assert jobs.claim("other", stale_seconds=0.09) is None
    found = jobs.get("one")
    assert found is not None
    assert (found.progress, found.message) == (0.5, "half")


def test_release_does_not_count_as_an_attempt(jobs: JobQueue) -> None:
    add(jobs, "one")
    for _ in range(4):
        jobs.release(claimed(jobs))
    assert claimed(jobs).attempts == 1


def test_deleted_deployment_takes_everything_but_its_events(registry: Registry, jobs: JobQueue) -> None:
    registry.ensure_deployment("gate", soup(1.0))
    uid = registry.deployment("gate").uid
    add(jobs, "one", deployment="gate")
    job = claimed(jobs)
    assert registry.delete_deployment("gate") == ["one"]
    assert jobs.finish(job, soup(0.25), outcome(soup(0.25))) is None
    assert jobs.get("one") is None
    with pytest.raises(UnknownDeployment):
        registry.soups("gate")
    assert [event.kind for event in registry.events("gate")] == ["created", "deleted"]
    registry.ensure_deployment("gate", soup(1.0))
    assert registry.deployment("gate").uid != uid


def test_workers_are_live_while_they_report(registry: Registry) -> None:
    registry.beat_worker("one", pid=1, host="h", provider=None, loaded={"default": 1})
    registry.beat_worker("one", pid=1, host="h", provider="CPU", loaded={"default": 2})
    (worker,) = registry.workers(stale_seconds=5)
    assert (worker.provider, worker.loaded) == ("CPU", {"default": 2})
    time.sleep(0.02)
    assert registry.workers(stale_seconds=0.01) == []
    registry.forget_workers(stale_seconds=0.01)
    assert registry.workers(stale_seconds=5) == []


def test_snapshot_says_whether_jobs_are_active(registry: Registry, jobs: JobQueue) -> None:
    assert not registry.snapshot().has_active_jobs
    add(jobs, "one")
    assert registry.snapshot().has_active_jobs
    jobs.fail(claimed(jobs), "no")
    snapshot = registry.snapshot()
    assert not snapshot.has_active_jobs
    assert [(pointer.name, pointer.version) for pointer in snapshot.deployments] == [("default", 1)]


def test_threads_that_dial_at_once_get_different_versions(registry: Registry) -> None:
    errors: list[BaseException] = []

    def dial(share: float) -> None:
        try:
            registry.dial("default", soup(share))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=dial, args=(position / 8,)) for position in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [soup.version for soup in registry.soups("default")] == list(range(9, 0, -1))


def _claim_all(url: str, owner: str, found: Any) -> None:
    jobs = JobQueue(Database(url))
    while (job := jobs.claim(owner, stale_seconds=STALE)) is not None:
        found.put(job.id)


def test_processes_never_claim_the_same_job(tmp_path: Path, registry: Registry, jobs: JobQueue) -> None:
    names = [f"job{position}" for position in range(12)]
    for name in names:
        add(jobs, name, max_queued=100)
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    workers = [context.Process(target=_claim_all, args=(url, owner, found)) for owner in ("a", "b")]
    for worker in workers:
        worker.start()
    claims = [found.get(timeout=60) for _ in names]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(claims) == sorted(names)
    assert found.empty()
