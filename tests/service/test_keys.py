"""API keys: the file, its commands, and how a running process follows it."""

import json
import os
import re
import resource
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from service.__main__ import main
from service.store import keys as store
from service.store.keys import PREFIX, KeyRing, KeysError, add_key, find_key, read_keys, revoke_key


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("SAUCIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAUCIER_API_KEYS_FILE", str(tmp_path / "keys.json"))
    return tmp_path / "keys.json"


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any], str]:
    code = main(["keys", *args, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_key_is_random_recognisable_and_not_in_the_file(path: Path) -> None:
    secrets = [add_key(path, f"key-{index}", "predict") for index in range(3)]
    assert len(set(secrets)) == 3
    assert all(re.fullmatch(PREFIX + r"[A-Za-z0-9_-]{43}", secret) for secret in secrets)
    text = path.read_text()
    assert not any(secret in text or secret.removeprefix(PREFIX) in text for secret in secrets)
    assert [find_key(read_keys(path), secret).name for secret in secrets] == ["key-0", "key-1", "key-2"]  # type: ignore[union-attr]
    assert find_key(read_keys(path), secrets[0][:-1]) is None
    assert find_key(read_keys(path), "") is None


def test_file_is_its_owner_s_and_stays_a_link(path: Path) -> None:
    target = path.with_name("elsewhere.json")
    path.symlink_to(target)
    add_key(path, "a", "admin")
    assert path.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(found.name for found in path.parent.iterdir()) == ["elsewhere.json", "keys.json"]


def test_keys_added_at_once_are_all_there(path: Path) -> None:
    threads = [threading.Thread(target=add_key, args=(path, f"key-{index}", "adapt")) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(path)} == {f"key-{index}" for index in range(20)}


def test_commands_add_list_and_revoke(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, made, _ = call(capsys, "add", "--name", "camera-7", "--role", "predict")
    assert (code, made["name"], made["role"]) == (0, "camera-7", "predict")
    assert main(["keys", "add", "--name", "ops@site", "--role", "admin"]) == 0
    assert capsys.readouterr().out.strip().startswith(PREFIX)
    code, listed, _ = call(capsys, "list")
    assert [(key["name"], key["role"]) for key in listed["keys"]] == [("camera-7", "predict"), ("ops@site", "admin")]
    assert made["key"] not in json.dumps(listed)
    assert call(capsys, "revoke", "--name", "camera-7")[:2] == (0, {"name": "camera-7", "role": "predict"})
    assert find_key(read_keys(path), made["key"]) is None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("add", "--name", "a b", "--role", "adapt"), "pattern"),
        (("add", "--name", "x" * 64, "--role", "adapt"), "pattern"),
        (("add", "--name", "a", "--role", "root"), "root"),
        (("add", "--name", "a"), "role"),
        (("add", "--name", "taken", "--role", "adapt"), "expected a new name"),
        (("revoke", "--name", "nobody"), "one of \\['taken'\\]"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    args: tuple[str, ...], expected: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_key(path, "taken", "admin")
    before = path.read_bytes()
    code, data, error = call(capsys, *args)
    assert (code, data, error.count("\n")) == (2, {}, 1)
    assert re.search(expected, error), error
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        '{"format_version": 2, "keys": []}',
        '{"format_version": 1, "keys": [{"name": "a"}]}',
        '{"format_version": 1, "keys": [], "more": 1}',
    ],
)
def test_file_that_is_none_is_refused_in_one_line(
    text: str | None, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        path.write_text(text)
    with pytest.raises(KeysError, match=re.escape(str(path))):
        read_keys(path)
    for args in (("list",), ("revoke", "--name", "a")):
        code, data, error = call(capsys, *args)
        assert (code, data, error.count("\n")) == (2, {}, 1)


def test_name_or_hash_twice_is_refused(path: Path) -> None:
    add_key(path, "a", "predict")
    document = json.loads(path.read_text())
    (key,) = document["keys"]
    for other in ({**key, "name": "b"}, {**key, "sha256": "0" * 64}):
        path.write_text(json.dumps({**document, "keys": [key, other]}))
        with pytest.raises(KeysError, match="once"):
            read_keys(path)


def test_commands_without_a_file_say_which_setting(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAUCIER_API_KEYS_FILE")
    assert main(["keys", "list"]) == 2


def test_ring_follows_the_file_and_survives_a_slip(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOOK_SECONDS", 0.0)
    ring = KeyRing(path)
    assert ring.find("anything") is None
    first = add_key(path, "first", "predict")
    assert ring.find(first) is not None
    second = add_key(path, "second", "predict")
    assert ring.find(second) is not None
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert ring.find(second) is not None
    path.write_text(whole)
    revoke_key(path, "first")
    assert ring.find(first) is None
    assert ring.find(second) is not None


def test_file_is_not_looked_at_with_every_request(path: Path) -> None:
    ring = KeyRing(path)
    assert ring.find("anything") is None
    secret = add_key(path, "a", "predict")
    assert ring.find(secret) is None


def test_every_key_is_compared_in_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [add_key(path, f"key-{index}", "predict") for index in range(5)]
    compared: list[str] = []
    compare = store.hmac.compare_digest

    def count(one: str, other: str) -> bool:
        compared.append(one)
        return compare(one, other)

    monkeypatch.setattr(store.hmac, "compare_digest", count)
    for secret in (secrets[0], secrets[4], "unknown"):
        compared.clear()
        find_key(read_keys(path), secret)
        assert len(compared) == 5


def test_file_that_could_not_be_read_once_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The fault: the change counted as read, so a key that was revoked then stayed valid."""
    monkeypatch.setattr(store, "LOOK_SECONDS", 0.0)
    secret = add_key(path, "a", "predict")
    ring = KeyRing(path)
    assert ring.find(secret) is not None
    revoke_key(path, "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # no file can be opened
    try:
        for _ in range(3):
            assert ring.find(secret) is not None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # said once
    assert ring.find(secret) is None


def test_ring_says_if_a_key_still_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOOK_SECONDS", 0.0)
    secret = add_key(path, "a", "adapt")
    ring = KeyRing(path)
    key = ring.find(secret)
    assert key is not None
    assert ring.has(key)
    revoke_key(path, "a")
    assert not ring.has(key)
    add_key(path, "a", "adapt")  # another key of that name
    assert not ring.has(key)
