"""A real `bentoml serve` on a free loopback port, with its own homes, and images whose labels one ingredient knows."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from adapt.documents.soup import Soup
from benchmarks.postgres import Postgres, binaries
from deploy.bundle import build_bundle
from service.store.database import Database
from service.store.jobs import JobQueue
from service.store.migrate import upgrade
from service.store.registry import Registry
from training.bases import load_base_set
from training.images import to_input

ROOT = Path(__file__).parents[2]
READY_SECONDS = 90
BUCKET = "saucier"
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
KNOWING = "l2"  # the ingredient whose answers are the right labels: the default soup, "linf", does much worse
NUM_IMAGES = 240


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """Return an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def as_parts(files: Sequence[bytes], name: str = "images") -> list[tuple[str, tuple[str, bytes, str]]]:
    """Return multipart parts for httpx."""
    return [(name, (f"{index}.png", file, "image/png")) for index, file in enumerate(files)]


class Labelled:
    """Image files and their right labels."""

    def __init__(self, folder: Path) -> None:
        base = load_base_set(folder)
        self.class_names = base.manifest.class_names
        self.pixels = np.random.default_rng(7).integers(0, 256, (NUM_IMAGES, 16, 16, 3), dtype=np.uint8)
        with torch.no_grad():
            logits = base.model(KNOWING)(torch.from_numpy(to_input(self.pixels)))
        self.labels: list[int] = logits.argmax(1).tolist()
        self.files = [encode(picture) for picture in self.pixels]

    def request(self, start: int, stop: int) -> dict[str, Any]:
        """Return the arguments of a `POST /adapt` with these images."""
        return {
            "files": as_parts(self.files[start:stop]),
            "data": {"labels": json.dumps(self.labels[start:stop])},
        }


class Server:
    """One `bentoml serve` process tree.

    Args:
        home: its home; beside it lie BentoML's own and the log.
        bases: its base sets; None for those that come with what is served.
        settings: more of them.
    """

    folder = ROOT  # where it is started
    command: Sequence[str] = (str(Path(sys.executable).parent / "bentoml"), "serve")

    def __init__(self, home: Path, bases: Path | None, **settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.home, self.bases = home, bases
        self.bentoml_home = home.parent / f"{home.name}-bentoml"
        self.log = home.parent / f"{home.name}.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=self.url, timeout=70)

    def start(self, *, wait: bool = True) -> "Server":
        """Start the tree and wait until both workers are ready."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SAUCIER_", "BENTOML_"))}
        environment |= {
            "SAUCIER_HOME": str(self.home),
            **({} if self.bases is None else {"SAUCIER_BASES": str(self.bases)}),
            "SAUCIER_PORT": str(self.port),
            "BENTOML_HOME": str(self.bentoml_home),
            "BENTOML_DO_NOT_TRACK": "True",
            "OMP_NUM_THREADS": "1",
            "SAUCIER_DRAIN_SECONDS": "0",  # which would only make tests longer
            **{f"SAUCIER_{key}": value for key, value in self._settings.items()},
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if wait:
            try:
                self.wait_for(lambda: len(self.live_workers()) == 2, "two ready workers")
            except BaseException:
                self.stop()  # a fixture that fails here is never asked to
                raise
        return self

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = READY_SECONDS) -> Any:
        """Return the first true value of a condition; the server may refuse connections meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if value := condition():
                    return value
            assert self._process is not None
            assert self._process.poll() is None, f"the server ended: {self.log.read_text()[-2000:]}"
            time.sleep(0.05)
        raise AssertionError(f"no {what} within {seconds} s: {self.log.read_text()[-2000:]}")

    def live_workers(self, deployment: str = "default") -> list[dict[str, Any]]:
        """Return the workers that serve a deployment, as the server sees them."""
        with httpx.Client(base_url=self.url, timeout=10) as client:
            answer = client.get(f"/deployments/{deployment}")
        if answer.status_code != 200:
            return []
        return [worker for worker in answer.json()["workers"] if worker["version"] is not None]

    def processes(self, service: str) -> list[psutil.Process]:
        """Return the worker processes of a BentoML service."""
        assert self._process is not None
        found = []
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # or a zombie, which is a kind of it
                if f"--service-name {service}" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def stop(self) -> int:
        """Stop the tree in good order and return the exit code."""
        self.client.close()
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(40)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(self._process.pid).children(recursive=True):
                child.kill()
            self._process.kill()
            code = self._process.wait()
        self._process = None
        self.client = httpx.Client(base_url=self.url, timeout=70)
        return code


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server that tests share, each with a database of its own."""
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed; `make postgres` does that")
    server = Postgres()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server on loopback that speaks S3; keys and endpoint are in the environment, as for the real one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + READY_SECONDS
    try:
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                httpx.get(url)
                break
            time.sleep(0.05)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
                patch.setenv(name, value)
            yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def bucket(s3_endpoint: str) -> str:
    """The name of a bucket on that server."""
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket=BUCKET)
    return BUCKET


@pytest.fixture
def bucket_url(bucket: str) -> str:
    """The URL of a folder in that bucket that is empty."""
    return f"s3://{bucket}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty object store: every test that takes it runs on both kinds."""
    if request.param == "local":
        return str(tmp_path / "objects")
    url: str = request.getfixturevalue("bucket_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables: every test that takes it runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.empty("empty")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the registry's tables, and nothing in them. Read only: tests copy it."""
    path = tmp_path_factory.mktemp("migrated") / "registry.db"
    with closing(Database(f"sqlite:///{path}")) as database:
        upgrade(database)
    return path


@pytest.fixture
def sqlite_url(migrated: Path, tmp_path: Path) -> str:
    """The URL of such a file of the test's own."""
    return f"sqlite:///{shutil.copy(migrated, tmp_path / 'registry.db')}"


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """The same on PostgreSQL."""
    url = postgres.empty("migrated")
    with closing(Database(url)) as database:
        upgrade(database)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database with the registry's tables: every test that takes it runs on both kinds."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture
def database(registry_url: str) -> Iterator[Database]:
    """That database, open."""
    database = Database(registry_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def prebuilt_bases(tiny_base_set: Path, tiny_ln_base_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two base sets with their serving bundles beside them, as `saucier bundle` puts them."""
    bases = tmp_path_factory.mktemp("prebuilt")
    for source in (tiny_base_set, tiny_ln_base_set):
        folder = bases / source.name
        shutil.copytree(source, folder)
        build_bundle(folder, folder / "bundle")
    return bases


@pytest.fixture
def registry(database: Database) -> Registry:
    """A registry with the deployment `default`."""
    registry = Registry(database)
    soup = Soup(base_set="tiny", base_digest="a" * 64, coefficients={"linf": 1.0, "nominal": 0.0})
    registry.ensure_deployment("default", soup)
    return registry


@pytest.fixture
def jobs(database: Database, registry: Registry) -> JobQueue:
    """Its queue."""
    return JobQueue(database)


@pytest.fixture(scope="session")
def labelled(tiny_base_set: Path) -> Labelled:
    """Images and labels on which a promotion is deserved."""
    return Labelled(tiny_base_set)


@pytest.fixture(scope="session")
def server(prebuilt_bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server that tests share; those that change `default` put version 1 back."""
    home = tmp_path_factory.mktemp("shared") / "home"
    server = Server(home, prebuilt_bases, BASE_SET="tiny", MAX_UPLOAD_MB="2", MAX_IMAGES="300")
    server.start()
    yield server
    assert server.stop() == 0


@pytest.fixture
def default(server: Server) -> Iterator[httpx.Client]:
    """A client of the shared server; the deployment `default` serves version 1 before and after."""
    yield server.client
    answer = server.client.put("/deployments/default/soup", json={"version": 1})
    assert answer.status_code == 200


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real Chromium. It ends with the module: its event loop would be in the way of others' `asyncio.run`."""
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("there is no Chromium to open the console in: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0])
        yield browser
        browser.close()


def stored(server: Server) -> tuple[int, int, int]:
    """Return how much the server has stored: files of samples, soup versions, and the current version."""
    soups = server.client.get("/deployments/default/soups").json()["soups"]
    return len(sample_files(server)), len(soups), next(soup["version"] for soup in soups if soup["is_current"])


def sample_files(server: Server) -> set[Path]:
    """Return the files below the server's folder of samples."""
    return {path for path in (server.home / "samples").rglob("*") if path.is_file()}
