"""What the adapter builds before it works, without a server."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import service.adapter.building
from deploy.layout import BUNDLE_NAME, BundleError
from service.adapter.loop import AdapterLoop
from service.defaults import settle_default
from service.metrics import Metrics
from service.prediction.catalog import Base, read_catalog
from service.settings import Settings
from service.store.database import Database
from service.store.jobs import JobQueue
from service.store.objects import ObjectStore
from service.store.references import References
from service.store.registry import Registry
from service.store.samples import Samples
from service.store.watches import Watches


@pytest.fixture
def loop(
    tiny_base_set: Path, tiny_ln_base_set: Path, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AdapterLoop]:
    """An adapter whose `default` is not the first of its base sets, none of which has a bundle; it is not started."""
    monkeypatch.setattr(os, "nice", lambda _: 0)
    bases, objects = tmp_path / "bases", ObjectStore(str(tmp_path / "samples"))
    for source in (tiny_base_set, tiny_ln_base_set):
        shutil.copytree(source, bases / source.name)
    settings = Settings(home=tmp_path, bases=bases, base_set="tiny-ln")
    with closing(Database(sqlite_url)) as database:
        settle_default(database, read_catalog(bases, check_files=False), settings)
        yield AdapterLoop(
            settings,
            read_catalog(bases, check_files=False),
            Registry(database),
            JobQueue(database),
            Samples(database, objects),
            References(database, objects),
            Watches(database),
            Metrics(CollectorRegistry()),
        )


class Ended(BaseException):
    """Stands for the end of the process."""


def run(loop: AdapterLoop, monkeypatch: pytest.MonkeyPatch, *, failing: str | None) -> list[str]:
    """Run the loop until it would look for a job or end; return the base sets it built bundles for, in order."""
    built = []

    def build(base: Base, home: Path) -> None:
        built.append(base.manifest.name)
        if base.manifest.name == failing:
            raise BundleError("expected a network\nthat can be exported")
        folder = home / "bundles" / base.manifest.digest
        folder.mkdir(parents=True)
        (folder / BUNDLE_NAME).touch()

    def end(*_: object) -> None:
        raise Ended

    monkeypatch.setattr(service.adapter.building, "build", build)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(loop, "_keep_house", end)
    with pytest.raises(Ended):
        loop._run()
    return built


def test_the_bundle_of_default_comes_first(loop: AdapterLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(loop, monkeypatch, failing=None) == ["tiny-ln", "tiny"]
    assert run(loop, monkeypatch, failing=None) == []


def test_a_base_set_that_cannot_be_built_holds_up_no_other(
    loop: AdapterLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "service.adapter.loop"):
        run(loop, monkeypatch, failing="tiny")
    assert "the serving bundle of tiny cannot be built: expected a network that can be exported" in caplog.text
    assert "the adapter is ready" in caplog.text


def test_without_the_bundle_of_default_the_adapter_ends_with_one_line(
    loop: AdapterLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(loop, monkeypatch, failing="tiny-ln") == ["tiny-ln"]
    (record,) = (record for record in caplog.records if record.name == "service.adapter.loop")
    assert record.getMessage() == "the adapter cannot start: expected a network that can be exported"
    assert record.exc_info is None
