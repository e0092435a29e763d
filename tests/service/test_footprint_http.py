"""What the predictors of a real server cost with bundled base sets: time to start, memory, what they share."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.conftest import Shipped
from tests.service.conftest import ROOT, Server, as_parts, encode
from training.manifest import read_manifest

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

CACHE_MB = 40  # about six sessions of cifar10
DEPLOYMENTS = 24
FILES = [encode(pixels) for pixels in np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)]


@pytest.fixture(scope="module")
def bundled(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with base sets of the repository, bundles built; tests here run in order."""
    home = tmp_path_factory.mktemp("bundled") / "home"
    home.mkdir()
    (home / "bundles").symlink_to(shipped.bundles)
    server = Server(home, shipped.bases, SESSION_CACHE_MB=str(CACHE_MB))
    server.start()
    yield server
    assert server.stop() == 0


def rss_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def test_predictor_starts_fast_and_stays_small(bundled: Server) -> None:
    workers = bundled.processes("Saucier")
    assert len(workers) == 2
    for worker in workers:
        times = worker.cpu_times()
        assert times.user + times.system <= 3  # seconds from the start of the process until a little after readiness
        assert rss_mb(worker) <= 250
        maps = Path(f"/proc/{worker.pid}/maps").read_text()
        assert "onnxruntime" in maps
        assert "libtorch" not in maps


def test_predictors_map_the_same_weights(bundled: Server) -> None:
    digest = read_manifest(ROOT / "bases" / "cifar10").digest
    for worker in bundled.processes("Saucier"):
        maps = Path(f"/proc/{worker.pid}/smaps").read_text()
        (mapped,) = re.findall(rf"^\S+ (\S+) .* \S*/{digest}/rows_folded.bin\n((?:\w+:.*\n)*)", maps, re.M)
        permissions, fields = mapped
        kib = {key: int(value) for key, value in re.findall(r"^(\w+): +(\d+) kB$", fields, re.M)}
        assert permissions.startswith("r--")
        assert kib["Rss"] > 0
        assert kib["Private_Clean"] == kib["Private_Dirty"] == kib["Anonymous"] == 0
        assert kib["Pss"] < 0.6 * kib["Rss"]


def test_many_deployments_stay_within_the_bound(bundled: Server) -> None:
    names = [f"camera-{number}" for number in range(DEPLOYMENTS)]
    for name in names:
        assert bundled.client.put(f"/deployments/{name}", json={"base_set": "cifar10"}).status_code == 201
    expected = bundled.client.post("/predict", files=as_parts(FILES)).json()["predictions"]
    before = [rss_mb(worker) for worker in bundled.processes("Saucier")]
    for _ in range(2):
        for name in names:  # a new connection each time: both workers take some
            answer = httpx.post(f"{bundled.url}/predict?deployment={name}", files=as_parts(FILES), timeout=30).json()
            assert answer == {"deployment": name, "version": 1, "predictions": expected}
    for worker, earlier in zip(bundled.processes("Saucier"), before, strict=True):
        assert rss_mb(worker) <= earlier + CACHE_MB + 15
    text = bundled.client.get("/metrics").text
    held = re.findall(r'^saucier_session_bytes{deployment="(\S+)"} (\S+)$', text, re.M)
    assert {name for name, _ in held} <= {"default", *names}
    assert 0 < sum(float(size) for _, size in held) <= 2 * CACHE_MB * 1e6
    assert sum(map(float, re.findall(r"^saucier_session_evictions_total{.*} (\S+)$", text, re.M))) >= DEPLOYMENTS
    (misses,) = re.findall(r'^saucier_session_misses_total{deployment="default"} (\S+)$', text, re.M)
    assert float(misses) == 0


def test_deployments_without_a_session_are_rolled_out(bundled: Server) -> None:
    bundled.client.put("/deployments/quiet", json={"base_set": "cifar10-small-ln"})
    dialled = {"nominal": 0.5, "linf": 0.5, "l2": 0.0, "l1": 0.0}
    answer = bundled.client.put("/deployments/quiet/soup", json={"coefficients": dialled})
    assert answer.status_code == 200
    view = answer.json()
    assert (view["version"], view["is_rolled_out"], [one["version"] for one in view["workers"]]) == (2, True, [2, 2])
    for _ in range(8):
        answer = httpx.post(f"{bundled.url}/predict?deployment=quiet", files=as_parts(FILES), timeout=30)
        assert answer.json()["version"] == 2


def test_the_documented_client_gets_logits(bundled: Server) -> None:
    """The example of docs/reference/service.md, as it stands there."""
    page = (ROOT / "docs" / "reference" / "service.md").read_text()
    (shown,) = re.findall(r"```python\n((?:(?!```).)*?InferenceServerClient.*?)```", page, re.S)
    names: dict[str, Any] = {}
    exec(shown.replace("127.0.0.1:3000", f"127.0.0.1:{bundled.port}"), names)
    names["client"].close()
    assert names["logits"].shape == (1, 10)
    assert np.isfinite(names["logits"]).all()
