"""Which base set `default` has after a start, when the setting or the folder says another one than before."""

import asyncio
import logging
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from adapt.documents.soup import default_soup
from service import db
from service.defaults import settle_default
from service.metrics import Metrics
from service.prediction.catalog import read_catalog
from service.prediction.predictor import DEFAULT, Predictor
from service.settings import Settings
from service.store.database import Database
from service.store.jobs import JobQueue
from service.store.rebasing import change_base_set
from service.store.registry import Registry
from service.store.transactions import Conflict
from tests.service.conftest import Server
from tests.service.test_registry import add
from training.manifest import BaseSetError


def start(database: Database, bases: Path, base_set: str | None = None, *, stale_seconds: float = 0.2) -> str:
    """Do what a start does about `default`; return its base set."""
    settings = Settings(bases=bases, base_set=base_set, stale_seconds=stale_seconds)
    settle_default(database, read_catalog(bases, check_files=False), settings)
    return Registry(database).deployment(DEFAULT).base_set


def beat(database: Database, bases: Path) -> None:
    digests = {name: base.manifest.digest for name, base in read_catalog(bases, check_files=False).items()}
    Registry(database).beat_worker("other", pid=7, host="h", provider=None, loaded={}, digests=digests)


def kinds(database: Database) -> list[str]:
    return [event.kind for event in Registry(database).events(DEFAULT, limit=10)]


@pytest.fixture
def fresh(registry_url: str) -> Database:
    return Database(registry_url)


def test_a_start_with_another_base_set_moves_default_with_an_event(fresh: Database, prebuilt_bases: Path) -> None:
    with closing(fresh) as database:
        assert start(database, prebuilt_bases, "tiny") == "tiny"
        add(JobQueue(database), "one")
        assert start(database, prebuilt_bases, "tiny-ln") == "tiny-ln"
        assert kinds(database) == ["rebased", "created"]
        found = Registry(database).deployment(DEFAULT)
        assert found.version == 2
        catalog = read_catalog(prebuilt_bases, check_files=False)
        assert Registry(database).soup(DEFAULT, 2) == default_soup(catalog["tiny-ln"].manifest)
        assert Registry(database).soup(DEFAULT, 1).base_set == "tiny"  # the history stays
        job = JobQueue(database).get("one")
        assert job is not None
        assert (job.state, job.version) == ("failed", 2)
        # Without the setting, and with it once more, it stays.
        assert start(database, prebuilt_bases) == start(database, prebuilt_bases, "tiny-ln") == "tiny-ln"
        assert kinds(database) == ["rebased", "created"]


def test_replicas_with_different_settings_do_not_move_default_to_and_fro(
    fresh: Database, prebuilt_bases: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.defaults.time.sleep", lambda _: beat(fresh, prebuilt_bases))
    with closing(fresh) as database:
        start(database, prebuilt_bases, "tiny")
        beat(database, prebuilt_bases)
        for base_set in ("tiny-ln", "tiny", "tiny-ln"):
            assert start(database, prebuilt_bases, base_set, stale_seconds=60) == "tiny"
        assert kinds(database) == ["created"]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 2
    assert "found process 7 on h; `saucier db rebase --base-set tiny-ln` moves it" in told[0]


def test_workers_that_were_killed_a_moment_ago_are_waited_for(fresh: Database, prebuilt_bases: Path) -> None:
    with closing(fresh) as database:
        start(database, prebuilt_bases, "tiny")
        beat(database, prebuilt_bases)
        assert start(database, prebuilt_bases, "tiny-ln", stale_seconds=0.3) == "tiny-ln"


def test_a_start_where_the_base_set_is_missing_names_the_remedy(
    fresh: Database, prebuilt_bases: Path, tmp_path: Path
) -> None:
    shutil.copytree(prebuilt_bases / "tiny-ln", tmp_path / "tiny-ln")
    with closing(fresh) as database:
        start(database, prebuilt_bases, "tiny")
        with pytest.raises(BaseSetError, match=r"expected 'tiny', .*found \['tiny-ln'\].*--base-set NAME"):
            start(database, tmp_path)
        with pytest.raises(BaseSetError, match=r"expected a base set named 'mine' \(SAUCIER_BASE_SET\)"):
            start(database, tmp_path, "mine")
        assert start(database, tmp_path, "tiny-ln") == "tiny-ln"


def test_live_predictors_follow_to_another_base_set_if_all_have_it(
    fresh: Database, prebuilt_bases: Path, tmp_path: Path
) -> None:
    async def test() -> None:
        catalog = read_catalog(prebuilt_bases, check_files=False)
        settings = Settings(bases=prebuilt_bases, home=tmp_path)
        registry = Registry(fresh)
        predictor = Predictor(settings, catalog, registry, Metrics(CollectorRegistry()))
        await predictor.refresh()
        other = default_soup(catalog["tiny-ln"].manifest)
        registry.beat_worker("poor", pid=7, host="h", provider=None, loaded={}, digests={"tiny": "a" * 64})
        with pytest.raises(Conflict, match="every live worker has the base set 'tiny-ln', found process 7 on h"):
            change_base_set(fresh, DEFAULT, other, stale_seconds=60)
        registry.remove_worker("poor")
        assert change_base_set(fresh, DEFAULT, other, stale_seconds=60) is not None
        await predictor.refresh()
        served = await predictor.get(DEFAULT)
        assert (served.pointer.version, served.base.manifest.name) == (2, "tiny-ln")
        await predictor.stop()

    with closing(fresh) as database:
        start(database, prebuilt_bases, "tiny")
        asyncio.run(test())


def test_rebase_command_moves_one_deployment(
    registry_url: str, prebuilt_bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAUCIER_DATABASE_URL", registry_url)
    monkeypatch.setenv("SAUCIER_BASES", str(prebuilt_bases))
    with closing(Database(registry_url)) as database:
        start(database, prebuilt_bases, "tiny")
    result = db.RebaseCommand(base_set="tiny-ln").execute()
    assert result.data == {"moved": [{"deployment": DEFAULT, "from_version": 1, "to_version": 2}]}
    assert result.text == "default: version 1 -> 2, default soup of tiny-ln"
    assert db.RebaseCommand(base_set="tiny-ln").execute().data == {"moved": []}
    with pytest.raises(ValueError, match=r"--base-set: expected one of \['tiny', 'tiny-ln'\], got 'mine'"):
        db.RebaseCommand(base_set="mine").execute()
    with pytest.raises(ValueError, match="--deployment: expected --base-set with it"):
        db.RebaseCommand(deployment="gate").execute()
    with pytest.raises(ValueError, match=r"--deployment: expected one of \['default'\], got 'gate'"):
        db.RebaseCommand(base_set="tiny", deployment="gate").execute()


@pytest.mark.slow
@pytest.mark.e2e
def test_a_server_is_started_again_with_another_base_set(prebuilt_bases: Path, tmp_path: Path) -> None:
    for base_set, version in (("tiny", 1), ("tiny-ln", 2)):
        server = Server(tmp_path / "home", prebuilt_bases, BASE_SET=base_set).start()
        try:
            found = server.client.get("/deployments/default").json()
            assert (found["base_set"], found["version"]) == (base_set, version)
            assert len(server.live_workers()) == 2
        finally:
            assert server.stop() == 0
