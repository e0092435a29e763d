"""Registries that share a store: of a staging system, a copy of a database, an older backup."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import psycopg
import pytest
from sqlalchemy import text, update

from benchmarks.postgres import Postgres
from service import db
from service.store import packs as packs_module
from service.store.backup import back_up
from service.store.database import Database
from service.store.identity import become_copy, become_original, check_identity, read_owner
from service.store.migrate import upgrade
from service.store.objects import StoreError
from service.store.references import References
from service.store.tables import Pack
from tests.service.test_references import some
from tests.service.test_samples import HASHES, Place
from training.manifest import Manifest, read_manifest


@pytest.fixture
def manifest(prebuilt_bases: Path) -> Manifest:
    return read_manifest(prebuilt_bases / "tiny", check_files=False)


@pytest.fixture
def make(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Place]]:
    """Make places by the name of their database, all on one store; nothing in it is too young to be swept."""
    monkeypatch.setattr(packs_module, "ORPHAN_SECONDS", -10)
    monkeypatch.setattr("service.store.references.ORPHAN_SECONDS", -10)
    places = []

    def made(name: str) -> Place:
        url = f"sqlite:///{tmp_path / name}.db"
        with closing(Database(url)) as database:
            upgrade(database)
            check_identity(database, is_shared=True)
        places.append(Place(url, str(tmp_path / "store"), manifest))
        return places[-1]

    yield made
    for place in places:
        place.database.close()


def copy(tmp_path: Path, source: str, target: str) -> None:
    """Copy a database as `db backup` does."""
    back_up(f"sqlite:///{tmp_path / source}.db", tmp_path / f"{target}.db")


def tidy(place: Place) -> None:
    place.samples.packs.clean()
    place.samples.packs.sweep()
    References(place.database, place.objects).sweep()


def test_two_registries_on_one_folder_leave_each_other_alone(make: Callable[[str], Place]) -> None:
    first, second = make("first"), make("second")
    for place, number in ((first, 0), (second, 5)):
        place.submit({number: 1, number + 1: 0}, unlabelled=[number + 2])
        References(place.database, place.objects).put("default", some(6, seed=number), 0.5)
    for place in (first, second):
        tidy(place)
    assert first.kept() == {0: "dog", 1: "cat"}
    assert second.kept() == {5: "dog", 6: "cat"}
    for place in (first, second):
        assert References(place.database, place.objects).load("default") is not None
        assert place.samples.load(place.jobs.latest("default", limit=1)[0], place.manifest).unlabelled is not None


def test_what_a_crash_left_is_still_swept_up(make: Callable[[str], Place]) -> None:
    place = make("one")
    place.samples.packs.write("left", [HASHES[0]], np.zeros((1, 16, 16, 3), dtype=np.uint8))
    assert len(place.objects.list("")) == 1
    tidy(place)
    assert place.objects.list("") == {}


def test_copy_deletes_nothing_of_its_original(
    make: Callable[[str], Place], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = make("original")
    original.submit({0: 1, 1: 0})
    copy(tmp_path, "original", "staging")
    original.submit({2: 0})
    staging = make("staging")
    assert "it deletes nothing from the store until you say why" in caplog.text
    assert staging.kept() == {0: "dog", 1: "cat"}
    with pytest.raises(StoreError, match="saucier db identity copy"):  # nobody has said what it is
        staging.samples.remove("default", digest=HASHES[0])
    with pytest.raises(StoreError, match="saucier db identity moved"):
        staging.samples.packs.sweep()
    assert original.kept() == {0: "dog", 1: "cat", 2: "cat"}

    become_copy(staging.database)
    tidy(staging)
    assert staging.kept() == {1: "cat"}
    staging.samples.remove("default")
    staging.submit({7: 0})
    tidy(staging)
    assert original.kept() == {0: "dog", 1: "cat", 2: "cat"}
    tidy(original)
    assert staging.kept() == {7: "cat"}


def test_moved_registry_goes_on(make: Callable[[str], Place], tmp_path: Path) -> None:
    original = make("original")
    original.submit({0: 1, 1: 0})
    copy(tmp_path, "original", "elsewhere")
    moved = make("elsewhere")
    assert become_original(moved.database) == read_owner(original.database).id
    moved.samples.remove("default", digest=HASHES[0])
    assert moved.stored() == [1]


def test_home_that_was_moved_with_its_samples_needs_no_word(
    make: Callable[[str], Place], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make("original")
    copy(tmp_path, "original", "home")
    with closing(Database(f"sqlite:///{tmp_path / 'home'}.db")) as database:
        assert not read_owner(database).is_in_place
        check_identity(database, is_shared=False)
        assert read_owner(database).is_in_place
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_older_backup_on_a_newer_store_finds_every_image_that_it_names_and_that_is_left(
    make: Callable[[str], Place], tmp_path: Path
) -> None:
    place = make("one")
    place.submit({0: 1, 1: 0, 2: 2})
    place.submit({3: 0})
    copy(tmp_path, "one", "backup")
    place.samples.remove("default", digest=HASHES[1])  # the rest of its pack is written to a new one
    place.submit({4: 0})
    place.database.close()
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"one.db{suffix}").unlink(missing_ok=True)
    shutil.move(tmp_path / "backup.db", tmp_path / "one.db")
    restored = make("one")
    assert read_owner(restored.database).is_in_place
    restored.samples.packs.sweep()
    restored.samples.packs.clean()
    job = restored.submit(choice="all").job
    assert restored.load(job)[0] == {0: 1, 2: 2, 3: 0}
    assert restored.stored() == [0, 2, 3]


def test_objects_from_before_there_were_ids_stay_in_use(make: Callable[[str], Place]) -> None:
    place = make("one")
    job = place.submit({0: 1, 1: 0}, unlabelled=[2]).job
    own = read_owner(place.database).id
    for key, data in place.objects.read(place.objects.list("")).items():
        place.objects.write(key.removeprefix(f"{own}/"), data)
        place.objects.delete([key])
    with place.database.write() as session:
        session.execute(update(Pack).values(origin=None))
    place.objects.write("packs/of-another-registry.npz", b"x")
    assert place.load(job) == ({0: 1, 1: 0}, [2])
    tidy(place)
    assert place.kept() == {0: "dog", 1: "cat"}
    place.samples.remove("default", digest=HASHES[0])
    place.samples.discard(job)
    tidy(place)
    assert set(place.objects.list("packs")) == {"packs/of-another-registry.npz"}
    assert place.kept() == {1: "cat"}
    assert place.objects.list("unlabelled") == {}


def test_database_of_a_server_is_known_by_its_place(postgres: Postgres, postgres_url: str) -> None:
    with closing(Database(postgres_url)) as database:
        check_identity(database, is_shared=True)
        before = read_owner(database)
        assert before.is_in_place
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
            connection.execute("GRANT USAGE ON SCHEMA public TO plain; GRANT SELECT ON registry TO plain")
        plain = postgres_url.replace("saucier@", "plain@")
        with closing(Database(plain)) as as_plain_user:
            assert read_owner(as_plain_user) == before
        with database.write() as session:
            session.execute(text("UPDATE registry SET place = '7/7'"))
        assert not read_owner(database).is_in_place


def test_command_says_what_a_registry_is(
    make: Callable[[str], Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = read_owner(make("original").database).id
    copy(tmp_path, "original", "other")
    monkeypatch.setenv("SAUCIER_DATABASE_URL", f"sqlite:///{tmp_path / 'other'}.db")
    assert db.IdentityCommand(what="moved").execute().data == {"id": original}
    found = db.IdentityCommand(what="copy").execute().data["id"]
    assert found != original
    with closing(Database(f"sqlite:///{tmp_path / 'other'}.db")) as database:
        assert read_owner(database) == (found, False, True)
