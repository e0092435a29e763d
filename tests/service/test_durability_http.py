"""Stopping, killing and starving processes: nothing that was promoted is lost, and serving goes on."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.service.conftest import Labelled, Server, as_parts, encode, stored

pytestmark = pytest.mark.e2e

RESPAWN_SECONDS = 60  # BentoML's supervisor looks every 10 s; then a process takes a few to start


@pytest.fixture(scope="module")
def own(tiny_base_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own whose base set has no serving bundle yet; tests here run in order and share it."""
    bases = tmp_path_factory.mktemp("bare")
    shutil.copytree(tiny_base_set, bases / "tiny")
    server = Server(tmp_path_factory.mktemp("own") / "home", bases)
    yield server
    server.stop()


def version(server: Server) -> int:
    found: int = server.client.get("/deployments/default").json()["version"]
    return found


def test_before_the_first_soup_is_loaded_answers_are_503(own: Server, labelled: Labelled) -> None:
    own.start(wait=False)
    answer = own.wait_for(lambda: httpx.get(f"{own.url}/readyz", timeout=5), "answer")
    assert answer.status_code == 503
    for refused in (
        answer,
        own.client.post("/predict", files=as_parts(labelled.files[:1])),
        own.client.post("/adapt", **labelled.request(0, 4)),
    ):
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) >= 1
    for refused in (own.client.get("/v2/health/ready"), own.client.post("/v2/models/default/infer", json={})):
        assert refused.status_code == 503
        assert set(refused.json()) == {"error"}
        assert int(refused.headers["retry-after"]) >= 1
    assert own.client.get("/livez").status_code == 200
    assert own.client.get("/v2/health/live").status_code == 200
    own.wait_for(lambda: own.client.get("/readyz").status_code == 200, "readiness")
    assert own.client.post("/predict", files=as_parts(labelled.files[:1])).status_code == 200


def test_promotion_and_jobs_survive_a_restart(own: Server, labelled: Labelled) -> None:
    own.wait_for(lambda: len(own.live_workers()) == 2, "two workers")
    job = own.client.post("/adapt", **labelled.request(0, 100)).json()
    assert job["state"] == "promoted"
    answers = own.client.post("/predict", files=as_parts(labelled.files)).json()
    assert own.stop() == 0
    own.start()
    assert version(own) == job["version"]
    assert own.client.post("/predict", files=as_parts(labelled.files)).json() == answers
    assert own.client.get(f"/jobs/{job['job']}").json() == job
    assert own.client.put("/deployments/default/soup", json={"version": 1}).status_code == 200


def test_killed_worker_loses_nothing_and_comes_back_with_the_current_soup(own: Server, labelled: Labelled) -> None:
    """A worker dies while the workers swap; the promotion stands, and who is started again serves it."""
    victims = own.processes("Saucier")
    answers: list[dict[str, Any]] = []

    def adapt() -> None:
        with suppress(httpx.TransportError):  # it may die with the worker that it was sent to
            answers.append(httpx.post(f"{own.url}/adapt", timeout=70, **labelled.request(20, 120)).json())

    job = threading.Thread(target=adapt)
    job.start()
    own.wait_for(lambda: version(own) > 1, "promotion")
    os.kill(victims[0].pid, signal.SIGKILL)
    job.join()
    assert [answer["state"] for answer in answers] in ([], ["promoted"])
    promoted = own.wait_for(lambda: version(own), "answer")  # the client may still hold a connection to the dead
    assert promoted > 1
    if not answers:  # nobody was told yet that all serve it: the survivor may need another look at the registry
        own.wait_for(lambda: _predict(own, labelled)["version"] == promoted, "swap", 5)
    for _ in range(20):
        answer = own.wait_for(lambda: _predict(own, labelled), "answer")
        assert answer["version"] == promoted
    own.wait_for(lambda: len(own.processes("Saucier")) == 2, "second worker", RESPAWN_SECONDS)
    fresh = {process.pid for process in own.processes("Saucier")} - {victims[1].pid}
    assert len(fresh) == 1
    own.wait_for(lambda: fresh <= {worker["pid"] for worker in own.live_workers()}, "report", RESPAWN_SECONDS)
    # The one that was killed may still be listed, with what it had loaded, until its last report is too old.
    others = [worker for worker in own.live_workers() if worker["pid"] != victims[0].pid]
    assert {worker["version"] for worker in others} == {promoted}
    for _ in range(20):
        assert httpx.post(f"{own.url}/predict", files=as_parts(labelled.files[:1])).json()["version"] == promoted
    text = own.client.get("/metrics").text
    assert f'saucier_soup_version{{deployment="default"}} {promoted:.1f}' in text


def _predict(server: Server, labelled: Labelled) -> Any:
    answer = httpx.post(f"{server.url}/predict", files=as_parts(labelled.files[:1]), timeout=10)
    return answer.json() if answer.status_code == 200 else None


def test_job_of_a_killed_adapter_is_done_by_the_next_one(own: Server, labelled: Labelled) -> None:
    (adapter,) = own.processes("Adapter")
    before = version(own)
    accepted = own.client.post("/adapt", params={"wait": 0, "promote": "never"}, **labelled.request(0, 240))
    assert accepted.status_code == 202
    job = accepted.json()["job"]
    own.wait_for(lambda: own.client.get(f"/jobs/{job}").json()["state"] != "queued", "start of the job", 20)
    os.kill(adapter.pid, signal.SIGKILL)
    assert _predict(own, labelled)["version"] == before
    own.wait_for(
        lambda: own.client.get(f"/jobs/{job}").json()["state"] not in ("queued", "running"), "end", RESPAWN_SECONDS
    )
    view = own.client.get(f"/jobs/{job}").json()
    assert (view["state"], view["version"]) == ("kept", before)
    assert view["candidate_version"] is not None


def test_storage_that_takes_no_more_is_said_and_serving_goes_on(own: Server, labelled: Labelled) -> None:
    """Every write that makes a file longer fails, as on a full disk."""
    processes = own.processes("Saucier")
    before = stored(own)
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (0, psutil.RLIM_INFINITY))
    try:
        for _ in range(4):
            refused = httpx.post(f"{own.url}/adapt", timeout=30, **labelled.request(60, 70))
            assert refused.status_code in (503, 507), refused.text
            assert refused.headers["content-type"] == "application/problem+json"
        dialled = httpx.put(
            f"{own.url}/deployments/default/soup", json={"version": before[2]}, headers={"connection": "close"}
        )
        assert dialled.status_code in (200, 202, 503)
        for _ in range(10):
            assert httpx.post(f"{own.url}/predict", files=as_parts(labelled.files[:3])).status_code == 200
        assert httpx.get(f"{own.url}/metrics").status_code == 200
    finally:
        for process in processes:
            process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    assert [process.pid for process in own.processes("Saucier")] == [process.pid for process in processes]
    assert stored(own) == before
    own.wait_for(lambda: len(own.live_workers()) == 2, "reports again", 20)
    assert own.client.post("/adapt", **labelled.request(60, 70)).status_code == 200


def test_folder_that_cannot_be_written_is_a_503(own: Server, labelled: Labelled) -> None:
    files = as_parts([encode(255 - picture) for picture in labelled.pixels[:9]])
    unseen: dict[str, Any] = {"files": files, "data": {"labels": "[0, 1, 2, 0, 1, 2, 0, 1, 2]"}}
    samples = own.home / "samples"
    samples.rename(own.home / "aside")
    samples.write_text("in the way")
    try:
        refused = own.client.post("/adapt", **unseen)
        assert refused.status_code == 503
        assert str(own.home) not in refused.text
        assert _predict(own, labelled) is not None
    finally:
        samples.unlink()
        (own.home / "aside").rename(samples)
    assert own.client.post("/adapt", **unseen).status_code == 200


def test_event_streams_do_not_hold_up_a_stop(own: Server, labelled: Labelled) -> None:
    (adapter,) = own.processes("Adapter")
    adapter.suspend()  # so that the job stays in the queue
    try:
        job = own.client.post("/adapt", params={"wait": 0}, **labelled.request(0, 50)).json()["job"]
        ends: list[float] = []

        def follow() -> None:
            with httpx.stream("GET", f"{own.url}/jobs/{job}/events", timeout=60) as stream:
                for _ in stream.iter_lines():
                    pass
            ends.append(time.monotonic())

        thread = threading.Thread(target=follow)
        thread.start()
        time.sleep(1)
        assert not ends
    finally:
        adapter.resume()
    assert own.stop() == 0
    thread.join(30)
    assert ends
