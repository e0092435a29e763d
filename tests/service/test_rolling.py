"""Two versions side by side on one registry: of the code's schema, and of a base set's weights."""

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from alembic import command
from prometheus_client import CollectorRegistry
from sqlalchemy import MetaData, Table, inspect, text, update

from adapt.documents.soup import default_soup
from adapt.images.support import Support
from deploy.bundle import build_bundle
from service import db
from service.http.problems import as_problem
from service.http.views import event_view, soup_view
from service.metrics import Metrics
from service.prediction.catalog import Base, read_catalog
from service.prediction.loading import NotReady, OtherWeights
from service.prediction.predictor import DEFAULT, Predictor
from service.settings import Settings
from service.store import migrate
from service.store.database import Database, SchemaError
from service.store.intake import Intake, Wanted
from service.store.jobs import JobQueue
from service.store.material import Material
from service.store.objects import ObjectStore
from service.store.rebasing import made_for_other_weights, rebase
from service.store.registry import Registry
from service.store.tables import Event, SoupVersion
from service.store.transactions import Conflict
from service.weights import check_weights
from tests.service.conftest import Server
from tests.service.test_registry import add, soup
from training.bases import rewrite_manifest
from training.manifest import read_manifest

PREVIOUS = "0008"  # the revision before the newest
NEXT = '''"""What the next version adds."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{down_revision}"


def upgrade() -> None:
    """Add a column."""
    op.add_column("deployments", sa.Column("extra_{revision}", sa.Integer(), nullable=True))
'''


def test_events_and_soups_of_kinds_that_a_newer_version_adds_are_listed(database: Database, registry: Registry) -> None:
    registry.dial("default", soup(0.5))
    with database.write() as session:
        session.execute(update(Event).values(kind="approved"))
        session.execute(update(SoupVersion).values(source="merged"))
    (event, *_) = registry.events("default", limit=2)
    assert event_view(event).kind == "approved"
    (row, _) = registry.soups("default")
    assert soup_view(row, registry.deployment("default").version).source == "merged"


@pytest.fixture
def empty(empty_url: str) -> Iterator[Database]:
    with closing(Database(empty_url)) as database:
        yield database


@pytest.fixture(scope="module")
def two_bases(prebuilt_bases: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The base set `tiny` as it was, and signed again, with other content, under the same name."""
    old, new = (tmp_path_factory.mktemp(name) for name in ("old", "new"))
    shutil.copytree(prebuilt_bases / "tiny", old / "tiny")
    shutil.copytree(prebuilt_bases / "tiny", new / "tiny", ignore=shutil.ignore_patterns("bundle"))
    manifest = read_manifest(new / "tiny")
    provenance = manifest.provenance.model_copy(update={"seed": manifest.provenance.seed + 1})
    rewrite_manifest(new / "tiny", manifest.model_copy(update={"provenance": provenance}))
    build_bundle(new / "tiny", new / "tiny" / "bundle")
    return old, new


class Pod:
    """A predictor with its base sets, on a registry that it shares."""

    def __init__(self, database: Database, bases: Path, home: Path, **settings: Any) -> None:
        self.settings = Settings(home=home, bases=bases, heartbeat_seconds=0.001, **settings)
        self.catalog = read_catalog(bases, check_files=False)
        self.database, self.registry = database, Registry(database)
        self.registry.ensure_deployment(DEFAULT, default_soup(self.base.manifest))
        check_weights(database, self.catalog, self.settings)
        self.predictor = Predictor(self.settings, self.catalog, self.registry, Metrics(CollectorRegistry()))

    @property
    def base(self) -> Base:
        return self.catalog["tiny"]

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: default_soup(base.manifest) for name, base in self.catalog.items()}


def kinds(registry: Registry, name: str) -> list[str]:
    return [event.kind for event in registry.events(name, limit=10)]


def test_starts_with_other_weights_move_nothing(
    database: Database, two_bases: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = two_bases
    for bases in (old, new, old, new):
        Pod(database, bases, tmp_path)
    assert Registry(database).deployment(DEFAULT).version == 1
    assert kinds(Registry(database), DEFAULT) == ["created"]
    told = [record.getMessage() for record in caplog.records if "saucier db rebase" in record.getMessage()]
    assert len(told) == 2
    assert "of default were made for other weights" in told[0]


def test_pods_with_old_and_new_weights_serve_what_they_can(
    database: Database, two_bases: tuple[Path, Path], tmp_path: Path
) -> None:
    async def test() -> None:
        old, new = (Pod(database, bases, tmp_path) for bases in two_bases)
        old.registry.ensure_deployment("cold", old.defaults["tiny"])
        await old.predictor.refresh()
        await new.predictor.refresh()
        assert old.predictor.is_ready
        assert not new.predictor.is_ready  # probes keep it out, so the old ones stay
        for name in (DEFAULT, "cold"):
            assert (await old.predictor.get(name)).pointer.version == 1
            with pytest.raises(OtherWeights, match="'tiny' than this worker has") as caught:
                await new.predictor.get(name)
            problem = as_problem(caught.value)
            assert (problem.status, "saucier db rebase" in problem.detail) == (503, True)
        loaded = {name: worker.loaded for worker in old.registry.workers(stale_seconds=60) for name in [worker.id]}
        assert loaded == {old.predictor.id: {DEFAULT: 1, "cold": 1}, new.predictor.id: {}}
        # What was made for the new weights is served by the new one, and only there.
        new.registry.ensure_deployment("fresh", new.defaults["tiny"])
        await old.predictor.refresh()
        await new.predictor.refresh()
        assert (await new.predictor.get("fresh")).pointer.version == 1
        with pytest.raises(NotReady, match="other weights"):
            await old.predictor.get("fresh")

        digests = {name: base.manifest.digest for name, base in new.catalog.items()}
        with pytest.raises(Conflict, match="expected no live worker with other weights of tiny, found process"):
            rebase(database, new.defaults, stale_seconds=60)
        assert made_for_other_weights(database, digests) == ["cold", DEFAULT]
        await old.predictor.stop()
        moves = rebase(database, new.defaults, stale_seconds=60)
        assert [tuple(move) for move in moves] == [("cold", 1, 2), (DEFAULT, 1, 2)]
        assert kinds(new.registry, "cold") == ["rebased", "created"]
        assert rebase(database, new.defaults, stale_seconds=60) == []
        await new.predictor.refresh()
        for name in (DEFAULT, "cold"):
            assert (await new.predictor.get(name)).pointer.version == 2
        assert new.predictor.is_ready
        await new.predictor.stop()

    asyncio.run(test())


def test_a_pod_with_old_weights_serves_on_with_the_version_it_has(
    database: Database, two_bases: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its rows were moved although it lives, as by somebody who waited for less than it was silent."""

    async def test() -> None:
        old, new = (Pod(database, bases, tmp_path) for bases in two_bases)
        old.registry.ensure_deployment("cold", old.defaults["tiny"])
        await old.predictor.refresh()
        old.registry.remove_worker(old.predictor.id)
        rebase(database, new.defaults, stale_seconds=60)
        await old.predictor.refresh()
        for name in (DEFAULT, "cold"):
            assert (await old.predictor.get(name)).pointer.version == 1
        await old.predictor.stop()

    asyncio.run(test())


def test_start_moves_deployments_where_that_is_asked_for(
    database: Database, two_bases: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = two_bases
    pod = Pod(database, old, tmp_path)
    asyncio.run(pod.predictor.refresh())
    Pod(database, new, tmp_path, rebase_at_start=True, stale_seconds=0.2)
    assert pod.registry.deployment(DEFAULT).version == 2  # the first one has been silent for long enough
    pod = Pod(database, new, tmp_path)
    pod.registry.beat_worker("other", pid=7, host="h", provider=None, loaded={}, digests={"tiny": "b" * 64})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.weights.time.sleep", lambda _: None)
        Pod(database, old, tmp_path, rebase_at_start=True)
    assert pod.registry.deployment(DEFAULT).version == 2
    assert "found process 7 on h" in caplog.text


def test_workers_that_do_not_say_their_weights_count_as_others(
    database: Database, two_bases: tuple[Path, Path], tmp_path: Path
) -> None:
    pod = Pod(database, two_bases[0], tmp_path)
    pod.registry.beat_worker("earlier", pid=7, host="h", provider=None, loaded={})
    with pytest.raises(Conflict, match="process 7 on h"):
        rebase(database, Pod(database, two_bases[1], tmp_path).defaults, stale_seconds=60)


def test_adapters_leave_jobs_that_need_other_weights(
    database: Database, two_bases: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = (Pod(database, bases, tmp_path) for bases in two_bases)
    jobs = JobQueue(database)
    add(jobs, "one")
    assert jobs.claim("new", stale_seconds=60, digests=[new.base.manifest.digest]) is None
    claimed = jobs.claim("old", stale_seconds=60, digests=[old.base.manifest.digest])
    assert claimed is not None
    jobs.release(claimed)
    rebase(database, new.defaults, stale_seconds=60)  # there is no adapter for it any more
    ended = jobs.get("one")
    assert ended is not None
    assert (ended.state, ended.version) == ("failed", 2)
    assert "send the images again" in (ended.reason or "")


def test_images_for_other_weights_are_refused_and_nothing_is_kept(
    database: Database, two_bases: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = (Pod(database, bases, tmp_path) for bases in two_bases)
    manifest = new.base.manifest
    images = Support(
        images=np.zeros((2, 16, 16, 3), dtype=np.uint8),
        labels=np.asarray([0, 1]),
        hashes=("a" * 64, "b" * 64),
        class_names=manifest.class_names,
    )
    intake = Intake(database, ObjectStore(str(tmp_path / "objects")), max_bytes=10**9, max_queued=5)
    with pytest.raises(Conflict, match="other weights than this worker has"):
        intake.submit(Wanted(DEFAULT, Material(images, None, ())), manifest)
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []
    assert old.registry.snapshot().active_jobs == {}


def test_rebase_command_moves_and_names(
    registry_url: str,
    two_bases: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAUCIER_DATABASE_URL", registry_url)
    monkeypatch.setenv("SAUCIER_BASES", str(two_bases[1]))
    with closing(Database(registry_url)) as database:
        Pod(database, two_bases[0], tmp_path)
    result = db.RebaseCommand().execute()
    assert result.data == {"moved": [{"deployment": DEFAULT, "from_version": 1, "to_version": 2}]}
    assert result.text == "default: version 1 -> 2, the default soup of the new weights"
    assert db.RebaseCommand().execute().data == {"moved": []}


@pytest.mark.e2e
def test_server_with_new_weights_starts_says_what_to_do_and_serves_the_rest(
    two_bases: tuple[Path, Path], prebuilt_bases: Path, tmp_path: Path
) -> None:
    home, bases = tmp_path / "home", tmp_path / "bases"
    shutil.copytree(two_bases[1] / "tiny", bases / "tiny")
    shutil.copytree(prebuilt_bases / "tiny-ln", bases / "tiny-ln")
    home.mkdir()
    with closing(Database(f"sqlite:///{home / 'registry.db'}")) as database:
        migrate.upgrade(database)
        Pod(database, two_bases[0], home)
        other = default_soup(read_manifest(prebuilt_bases / "tiny-ln", check_files=False))
        Registry(database).ensure_deployment("other", other)
    server = Server(home, bases, BASE_SET="tiny")
    picture: dict[str, Any] = {"content": b"none", "headers": {"Content-Type": "image/png"}}
    try:
        server.start(wait=False)
        server.wait_for(lambda: httpx.get(f"{server.url}/livez").status_code == 200, "server")
        answer = server.client.post("/predict", **picture)
        assert answer.status_code == 503
        assert "saucier db rebase" in answer.json()["detail"]
        assert server.client.get("/readyz").status_code == 503
        assert server.client.post("/predict?deployment=other", **picture).status_code == 422  # it looks at the image
        dial = server.client.put("/deployments/default/soup", json={"coefficients": {"linf": 1.0}})
        assert dial.status_code == 409
        assert "saucier db rebase" in server.log.read_text()
    finally:
        assert server.stop() == 0


# The schema


def fill(database: Database, tables: MetaData) -> None:
    """Add a row to every table as code that knows these columns would, with nothing in those that may be empty."""
    values = {"INTEGER": 1, "BOOLEAN": True, "JSON": {}, "VARCHAR": "x", "TEXT": "x"}
    with database.write() as session:
        for table in tables.sorted_tables:
            if table.name in ("alembic_version", "registry"):
                continue
            row = {
                column.name: values.get(str(column.type).partition("(")[0], 1.0)
                for column in table.columns
                if not column.nullable and column.server_default is None
            }
            session.execute(table.insert().values(row))


def upgrade_to(database: Database, revision: str) -> None:
    with database.write() as session:
        config = migrate._config()
        config.attributes["connection"] = session.connection()
        command.upgrade(config, revision)


def reflected(database: Database) -> MetaData:
    tables = MetaData()
    with database.read() as session:
        tables.reflect(session.connection())
    return tables


def test_code_of_the_revision_before_works_beside_this_one(empty: Database) -> None:
    """What it reads and writes is there, and nothing that it does not know is needed."""
    upgrade_to(empty, PREVIOUS)
    before = reflected(empty)
    migrate.upgrade(empty)
    with empty.read() as session:
        found = inspect(session.connection())
        for table in before.tables.values():
            assert {column.name for column in table.columns} <= {one["name"] for one in found.get_columns(table.name)}
    fill(empty, before)
    registry = Registry(empty)
    registry.beat_worker("new", pid=1, host="h", provider=None, loaded={"x": 1}, digests={"tiny": "d"})
    with empty.read() as session:  # each reads the other's rows
        workers: Table = before.tables["workers"]
        assert len(session.execute(workers.select()).all()) == 2
    assert {worker.id: worker.digests for worker in registry.workers(stale_seconds=1e12)} == {
        "x": None,
        "new": {"tiny": "d"},
    }
    assert list(registry.snapshot().moves) == ["x"]


@pytest.fixture
def next_versions(tmp_path: Path) -> list[Path]:
    """The folders of migrations of the next two versions."""
    folders = []
    source, down = migrate.FOLDER, migrate.head()
    for revision in ("9001", "9002"):
        folder = tmp_path / revision
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "versions" / f"r{revision}.py").write_text(NEXT.format(revision=revision, down_revision=down))
        folders.append(folder)
        source, down = folder, revision
    return folders


def test_registry_one_head_ahead_is_used_as_it_is(
    empty: Database, next_versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate.upgrade(empty)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "FOLDER", next_versions[0])
        assert migrate.upgrade(empty) != "9001"
    assert migrate.upgrade(empty) == "9001"  # an old process starts again, and changes nothing
    assert migrate.upgrade(empty) == "9001"
    with empty.read() as session:
        assert "extra_9001" in {one["name"] for one in inspect(session.connection()).get_columns("deployments")}
    registry = Registry(empty)
    assert registry.ensure_deployment("one", soup(1.0))
    assert list(registry.snapshot().moves) == ["one"]


def test_registry_two_heads_ahead_is_refused(
    empty: Database, next_versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "FOLDER", next_versions[1])
        migrate.upgrade(empty)
        assert migrate.head() == "9002"
    with pytest.raises(SchemaError, match=r"^expected a schema revision up to \w+, found 9002: "):
        migrate.upgrade(empty)
    with empty.read() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "9002"


def test_commands_take_a_registry_one_head_ahead(
    empty_url: str,
    prebuilt_bases: Path,
    next_versions: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SAUCIER_DATABASE_URL", empty_url)
    monkeypatch.setenv("SAUCIER_BASES", str(prebuilt_bases))
    with closing(Database(empty_url)) as database, monkeypatch.context() as patch:
        patch.setattr(migrate, "FOLDER", next_versions[0])
        migrate.upgrade(database)
        manifest = read_manifest(prebuilt_bases / "tiny", check_files=False)
        Registry(database).ensure_deployment(DEFAULT, default_soup(manifest))
    assert db.UpgradeCommand().execute().data == {"revision": "9001", "previous_revision": "9001"}
    checked = db.CheckCommand().execute()
    assert (checked.exit_code, checked.data["problems"], checked.data["deployments"]) == (0, [], 1)
    assert db.RebaseCommand().execute().data == {"moved": []}
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
