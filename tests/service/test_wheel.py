"""The wheel: built, installed where nothing imports from the repository, and used in an empty directory."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.environments import make_environment
from tests.service.conftest import ROOT, Server, as_parts, encode
from training.manifest import read_manifest
from training.version import VERSION

PACKAGES = ("training", "adapt", "deploy", "service")
BUNDLED = "cifar10-small"
MOST_BYTES = 6_000_000
NUM_IMAGES = 60
NOT_INSTALLED = ("__pycache__", "container", "bundle")  # folders


def copy_sources(folder: Path) -> Path:
    """Copy what a build reads, without what git ignores."""
    for name in (*PACKAGES, f"bases/{BUNDLED}"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "bundle"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def build(folder: Path) -> dict[str, Path]:
    """Run `python -m build` on a copy of the sources; return the sdist and the wheel by suffix."""
    copy_sources(folder)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    # Isolated, it would download the build backend.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.suffix: path for path in (folder / "dist").iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment where the wheel is installed."""
    python = make_environment(tmp_path_factory.mktemp("wheel") / "venv")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(built[".whl"])]
    subprocess.run(command, check=True)
    return python


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; the home directory is empty, too, and nothing leads to the repository."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")
    return tmp_path / "work"


class WheelServer(Server):
    """A server of the wheel that is started in an empty directory."""

    def __init__(self, python: Path, folder: Path, command: Sequence[str]) -> None:
        super().__init__(folder.parent / "home" / ".saucier", None)
        self.folder, self.command = folder, (str(python.parent / command[0]), *command[1:])


def installed_files(python: Path) -> set[str]:
    """The files of Saucier in the environment, without compiled modules."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    ours = [path for path in packages.iterdir() if not path.is_symlink()]
    files = [path for folder in ours for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {str(path.relative_to(packages)) for path in files}


@pytest.mark.slow
def test_two_builds_are_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    again = build(tmp_path)
    assert {suffix: path.read_bytes() for suffix, path in built.items()} == {
        suffix: path.read_bytes() for suffix, path in again.items()
    }


@pytest.mark.slow
def test_an_index_would_take_both_files(built: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, built.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_wheel_holds_all_that_the_packages_hold_and_the_smallest_base_set(built: dict[str, Path]) -> None:
    assert built[".whl"].stat().st_size <= MOST_BYTES
    assert built[".gz"].stat().st_size <= MOST_BYTES
    with zipfile.ZipFile(built[".whl"]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    folders = [ROOT / name for name in (*PACKAGES, f"bases/{BUNDLED}")]
    files = [path.relative_to(ROOT) for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert held == {str(path) for path in files if not set(path.parts) & set(NOT_INSTALLED)}


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize(
    "command",
    [("saucier", "serve"), ("python", "-m", "bentoml", "serve", "service.app:Saucier")],
    ids=["own", "bentoml"],
)
def test_wheel_serves_and_adapts_in_an_empty_directory(installed: Path, empty: Path, command: Sequence[str]) -> None:
    before = installed_files(installed)
    server = WheelServer(installed, empty, command).start()
    try:
        client = server.client
        assert [base["name"] for base in client.get("/bases").json()["bases"]] == [BUNDLED]
        assert client.get("/").json()["version"] == VERSION
        for page in ("/ui", "/docs", "/metrics", "/readyz"):
            assert client.get(page).status_code == 200, page
        adapt_to_own_answers(server, client)
    finally:
        assert server.stop() == 0
    assert installed_files(installed) == before
    assert list(empty.iterdir()) == []


def adapt_to_own_answers(server: Server, client: httpx.Client) -> None:
    """Classify images and adapt to the answers, which nothing beats."""
    spec = read_manifest(ROOT / "bases" / BUNDLED).input
    shape = (NUM_IMAGES, spec.height, spec.width, 3)
    files = [encode(pixels) for pixels in np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)]
    answer = client.post("/predict", files=as_parts(files))
    assert answer.status_code == 200, answer.text
    labels = json.dumps([prediction["index"] for prediction in answer.json()["predictions"]])
    job = client.post("/adapt?wait=50&effort=quick", files=as_parts(files), data={"labels": labels}).json()
    url = f"/jobs/{job['job']}"
    server.wait_for(lambda: client.get(url).json()["state"] not in ("queued", "running"), "end of the job", 200)
    assert client.get(url).json()["state"] == "kept"


@pytest.mark.slow
@pytest.mark.e2e
def test_own_base_set_in_the_working_directory_comes_first(installed: Path, empty: Path, prebuilt_bases: Path) -> None:
    shutil.copytree(prebuilt_bases / "tiny", empty / "bases" / "tiny")
    server = WheelServer(installed, empty, ("saucier", "serve")).start()
    try:
        assert server.client.get("/deployments/default").json()["base_set"] == "tiny"
        assert {base["name"] for base in server.client.get("/bases").json()["bases"]} == {"tiny", BUNDLED}
    finally:
        assert server.stop() == 0


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_demo_runs_from_the_wheel(installed: Path, empty: Path) -> None:
    command = [str(installed.parent / "saucier"), "demo"]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert (line["demo"], line["failed"]) == ("ok", 0)
    assert (empty / "runs" / "demo" / "demo.png").is_file()
