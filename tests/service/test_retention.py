"""What the registry forgets with time, and what it never does; on SQLite and PostgreSQL."""

from collections.abc import Callable

import pytest
from sqlalchemy import update

from service.store.database import Database
from service.store.jobs import JobQueue
from service.store.rebasing import rebase
from service.store.registry import Registry
from service.store.tables import Deployment, Event, Job, SoupVersion
from service.store.watches import Watches
from tests.service.test_registry import add, claimed, outcome, soup

SOON = -3600  # seconds of age that everything has
OTHER_WEIGHTS = "b" * 64


@pytest.fixture
def adapted(registry: Registry, jobs: JobQueue) -> Callable[[float, str], int]:
    def adapt(share: float, state: str) -> int:
        """Let a search end; return the version that it found."""
        add(jobs, f"{state}-{share}")
        finished = jobs.finish(claimed(jobs), soup(share), outcome(soup(share), state))
        assert finished is not None
        assert finished.candidate_version is not None
        return finished.candidate_version

    return adapt


def versions(registry: Registry, name: str = "default") -> list[int]:
    return [row.version for row in registry.soups(name)][::-1]


def kinds(registry: Registry, name: str = "default") -> list[str]:
    return [event.kind for event in registry.events(name, limit=100)][::-1]


def test_candidates_that_were_never_served_go_with_their_jobs(
    registry: Registry, jobs: JobQueue, adapted: Callable[[float, str], int]
) -> None:
    assert adapted(0.1, "kept") == 2
    assert adapted(0.2, "promoted") == 3
    assert adapted(0.3, "kept") == 4
    registry.point_at("default", 1)
    assert adapted(0.4, "kept") == 5
    assert not any(registry.forget(older_than=60))
    assert registry.forget(older_than=SOON).versions == 0  # their jobs are still listed
    assert jobs.forget(older_than=SOON) == 4
    assert registry.forget(older_than=SOON) == (2, 0)
    assert versions(registry) == [1, 3, 5]  # served, can be gone back to, the newest
    assert registry.dial("default", soup(0.5)).version == 6
    assert not registry.point_at("default", 3).watch
    last = registry.events("default", limit=1)[0]
    assert (last.kind, last.unproven) == ("rollback", False)  # that it was served once is still known


def test_evidence_behind_what_is_served_stays(
    registry: Registry, jobs: JobQueue, adapted: Callable[[float, str], int]
) -> None:
    adapted(0.1, "promoted")
    adapted(0.2, "promoted")
    adapted(0.3, "kept")
    registry.point_at("default", 2)
    assert jobs.forget(older_than=SOON) == 2
    assert registry.forget(older_than=SOON).versions == 0  # the candidate is the newest version
    behind = jobs.get("promoted-0.1")
    assert behind is not None
    assert behind.outcome is not None
    assert versions(registry) == [1, 2, 3, 4]
    assert [(event.kind, event.job) for event in registry.events("default", limit=9) if event.to_version == 2] == [
        ("rollback", None),
        ("promoted", "promoted-0.1"),
    ]


def to_weights(database: Database, digest: str) -> None:
    assert rebase(database, {"tiny": soup(1.0, digest=digest)}, stale_seconds=60)


def test_versions_of_other_weights_cannot_be_gone_back_to(registry: Registry, database: Database) -> None:
    registry.dial("default", soup(0.5))
    to_weights(database, OTHER_WEIGHTS)
    registry.dial("default", soup(0.25, digest=OTHER_WEIGHTS))
    assert registry.forget(older_than=SOON).versions == 2
    assert versions(registry) == [3, 4]
    assert kinds(registry) == ["rebased", "dial"]
    assert registry.versions("default", base_digest=OTHER_WEIGHTS) == [3, 4]


def test_what_an_active_job_compares_with_stays(registry: Registry, jobs: JobQueue, database: Database) -> None:
    add(jobs, "one")
    registry.dial("default", soup(0.5))
    with database.write() as session:  # as if version 1 had never been served
        session.execute(update(Event).values(to_version=2))
    assert registry.forget(older_than=SOON).versions == 0
    jobs.fail(claimed(jobs), "no")
    assert registry.forget(older_than=SOON).versions == 1


def test_events_go_but_for_those_that_say_how_a_version_came_to_be_served(
    registry: Registry, database: Database
) -> None:
    registry.ensure_deployment("gone", soup(1.0))
    registry.dial("gone", soup(0.5))
    registry.delete_deployment("gone")
    registry.set_reservoir("default", 10, 1.0)
    Watches(database).switch_on("default", 50, 0.2)
    registry.clear_reservoir("default")
    known = registry.snapshot()
    newest = registry.events("default", limit=1)[0].seq
    assert registry.forget(older_than=SOON) == (0, 5)
    assert kinds(registry) == ["created", "reservoir_off"]  # the newest stays, so that its number is not given twice
    assert kinds(registry, "gone") == []
    registry.dial("default", soup(0.5))
    assert registry.events("default", limit=1)[0].seq > newest
    assert registry.snapshot(known) == registry.snapshot()


def test_events_of_a_deployment_of_the_same_name_before_go(registry: Registry) -> None:
    registry.ensure_deployment("again", soup(1.0))
    registry.delete_deployment("again")
    registry.ensure_deployment("again", soup(1.0))
    assert registry.forget(older_than=SOON).events == 2
    assert kinds(registry, "again") == ["created"]
    assert registry.move("again").seq == registry.events("again", limit=1)[0].seq


def test_nothing_goes_that_is_not_old(registry: Registry, database: Database) -> None:
    to_weights(database, OTHER_WEIGHTS)
    to_weights(database, "c" * 64)
    assert registry.forget(older_than=3600) == (0, 0)
    with database.write() as session:
        session.execute(update(SoupVersion).where(SoupVersion.version == 1).values(created_at=7))
    assert registry.forget(older_than=3600).versions == 1
    assert versions(registry) == [2, 3]
    with database.read() as session:
        assert session.get(Deployment, "default") is not None
        assert session.get(Job, 1) is None
