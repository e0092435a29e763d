"""A Bento holds all that the service needs, in an environment where Saucier itself is not installed."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement

from service.http.openapi import openapi_document
from tests.environments import make_environment
from tests.service.conftest import ROOT, Server, as_parts, encode
from training.version import VERSION

PINS = ROOT / "deploy" / "container" / "requirements.txt"
DOCUMENT = ROOT / "deploy" / "container" / "README.md"
EXTRAS = ("postgres", "s3")  # of ours, that the container has
NUM_IMAGES = 60


class BentoServer(Server):
    """A server of a Bento, whose interpreter finds every package of this one's, except Saucier."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "home", None)
        self.folder = folder
        self.python = make_environment(folder / "venv")
        self.command = (str(self.python), "-m", "bentoml", "serve", "saucier:latest")

    def build(self) -> Path:
        """Build the Bento with `bentoml build` and return its folder."""
        self.bentoml_home.mkdir()
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"BENTOML_HOME": str(self.bentoml_home), "BENTOML_DO_NOT_TRACK": "True"}
        command = [str(self.python), "-m", "bentoml", "build"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (bento,) = (path.parent for path in self.bentoml_home.glob("bentos/saucier/*/bento.yaml"))
        return bento


@pytest.fixture(scope="module")
def unstarted(tmp_path_factory: pytest.TempPathFactory) -> BentoServer:
    """A server that has not been started; nothing here imports from the repository."""
    return BentoServer(tmp_path_factory.mktemp("bento"))


@pytest.fixture(scope="module")
def bento(unstarted: BentoServer) -> Path:
    """The folder of a Bento."""
    return unstarted.build()


@pytest.fixture(scope="module")
def served(unstarted: BentoServer, bento: Path) -> Iterator[Server]:
    """A server of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)
        unstarted.start()
    yield unstarted
    assert unstarted.stop() == 0


def pins() -> dict[str, str]:
    return dict(line.split("==") for line in PINS.read_text().splitlines())


def collect(requirements: Iterable[str], extras: set[str], found: set[tuple[str, frozenset[str]]]) -> None:
    """Add every package that requirements ask for, and those that they ask for in turn, with their extras.

    Asks the packages installed here, as far as they have the pinned versions.
    """
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if (wanted := (name, frozenset(requirement.extras))) not in found:
            found.add(wanted)
            installed = distribution(name)
            if installed.version == pins().get(name):
                collect(installed.requires or [], requirement.extras, found)


def test_container_is_pinned_to_the_versions_of_the_constraints() -> None:
    assert set(PINS.read_text().splitlines()) <= set((ROOT / "constraints.txt").read_text().splitlines())


def test_pins_are_all_that_an_installation_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    found: set[tuple[str, frozenset[str]]] = set()
    collect(direct, set(), found)
    assert len(found) > 2 * len(direct)
    assert {name for name, _ in found} <= pins().keys()


@pytest.mark.slow
def test_bento_holds_the_code_the_pages_the_revisions_and_the_base_sets(bento: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = [path for path in tracked if path.startswith(("service/", "deploy/", "adapt/", "training/", "bases/"))]
    assert [path for path in wanted if not (bento / "src" / path).is_file()] == []
    held = {str(path.relative_to(bento / "src")) for path in (bento / "src").rglob("*") if path.is_file()}
    assert {path for path in held if "__pycache__" in path or path.endswith((".db", ".log"))} == set()


@pytest.mark.slow
def test_container_files_are_what_the_documentation_says(bento: Path) -> None:
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert dockerfile.count("FROM python:3.11-slim") == 1
    assert "EXPOSE 3000" in dockerfile
    assert "USER bentoml" in dockerfile
    (setup,) = re.findall(r"RUN chmod \+x (\S+) && \1\n", dockerfile)
    assert (bento / setup).read_text() == (DOCUMENT.parent / "setup.sh").read_text()
    assert dockerfile.index(setup) < dockerfile.index("USER bentoml")
    text = DOCUMENT.read_text()
    (uid,) = re.findall(r"ARG BENTO_USER_UID=(\d+)", dockerfile)
    (home,) = re.findall(r"ENV BENTOML_HOME=(/\S+?)/?\n", dockerfile)
    assert "ENV BENTOML_CONTAINERIZED=true" in dockerfile
    for fact in (uid, home, "BENTOML_CONTAINERIZED"):
        assert fact in text
    installed = [line for line in (bento / "env" / "python" / "requirements.txt").read_text().splitlines() if line]
    assert set(installed) == set(PINS.read_text().splitlines())
    generated = [path for path in (bento / "env").rglob("*") if path.is_file()] + [bento / "bento.yaml"]
    for path in generated:
        text = path.read_text()
        assert str(ROOT) not in text, path
        assert "index-url" not in text, path
        hosts = set(re.findall(r"https?://([^/\s\"']+)", text))
        assert hosts <= {"unix.stackexchange.com"}, path  # where BentoML's entrypoint credits a line
    assert yaml.safe_load((bento / "bento.yaml").read_text())["envs"] == []


@pytest.mark.slow
@pytest.mark.e2e
def test_served_bento_keeps_the_contract(served: Server, bento: Path) -> None:
    client = served.client
    for worker in served.processes("Saucier"):
        maps = Path(f"/proc/{worker.pid}/maps").read_text() if sys.platform == "linux" else str(bento)
        assert f"{served.home / 'bundles'}/" in maps or sys.platform != "linux"
        assert str(ROOT / "bases") not in maps
        assert Path(worker.cwd()).is_relative_to(bento.resolve())
    bundled = {path.parent.name for path in (ROOT / "bases").glob("*/manifest.json")}
    assert {base["name"] for base in client.get("/bases").json()["bases"]} == bundled
    assert client.get("/openapi.json").json() == json.loads(json.dumps(openapi_document()))
    assert client.get("/").json()["version"] == client.get("/v2").json()["version"] == VERSION
    for page in ("/ui", "/docs", "/metrics", "/livez", "/readyz"):
        assert client.get(page).status_code == 200, page

    random = np.random.default_rng(3)
    files = [encode(pixels) for pixels in random.integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)]
    answer = client.post("/predict", files=as_parts(files))
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    assert len(predictions) == NUM_IMAGES
    labels = json.dumps([prediction["index"] for prediction in predictions])
    job = client.post("/adapt?wait=50", files=as_parts(files), data={"labels": labels})
    assert job.status_code in (200, 202), job.text
    name = job.json()["job"]
    served.wait_for(
        lambda: client.get(f"/jobs/{name}").json()["state"] not in ("queued", "running"), "end of the job", 200
    )
    done = client.get(f"/jobs/{name}").json()
    assert done["state"] == "kept", done["reason"]  # nothing beats what the labels were taken from
    assert done["accuracy"]["current"] == 1
