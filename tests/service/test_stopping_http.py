"""A worker that was silent for too long, and SIGTERM."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service.store.database import Database
from service.store.jobs import JobQueue
from tests.service.conftest import Labelled, Server, as_parts

pytestmark = pytest.mark.e2e

DRAIN_SECONDS = 4
STALE_SECONDS = 2


@pytest.fixture(scope="module")
def own(prebuilt_bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two predictors. Tests here run in order and share it; the last one stops it."""
    server = Server(
        tmp_path_factory.mktemp("stopped") / "home",
        prebuilt_bases,
        BASE_SET="tiny",
        DRAIN_SECONDS=str(DRAIN_SECONDS),
        STALE_SECONDS=str(STALE_SECONDS),
    )
    server.start()
    yield server
    server.stop()


def ask(server: Server, method: str, path: str, **content: object) -> int | None:
    """Return the status of a request on a connection of its own; None if it is refused or closed unanswered."""
    try:
        return httpx.request(method, f"{server.url}{path}", timeout=10, **content).status_code  # type: ignore[arg-type]
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        return None


def test_worker_that_was_silent_too_long_serves_no_older_version(own: Server, labelled: Labelled) -> None:
    first, second = own.processes("Saucier")
    first.suspend()
    own.client.close()
    own.client = httpx.Client(base_url=own.url, timeout=70)
    time.sleep(STALE_SECONDS + 0.5)
    coefficients = {"nominal": 0.1, "linf": 0.2, "l2": 0.3, "l1": 0.4}
    dialled = httpx.put(f"{own.url}/deployments/default/soup", json={"coefficients": coefficients}, timeout=30)
    assert dialled.status_code == 200, dialled.text
    version = dialled.json()["version"]
    second.suspend()
    answers: list[httpx.Response] = []

    def predict() -> None:
        with suppress(httpx.TransportError):
            answers.append(httpx.post(f"{own.url}/predict", files=as_parts(labelled.files[:1]), timeout=20))

    threads = [threading.Thread(target=predict) for _ in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    first.resume()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert {answer.json()["version"] for answer in answers if answer.status_code == 200} <= {version}
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"1"}
    own.wait_for(lambda: ask(own, "POST", "/predict", files=as_parts(labelled.files[:1])) == 200, "recovery", 15)
    second.resume()


def test_sigterm_fails_readiness_first_then_refuses_connections(own: Server, labelled: Labelled) -> None:
    asked = {"wait": 0, "promote": "never", "effort": "full"}
    job = own.client.post("/adapt", params=asked, **labelled.request(0, 240)).json()["job"]
    own.wait_for(lambda: own.client.get(f"/jobs/{job}").json()["state"] == "running", "start of the job", 20)
    process = own._process
    assert process is not None
    image = {"files": as_parts(labelled.files[:1])}
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    own.wait_for(lambda: ask(own, "GET", "/readyz") == 503, "unreadiness", 4)
    jobs = JobQueue(Database(f"sqlite:///{own.home / 'registry.db'}"))
    found: list[tuple[float, int | None, int | None]] = []
    states = set()
    while process.poll() is None:
        found.append(
            (time.monotonic() - start, ask(own, "GET", "/v2/health/ready"), ask(own, "POST", "/predict", **image))
        )
        if time.monotonic() - start > 1:
            queued = jobs.get(job)
            assert queued is not None
            states.add((queued.state, queued.attempts))
        time.sleep(0.1)
    assert time.monotonic() - start < DRAIN_SECONDS + 12
    draining = [statuses for seconds, *statuses in found if seconds < DRAIN_SECONDS - 1]
    assert len(draining) >= 3
    assert all(statuses == [503, 200] for statuses in draining)
    refused = [statuses for seconds, *statuses in found if seconds > DRAIN_SECONDS + 2]
    assert all(statuses == [None, None] for statuses in refused)
    assert states == {("queued", 0)}
    assert process.returncode == 0
