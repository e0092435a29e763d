"""A real `bentoml serve` on loopback, with folders of its own, for benchmarks and demos."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from service.settings import PACKAGE_ROOT
from service.start import TARGET

READY_SECONDS = 300  # for a start, the building of a serving bundle included
WORKERS_SECONDS = 120  # for the other workers after the first one is ready
STOP_SECONDS = 20


class Server(NamedTuple):
    """A service that is ready."""

    port: int
    pid: int  # of the main process; the workers are its children

    @property
    def url(self) -> str:
        """Base URL without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Send a JSON request and return the JSON answer.

        Raises:
            RuntimeError: the status was 400 or more; the message has the answer.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from None


def free_port() -> int:
    """Return a TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve(
    folder: Path,
    bases: Path,
    *,
    workers: int = 2,
    settings: Mapping[str, str] | None = None,
    bundles: Path | None = None,
) -> Iterator[Server]:
    """Run `bentoml serve` until the block ends.

    Args:
        folder: gets the service's home, BentoML's home and the log `serve.log`.
        bases: folder of base sets.
        workers: predictor processes.
        settings: more environment variables.
        bundles: folder of serving bundles that are built already; None has the service build its own.

    Raises:
        RuntimeError: the service ended or was not ready after five minutes; the message has the end of its log.
    """
    if bundles is not None:
        (folder / "home").mkdir()
        (folder / "home" / "bundles").symlink_to(bundles.absolute())
    port = free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("SAUCIER_", "BENTOML_"))},
        "SAUCIER_HOME": str(folder / "home"),
        "SAUCIER_BASES": str(bases.absolute()),
        "SAUCIER_WORKERS": str(workers),
        "SAUCIER_PORT": str(port),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "OMP_NUM_THREADS": "1",
        **(settings or {}),
    }
    log = folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", TARGET],
            cwd=PACKAGE_ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            _wait_until_ready(process, port, log)
            yield Server(port, process.pid)
        finally:
            _stop(process)


def wait_for_workers(server: Server, workers: int) -> list[int]:
    """Wait until every worker serves, and return their processes: readiness is that of the one that was asked.

    Raises:
        RuntimeError: they did not all come.
    """
    deadline = time.monotonic() + WORKERS_SECONDS
    while time.monotonic() < deadline:
        view = server.call("GET", "/deployments/default")
        if view["is_rolled_out"] and len(view["workers"]) == workers:
            return [worker["pid"] for worker in view["workers"]]
        time.sleep(0.2)
    raise RuntimeError(f"expected {workers} workers within {WORKERS_SECONDS} s, found {len(view['workers'])}")


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"bentoml serve is not ready (exit code {process.poll()}); its log ends with:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server; its children are in its session and get the same signal if it does not end by itself."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
