"""`saucier db`: upgrade, check, backup, on SQLite and PostgreSQL."""

import json
import os
import sqlite3
import subprocess
import threading
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from sqlalchemy import text, update

from adapt.documents.patch import make_patch
from adapt.documents.soup import Soup, default_soup, make_soup
from benchmarks.postgres import Postgres, binaries
from service.__main__ import main
from service.store.database import Database
from service.store.migrate import head, upgrade
from service.store.registry import Registry
from service.store.tables import SoupVersion
from tests.service.test_registry import head as head_patch
from tests.service.test_registry import held_out
from training.manifest import read_manifest


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prebuilt_bases: Path) -> None:
    for name in [name for name in os.environ if name.startswith("SAUCIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAUCIER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAUCIER_BASES", str(prebuilt_bases))


@pytest.fixture
def soup(prebuilt_bases: Path) -> Soup:
    return default_soup(read_manifest(prebuilt_bases / "tiny"))


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any], str]:
    code = main(["db", *args, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_upgrade_makes_and_check_finds_it_sound(
    empty_url: str, soup: Soup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAUCIER_DATABASE_URL", empty_url)
    assert call(capsys, "upgrade") == (0, {"revision": head(), "previous_revision": None}, "")
    with closing(Database(empty_url)) as database:
        Registry(database).ensure_deployment("default", soup)
        Registry(database).ensure_deployment("gate", soup)
    code, found, _ = call(capsys, "check")
    assert (code, found["deployments"], found["problems"]) == (0, 2, [])


def test_default_registry_lies_below_the_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = call(capsys, "check")
    assert code == 2
    assert "registry.db: expected the registry, found no such file" in error
    assert call(capsys, "upgrade")[0] == 0
    assert (tmp_path / "home" / "registry.db").is_file()
    assert call(capsys, "check")[0] == 0


def test_check_names_the_deployments_that_do_not_load(
    registry_url: str,
    soup: Soup,
    prebuilt_bases: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SAUCIER_DATABASE_URL", registry_url)
    unfit = make_patch({"no.such.tensor": np.zeros(3, dtype=np.float32)}, rungs=["head"])
    with closing(Database(registry_url)) as database:
        registry = Registry(database)
        for name in ("well", "gone", "unfit", "answers"):
            registry.ensure_deployment(name, soup)
        registry.ensure_deployment("other", soup.model_copy(update={"base_set": "nobody"}))
        registry.ensure_deployment("weights", soup.model_copy(update={"base_digest": "0" * 64}))
        manifest = read_manifest(prebuilt_bases / "tiny")
        registry.dial("unfit", make_soup(manifest, soup.coefficients, patch=unfit))
        registry.dial("answers", soup.model_copy(update={"held_out": held_out(0.5)}))
        with database.write() as session:
            session.execute(text("UPDATE deployments SET version = 7 WHERE name = 'gone'"))
            session.execute(update(SoupVersion).where(SoupVersion.version == 2).values(held_out=b"damaged"))
    code, found, _ = call(capsys, "check")
    assert (code, found["deployments"]) == (1, 6)
    answers, gone, other, unfit_line, weights = found["problems"]
    assert answers.startswith("answers: version 2 does not load: ")
    assert "held_out: expected answers with SHA-256" in answers
    assert gone == "gone: points at version 7, which is not there"
    assert "expected the base set 'nobody'" in other
    assert unfit_line.startswith("unfit: version 2 does not load: ")
    assert weights.startswith("weights: version 1 does not load: ")


def test_check_says_when_the_schema_is_not_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "home").mkdir()
    with closing(sqlite3.connect(tmp_path / "home" / "registry.db")) as connection:
        connection.execute("CREATE TABLE something (id INTEGER)")
    code, found, _ = call(capsys, "check")
    assert code == 1
    assert "saucier db upgrade" in found["problems"][0]


def test_check_finds_damage(tmp_path: Path, soup: Soup, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "home" / "registry.db"
    path.parent.mkdir()
    with closing(Database(f"sqlite:///{path}")) as database:
        upgrade(database)
        Registry(database).ensure_deployment("default", soup)
    with closing(sqlite3.connect(path)) as connection:  # foreign keys are off here
        connection.execute("DELETE FROM deployments")
        connection.commit()
    code, found, _ = call(capsys, "check")
    assert code == 1
    assert found["problems"] == ["soups: row 1 refers to a row of deployments that is not there"]
    path.write_bytes(b"something else" * 1000)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    code, _, error = call(capsys, "check")
    assert code == 2
    assert error == "error: the registry cannot be used: file is not a database\n"


def test_backup_is_one_moment_of_a_registry_that_is_written_to(
    registry_url: str,
    soup: Soup,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if (is_postgres := registry_url.startswith("postgresql")) and (folder := binaries()) is not None:
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("SAUCIER_DATABASE_URL", registry_url)
    stop = threading.Event()
    with closing(Database(registry_url)) as database:
        registry = Registry(database)
        registry.ensure_deployment("default", soup)
        made = soup.model_copy(update={"held_out": held_out(0.5), "patch": head_patch(1)})
        registry.dial("default", made)
        with database.write() as session:
            session.execute(text("UPDATE soups SET attempts = 7 WHERE version = 1"))

        def write() -> None:
            while not stop.is_set():
                registry.dial("default", soup)

        writer = threading.Thread(target=write)
        writer.start()
        code, found, error = call(capsys, "backup", str(tmp_path / "copy"))
        stop.set()
        writer.join()
    assert code == 0, error
    assert found["bytes"] == (tmp_path / "copy").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy"]
    url = f"sqlite:///{tmp_path / 'copy'}"
    if is_postgres:
        server: Postgres = request.getfixturevalue("postgres")
        url = server.empty("restored")
        subprocess.run([folder / "pg_restore", f"--dbname={url}", "--exit-on-error", tmp_path / "copy"], check=True)
    monkeypatch.setenv("SAUCIER_DATABASE_URL", url)
    assert call(capsys, "check")[:2] == (0, {"revision": head(), "head": head(), "deployments": 1, "problems": []})
    with closing(Database(url)) as database:
        registry = Registry(database)
        versions = [row.version for row in registry.soups("default")]
        assert versions == list(range(registry.deployment("default").version, 0, -1))
        assert len(registry.events("default", limit=1000)) == len(versions)
        assert registry.soup("default", 2, held_out=True) == made
        assert [row.attempts for row in registry.soups("default")][-2:] == [0, 7]


@pytest.mark.parametrize("place", ["head", "query"])
def test_no_list_of_processes_shows_the_password(
    place: str,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The fault: a password in the URL's query was an argument of pg_dump. The server here takes any."""
    folder = binaries()
    assert folder is not None
    seen, program = tmp_path / "seen", tmp_path / "bin" / "pg_dump"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s " "$PGPASSWORD" "$@" > {seen}\nexec {folder / "pg_dump"} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    secret = "a b'c\\d"
    quoted = quote(secret, safe="")
    url = f"{postgres_url}?application_name=backup"
    url = url.replace("saucier@", f"saucier:{quoted}@") if place == "head" else f"{url}&password={quoted}"
    monkeypatch.setenv("SAUCIER_DATABASE_URL", url)
    code, _, error = call(capsys, "backup", str(tmp_path / "copy"))
    assert code == 0, error
    password, arguments = seen.read_text().split("--format", 1)
    assert password.strip() == secret
    assert secret not in arguments
    assert quoted not in arguments
    assert "application_name=backup" in arguments


def test_client_key_with_a_passphrase_is_refused(
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if (folder := binaries()) is not None:
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("SAUCIER_DATABASE_URL", f"{postgres_url}?sslpassword=hidden")
    code, _, error = call(capsys, "backup", str(tmp_path / "copy"))
    assert code == 2
    assert "sslpassword" in error
    assert "hidden" not in error
    assert len(error.splitlines()) == 1


def test_backup_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, "upgrade")
    (tmp_path / "copy").write_text("mine")
    code, _, error = call(capsys, "backup", str(tmp_path / "copy"))
    assert (code, error) == (2, f"error: {tmp_path / 'copy'}: expected a file that does not exist yet\n")
    assert (tmp_path / "copy").read_text() == "mine"


def test_backup_without_pg_dump_says_what_is_missing(
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SAUCIER_DATABASE_URL", postgres_url)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, error = call(capsys, "backup", str(tmp_path / "copy"))
    assert code == 2
    assert "pg_dump" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "url", ["postgresql://nobody@127.0.0.1:1/none", "mysql://x/y", "sqlite://", "nonsense", "sqlite:////no/such/f.db"]
)
def test_registry_that_cannot_be_used_is_one_line_without_the_password(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAUCIER_DATABASE_URL", url.replace("nobody@", "nobody:secret@"))
    for command in ("check", "upgrade"):
        code, _, error = call(capsys, command)
        assert code == 2
        assert len(error.splitlines()) == 1
        assert "secret" not in error


def test_unknown_group_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    assert main(["--help"]) == 0
    assert "Usage: python -m service COMMAND" in capsys.readouterr().out
