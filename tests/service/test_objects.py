"""Objects at rest, in a local folder and on an S3 server."""

import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from service.store.objects import ObjectStore, StoreError
from tests.service.conftest import S3_ENVIRONMENT


@pytest.fixture
def store(store_url: str) -> ObjectStore:
    return ObjectStore(store_url)


def test_what_is_written_is_read_listed_and_deleted(store: ObjectStore) -> None:
    store.write("a/one", b"1")
    store.write("a/two", b"22")
    assert store.read(["a/two", "a/one", "a/none"]) == {"a/one": b"1", "a/two": b"22"}
    times = store.list("a")
    assert set(times) == {"a/one", "a/two"}
    assert all(time > 1.7e9 for time in times.values())
    store.delete(["a/one", "a/none"])
    assert set(store.list("a")) == {"a/two"}
    assert store.read(["a/one"]) == {}
    assert store.read([]) == {}
    assert store.list("b") == {}


def test_store_tells_the_time_that_it_dates_with(store: ObjectStore) -> None:
    before = store.now()
    store.write("a", b"1")
    assert before - 1 <= store.list("")["a"] <= store.now() + 1  # S3 dates in whole seconds
    assert set(store.list("")) == {"a"}


def test_probe_leaves_nothing(store: ObjectStore) -> None:
    store.probe()
    assert store.list("") == {}


def test_two_containers_probe_at_once(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes may well have the same number."""
    read = ObjectStore.read
    monkeypatch.setattr(os, "getpid", lambda: 7)

    def slow(self: ObjectStore, keys: Iterable[str]) -> dict[str, bytes]:
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "read", read)
            self.probe()
            return self.read(keys)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "read", slow)
        store.probe()
    assert store.list("") == {}


def test_folder_is_closed_to_others(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path / "home" / "samples"))
    store.probe()
    store.write("packs/one", b"1")
    for folder in ("home/samples", "home/samples/packs"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


def test_names_with_odd_characters_are_taken_as_they_are(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path / "a [b]* ?{c}"))
    store.write("packs/one", b"1")
    assert store.read(["packs/one"]) == {"packs/one": b"1"}
    assert set(store.list("packs")) == {"packs/one"}


def test_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    store = ObjectStore(str(tmp_path))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space") as caught:
        store.write("packs/one", b"1")
    assert caught.value.errno == 28
    assert list((tmp_path / "packs").iterdir()) == []


@pytest.mark.parametrize(("url", "problem"), [("nothing://x/y", "nothing"), ("s3://no-such-bucket/folder", "bucket")])
@pytest.mark.usefixtures("s3_endpoint")
def test_store_that_is_not_there_is_one_line(url: str, problem: str) -> None:
    with pytest.raises(OSError, match=problem) as caught:
        ObjectStore(url).probe()
    assert len(str(caught.value).splitlines()) == 1


def test_server_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    environment = S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # those of other tests know another server
    store = ObjectStore("s3://bucket/folder")
    for use in (lambda: store.read(["a/one"]), lambda: store.write("a/one", b"1"), lambda: store.list("a")):
        with pytest.raises(StoreError, match=r"^[^\n]+$"):
            use()
    S3FileSystem.clear_instance_cache()
