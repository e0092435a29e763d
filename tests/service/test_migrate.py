"""The schema: made, brought up to date, compared, refused; on SQLite and PostgreSQL."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from sqlalchemy import text

from adapt.documents.patch import make_patch
from service.http.views import job_view
from service.store.confidence import NOTHING
from service.store.database import Database, SchemaError
from service.store.jobs import JobQueue
from service.store.migrate import _config, differences, head, upgrade, usable_revision
from service.store.registry import Registry
from service.store.tables import Table
from service.store.watches import Watches
from tests.service.test_registry import outcome, soup


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    with closing(Database(empty_url)) as database:
        yield database


def execute(database: Database, *statements: str) -> None:
    with database.write() as session:
        for statement in statements:
            session.execute(text(statement))


def found_differences(database: Database) -> list[str]:
    with database.read() as session:
        return differences(session.connection())


def test_revisions_make_exactly_the_tables_of_the_code(empty: Database) -> None:
    assert upgrade(empty) is None
    assert found_differences(empty) == []
    assert upgrade(empty) == head()


def test_first_revision_with_rows_in_it_is_brought_up_to_date(empty: Database) -> None:
    with empty.write() as session:
        config = _config()
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "0001")
    execute(
        empty,
        "INSERT INTO deployments (name, uid, base_set, version, created_at) VALUES ('default', 'u', 'tiny', 1, 7)",
        "INSERT INTO events (at, deployment, kind, to_version, unproven) VALUES (7, 'default', 'created', 1, false)",
        "INSERT INTO jobs (seq, id, deployment, base_version, strategy, promote, samples_digest, support, state,"
        " attempts, progress, message, created_at)"
        " VALUES (1, 'j', 'default', 1, 'auto', 'auto', 'd', '{}', 'kept', 1, 1, '', 7)",
    )
    assert upgrade(empty) == "0001"
    assert found_differences(empty) == []
    with empty.read() as session:
        assert session.execute(text("SELECT kind, who, reason FROM events")).all() == [("created", None, None)]
    (job,) = JobQueue(empty).latest("default", limit=9)
    assert (job.id, job.balance, job.draw, job.who, job.samples) == ("j", "none", "any", None, None)
    watches = Watches(empty)
    assert watches.status("default") is None
    assert watches.switch_on("default", 50, 0.2)
    assert watches.judge("default") is None
    status = watches.status("default")
    assert status is not None
    assert (status.plan[1:], status.against, status.recent) == ((50, 0.2), None, NOTHING)


def test_patches_and_versions_of_the_previous_revision_are_read(empty: Database) -> None:
    """Rows as the revision before had them: patches with a boolean for each rung, versions without held-out answers."""
    with empty.write() as session:
        config = _config()
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "0005")
    tensors = {"head.bias": np.ones(3, dtype=np.float32)}
    made = make_patch(tensors, rungs=["head"])
    flags = {"digest": made.digest, "recalibrated": 40, "head": True, "early": False}
    found = outcome(soup(1.0)).model_dump(mode="json") | {"patch": flags, "bn_mode": "raw"}
    for key in ("attempt", "level", "not_tried", "classes"):
        del found[key]
    plain = soup(1.0).model_dump(mode="json", exclude={"held_out"})
    versions = {
        1: (plain, None, "default"),
        2: (plain | {"patch": flags, "bn_mode": "raw", "evidence": found}, made.data, "adapt"),
        3: (plain | {"patch": flags | {"recalibrated": 0, "early": True}}, made.data, "dial"),
    }
    jobs = {"done": found, "waiting": None, "plain": found | {"patch": None}}
    with empty.write() as session:
        run = session.execute
        run(
            text("INSERT INTO deployments (name, uid, base_set, version, created_at) VALUES ('default','u','tiny',2,7)")
        )
        for version, (document, patch, source) in versions.items():
            run(
                text(
                    "INSERT INTO soups (deployment, version, soup, patch, source, created_at)"
                    " VALUES ('default', :version, :soup, :patch, :source, 10)"
                ),
                {"version": version, "soup": json.dumps(document), "patch": patch, "source": source},
            )
        for seq, (name, document) in enumerate(jobs.items(), start=1):
            run(
                text(
                    "INSERT INTO jobs (seq, id, deployment, base_version, strategy, promote, balance, samples_digest,"
                    " support, state, attempts, progress, message, outcome, created_at)"
                    " VALUES (:seq, :id, 'default', 1, 'auto', 'auto', 'none', 'd', :support, 'kept', 1, 1, '',"
                    " :outcome, 7)"
                ),
                {
                    "seq": seq,
                    "id": name,
                    "support": json.dumps(found["support"]),
                    "outcome": json.dumps(document),
                },
            )
        run(
            text(
                "INSERT INTO packs (id, owner, height, width, is_stale, created_at) VALUES ('p', 'u', 16, 16, false, 1)"
            )
        )
        for name, added, used in (("b", 9, 30), ("a", 5, 10), ("later", 11, 30), ("unused", 5, None)):
            run(
                text("INSERT INTO samples VALUES ('default', :hash, 'cat', 'p', :added, 20, :used)"),
                {"hash": name, "added": added, "used": used},
            )
    assert upgrade(empty) == "0005"
    assert found_differences(empty) == []

    registry, queue = Registry(empty), JobQueue(empty)
    first, second, third = (registry.soup("default", version, held_out=True) for version in (1, 2, 3))
    assert (first.patch, first.held_out, first.evidence) == (None, None, None)
    assert second.patch is not None
    assert second.evidence is not None
    assert second.evidence.patch is not None
    assert second.patch.rungs == second.evidence.patch.rungs == ("statistics", "head")
    np.testing.assert_array_equal(second.patch.tensors()["head.bias"], np.ones(3))
    assert third.patch is not None
    assert third.patch.rungs == ("head", "early")
    assert third.held_out is None
    # The second version may have been made from what was there and used: it is not judged by these images.
    assert second.held_out is not None
    assert second.held_out.answered == 0
    known = second.held_out.answers()
    assert known.hashes == ("a", "b")
    assert np.isnan(known.logits).all()
    patches = {name: (job.outcome or {}).get("patch") for name in jobs if (job := queue.get(name)) is not None}
    assert patches == {"done": second.patch.summary.model_dump(mode="json"), "waiting": None, "plain": None}
    assert [row.attempts for row in registry.soups("default")] == [0, 0, 0]
    assert all(job_view(job).attempt is None for job in queue.latest("default", limit=9))


def test_workers_and_statements_of_the_code_before_go_on_with_the_newest_tables(empty: Database) -> None:
    with empty.write() as session:
        config = _config()
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "0006")
    old = "INSERT INTO workers (id, pid, host, loaded, started_at, heartbeat_at) VALUES"
    made = "INSERT INTO deployments (name, uid, base_set, version, created_at) VALUES ('default', 'u', 'tiny', 1, 7)"
    told = "INSERT INTO events (at, deployment, kind, to_version, unproven) VALUES (7, 'default', 'created', 1, false)"
    now = time.time()
    execute(empty, made, told, f"{old} ('before', 1, 'h', '{{\"default\": 1}}', 1, {now})")
    assert upgrade(empty) == "0006"
    execute(empty, f"{old} ('after', 2, 'h', '{{\"default\": 1}}', 2, {now})", told)
    registry = Registry(empty)
    assert registry.move("default").seq == 2
    workers = registry.workers_of("default", "u", stale_seconds=60)
    assert [(one.id, one.version, one.move) for one in workers] == [("before", 1, None), ("after", 1, None)]


def test_what_differs_is_named(empty: Database) -> None:
    upgrade(empty)
    execute(empty, "ALTER TABLE jobs DROP COLUMN who", "DROP INDEX ix_jobs_state", "CREATE TABLE odd (id INTEGER)")
    told = found_differences(empty)
    assert len(told) == 3
    for expected in ("column jobs who", "index ix_jobs_state", "table odd"):
        assert any(re.search(expected, line) for line in told), told


def test_newer_database_is_refused_in_one_line_and_left_alone(empty: Database) -> None:
    upgrade(empty)
    execute(empty, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match=r"^expected a schema revision up to \w+, found 9999: [^\n]+$"):
        upgrade(empty)
    with empty.read() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


def test_database_from_before_migrations_is_refused_in_one_line(empty: Database) -> None:
    with empty.write() as session:
        Table.metadata.create_all(session.connection())
    with pytest.raises(SchemaError, match=r"^expected a registry with a schema revision, found [^\n]+$"):
        upgrade(empty)


def test_upgrade_that_fails_changes_nothing(empty: Database) -> None:
    execute(empty, "CREATE TABLE events (odd INTEGER)")  # in the way of the first revision, after some tables
    with pytest.raises(Exception, match="already exists"):
        upgrade(empty)
    with empty.read() as session:
        assert usable_revision(session.connection()) is None
        assert len(found_differences(empty)) > 5  # no table but the one in the way


def test_two_that_upgrade_at_once_both_end_well(empty: Database) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert sorted(map(str, pool.map(upgrade, [empty, empty]))) == sorted(["None", head()])
    assert found_differences(empty) == []


def test_a_new_file_may_be_opened_by_several_at_once(tmp_path: Path) -> None:
    """Without a second try, one of six is told "database is locked" about every thirtieth time."""

    def make(number: int) -> None:
        barrier.wait(10)
        with closing(Database(f"sqlite:///{tmp_path / str(number)}.db")) as database, database.write() as session:
            session.execute(text("CREATE TABLE IF NOT EXISTS things (number INTEGER)"))

    for number in range(100):
        barrier = threading.Barrier(6)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(make, [number] * 6))
