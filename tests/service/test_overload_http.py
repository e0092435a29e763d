"""More than a process can do: what is too much is refused, and the rest of the service does not notice."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.store.database import Database
from service.store.registry import Registry
from tests.hostile.pictures import saved
from tests.service.conftest import Server, as_parts, encode

pytestmark = pytest.mark.e2e

STALE_SECONDS = 4
HEAVY_IMAGES = 16


@pytest.fixture(scope="module")
def heavy() -> bytes:
    """A picture of few bytes that takes a second or two to decode."""
    return saved(Image.new("L", (7000, 7000), 128), "PNG")


@pytest.fixture(scope="module")
def own(prebuilt_bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one predictor. Tests here run in order and share it; the last one stops it."""
    server = Server(
        tmp_path_factory.mktemp("overloaded") / "home",
        prebuilt_bases,
        BASE_SET="tiny",
        WORKERS="1",
        STALE_SECONDS=str(STALE_SECONDS),
        MAX_UPLOAD_MB="20",
        MAX_INFLIGHT_MB="10",
    )
    server.start(wait=False)
    server.wait_for(lambda: len(server.live_workers()) == 1, "a ready worker")
    yield server
    server.stop()


def small(seed: int = 0) -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 256, (120, 120, 3), dtype=np.uint8))


def send(server: Server, path: str, **content: Any) -> tuple[threading.Thread, list[httpx.Response]]:
    """Send a request in a thread."""
    answers: list[httpx.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{server.url}{path}", timeout=120, **content)), daemon=True
    )
    thread.start()
    return thread, answers


def post(server: Server, path: str, body: bytes, kind: str) -> socket.socket:
    """Send a request by hand, so that its connection can be cut."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def form(parts: dict[str, list[bytes]]) -> tuple[bytes, str]:
    files = [(name, (None, part)) for name, found in parts.items() for part in found]
    request = httpx.Request("POST", "http://x", files=files)
    return request.read(), request.headers["content-type"]


def test_heavy_predictions_do_not_hold_up_small_ones(own: Server, heavy: bytes) -> None:
    requests = [send(own, "/predict", files=as_parts([heavy] * HEAVY_IMAGES)) for _ in range(3)]
    time.sleep(1)
    waits = []
    for _ in range(5):
        start = time.monotonic()
        assert httpx.post(f"{own.url}/predict", files=as_parts([small()]), timeout=60).status_code == 200
        waits.append(time.monotonic() - start)
    assert max(waits) < 3
    for thread, _ in requests:
        thread.join(120)
    found = [answers[0] for _, answers in requests]
    assert sorted(answer.status_code for answer in found) == [200, 503, 503]
    for refused in (answer for answer in found if answer.status_code == 503):
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) >= 1
        assert "SAUCIER_MAX_INFLIGHT_PIXELS" in refused.json()["detail"]


@pytest.mark.parametrize("path", ["/predict", "/adapt", "/v2/models/default/infer"])
def test_bodies_beyond_the_budget_are_refused(own: Server, path: str) -> None:
    """Two bodies fit that never end, and there is no room for a third."""
    connections = []
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    for _ in range(3):
        connection = socket.create_connection(("127.0.0.1", own.port), timeout=20)
        connection.sendall(f"{head}Content-Length: 6000000\r\n\r\n".encode() + b"y" * 4_900_000)
        connections.append(connection)
        time.sleep(0.3)
    connections[2].sendall(b"y" * 1_100_000)  # all of it: the server hears out a client, for 5 s at most
    connections[2].settimeout(20)
    answer = connections[2].recv(4096)
    assert answer.startswith(b"HTTP/1.1 503 "), answer
    assert b"retry-after: " in answer.lower()
    # The budget of adaptations is not that of predictions.
    other = "/predict" if path == "/adapt" else "/adapt"
    refused = own.client.post(other, files=as_parts([small()] * 20))
    assert refused.status_code == (200 if other == "/predict" else 422)
    for connection in connections:
        connection.close()
    answered = own.wait_for(
        lambda: httpx.post(f"{own.url}/predict", files=as_parts([small()] * 20)).status_code == 200, "room again", 20
    )
    assert answered


def test_uploads_do_not_starve_what_keeps_the_service_together(own: Server, heavy: bytes) -> None:
    body, kind = form({"images": [heavy] * HEAVY_IMAGES, "labels": [json.dumps([0] * HEAVY_IMAGES).encode()]})
    connections = [post(own, "/adapt?wait=0", body, kind) for _ in range(8)]
    silences, waits = [], dict[str, list[float]]({"/livez": [], "/metrics": [], "/predict": []})
    registry = Registry(Database(f"sqlite:///{own.home / 'registry.db'}"))
    end = time.monotonic() + 8
    while time.monotonic() < end:
        for path, found in waits.items():
            start = time.monotonic()
            answer = httpx.request(
                "POST" if path == "/predict" else "GET",
                f"{own.url}{path}",
                timeout=30,
                **({"files": as_parts([small()])} if path == "/predict" else {}),
            )
            assert answer.status_code == 200, answer.text
            found.append(time.monotonic() - start)
        silences.append(max(time.time() - worker.heartbeat_at for worker in registry.workers(stale_seconds=1000)))
    assert max(silences) < STALE_SECONDS
    assert {path: max(found) for path, found in waits.items() if max(found) > 3} == {}
    for connection in connections:
        connection.close()
    assert len(own.client.get("/deployments/default/jobs").json()["jobs"]) < len(connections)  # few were in time
    time.sleep(3)  # the pictures at hand are decoded to their ends
    (worker,) = own.processes("Saucier")
    before = sum(worker.cpu_times()[:2])
    time.sleep(2)
    assert sum(worker.cpu_times()[:2]) - before < 0.7, "it decodes what nobody waits for"
    start = time.monotonic()
    assert own.stop() == 0
    assert time.monotonic() - start < 15
