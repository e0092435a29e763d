"""A running server whose registry is on PostgreSQL, which goes away for a while."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.postgres import Postgres
from tests.service.conftest import Labelled, Server, as_parts

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def own(prebuilt_bases: Path, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    url = postgres.empty("served")
    server = Server(tmp_path_factory.mktemp("postgres") / "home", prebuilt_bases, BASE_SET="tiny", DATABASE_URL=url)
    server.start()
    yield server
    assert server.stop() == 0


def test_restart_of_the_database_costs_no_prediction_and_no_promotion(
    own: Server, postgres: Postgres, labelled: Labelled
) -> None:
    promoted = own.client.post("/adapt", **labelled.request(0, 100)).json()
    assert promoted["state"] == "promoted"
    answers: list[httpx.Response] = []
    asked: list[httpx.Response] = []
    stop = threading.Event()

    def keep(found: list[httpx.Response], method: str, path: str, **content: Any) -> None:
        with httpx.Client(base_url=own.url, timeout=30) as client:
            while not stop.is_set():
                found.append(client.request(method, path, **content))
                time.sleep(0.02)

    pair = {"files": as_parts(labelled.files[:2])}
    threads = [
        threading.Thread(target=keep, args=(answers, "POST", "/predict"), kwargs=pair),
        threading.Thread(target=keep, args=(asked, "GET", "/deployments/default")),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    postgres.stop()
    time.sleep(2)
    refused = own.client.post("/adapt", **labelled.request(100, 110))
    postgres.start()
    own.wait_for(lambda: own.client.get("/deployments/default").status_code == 200, "answer", 20)
    stop.set()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["version"] for answer in answers} == {promoted["version"]}
    assert {answer.status_code for answer in asked} == {200, 503}
    for answer in [refused, *(answer for answer in asked if answer.status_code == 503)]:
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) >= 1

    assert own.client.get(f"/jobs/{promoted['job']}").json() == promoted
    assert own.client.get("/deployments/default").json()["version"] == promoted["version"]
    own.wait_for(lambda: len(own.live_workers()) == 2, "reports again", 20)
    assert own.client.put("/deployments/default/soup", json={"version": 1}).status_code == 200
    again = own.client.post("/adapt", **labelled.request(100, 200)).json()
    assert (again["state"], again["previous_version"]) == ("promoted", 1)
    kinds = [event["kind"] for event in own.client.get("/deployments/default/events").json()["events"]]
    assert kinds == ["promoted", "rollback", "promoted", "created"]


def test_names_that_postgresql_cannot_hold_are_unknown(own: Server) -> None:
    for path in ("/deployments/a%00b", "/deployments/a%00b/soups", "/deployments/a%00b/events", "/jobs/a%00b"):
        assert own.client.get(path).status_code == 404
    assert own.client.put("/deployments/default/soup", json={"version": 2**40}).status_code == 404
