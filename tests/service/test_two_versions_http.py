"""Processes of two versions of the code on one registry: the newer one migrates it while the older one serves."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from service.store import migrate
from tests.service.conftest import ROOT, Labelled, Server, as_parts
from tests.service.test_rolling import NEXT

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

NEXT_REVISION = "9001"


@pytest.fixture(scope="module")
def newer_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code whose registry has a column more."""
    folder = tmp_path_factory.mktemp("newer")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in ("training", "adapt", "deploy", "service"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    migration = folder / "service" / "store" / "migrations" / "versions" / f"r{NEXT_REVISION}.py"
    migration.write_text(NEXT.format(revision=NEXT_REVISION, down_revision=migrate.head()))
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def servers(
    prebuilt_bases: Path, tmp_path: Path, registry: Path, newer_code: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Server, Server]]:
    """A server of the code that is tested here, running, and one of the newer code."""
    shared = {
        "BASE_SET": "tiny",
        "DATABASE_URL": f"sqlite:///{registry}",
        "STORE_URL": f"file://{tmp_path / 'samples'}",
    }
    older, newer = (Server(tmp_path / name, prebuilt_bases, **shared) for name in ("older", "newer"))
    older.start()
    newer.folder = newer_code
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(newer_code))  # before the code that is installed
        newer.start(wait=False)
    yield older, newer
    for server in (newer, older):
        server.stop()


def answered_by(server: Server, labelled: Labelled) -> set[int]:
    """Return the versions that a server answers with, over new connections, which its workers share."""
    image = {"files": as_parts(labelled.files[:1])}
    return {httpx.post(f"{server.url}/predict", timeout=20, **image).json()["version"] for _ in range(8)}  # type: ignore[arg-type]


def revision(registry: Path) -> str:
    with closing(sqlite3.connect(registry)) as connection:
        found: str = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
    return found


def test_versions_serve_side_by_side_and_each_sees_what_the_other_promotes(
    servers: tuple[Server, Server], labelled: Labelled, registry: Path
) -> None:
    older, newer = servers
    newer.wait_for(lambda: len(newer.live_workers()) == 4, "two workers of each version", 120)
    assert revision(registry) == NEXT_REVISION
    assert answered_by(older, labelled) == answered_by(newer, labelled) == {1}

    job = newer.client.post("/adapt", params={"effort": "quick"}, **labelled.request(0, 240)).json()
    assert (job["state"], job["version"]) == ("promoted", 2)
    assert answered_by(older, labelled) == answered_by(newer, labelled) == {2}

    again = older.stop()  # by whatever ends processes during an upgrade
    older.client = httpx.Client(base_url=older.url, timeout=70)
    older.start(wait=False)
    older.wait_for(lambda: older.client.get("/readyz").status_code == 200, "start on the newer registry")
    assert again == 0
    assert answered_by(older, labelled) == {2}

    assert older.client.put("/deployments/default/soup", json={"version": 1}).status_code == 200
    assert answered_by(older, labelled) == answered_by(newer, labelled) == {1}
    assert revision(registry) == NEXT_REVISION
