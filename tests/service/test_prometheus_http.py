"""A real Prometheus looks at a real service, whose workers die; its log is JSON."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.conftest import Labelled, Server, as_parts
from tests.service.prometheus import MISSING, Prometheus, is_installed
from tests.service.test_adapt_http import adapt
from tests.service.test_metrics import expressions

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def own(prebuilt_bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose workers this module kills."""
    home = tmp_path_factory.mktemp("watched") / "home"
    server = Server(home, prebuilt_bases, BASE_SET="tiny", LOG_FORMAT="json")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def prometheus(own: Server, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus that looks at it."""
    if not is_installed():
        pytest.skip(MISSING)
    started = Prometheus(tmp_path, f"127.0.0.1:{own.port}")
    yield started
    started.stop()


def worker_pids(server: Server) -> set[int]:
    return {worker["pid"] for worker in server.live_workers()}


def test_prometheus_sees_what_happened(own: Server, prometheus: Prometheus, labelled: Labelled) -> None:
    for _ in range(8):
        assert own.client.post("/predict", files=as_parts(labelled.files[:3])).status_code == 200
    job = adapt(own.client, labelled.request(0, 60)).json()
    assert job["state"] in ("promoted", "kept")
    assert own.client.put("/deployments/passing", json={"base_set": "tiny"}).status_code == 201
    assert own.client.post("/predict?deployment=passing", files=as_parts(labelled.files[:2])).status_code == 200
    assert own.client.get("/jobs/none").status_code == 404
    prometheus.wait_for('up{job="saucier"}', [1])
    prometheus.wait_for('sum(saucier_predict_images_total{deployment="default"})', [24])
    prometheus.wait_for('saucier_predict_confidence_count{deployment="passing"}', [2])
    prometheus.wait_for("saucier_ready_workers", [2])
    prometheus.wait_for(f'saucier_adapt_jobs_total{{state="{job["state"]}"}} > 0', [1])
    prometheus.wait_for("sum(saucier_adapt_active_jobs)", [0])
    prometheus.wait_for('saucier_soup_version{deployment="default"}', [job["version"]])
    prometheus.wait_for('saucier_rejected_total{reason="unknown_job"}', [1])

    for place, expression in expressions():
        if not place.startswith("variable"):
            for name, value in (("$__rate_interval", "10s"), ("$instance", ".*"), ("$deployment", ".*")):
                expression = expression.replace(name, value)
            if place.startswith("alert"):
                prometheus.values(expression)
            else:
                prometheus.wait_for_any(expression, place)
    rules = [rule for group in prometheus.get("/rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}  # unknown: not evaluated yet
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []

    assert own.client.delete("/deployments/passing").status_code == 204
    prometheus.wait_for('count({deployment="passing"}) or vector(0)', [0])
    assert prometheus.values('saucier_predict_images_total{deployment="default"}') == [24]


def test_gauges_of_killed_workers_go_and_counters_stay(own: Server, labelled: Labelled) -> None:
    def value(name: str) -> float:
        lines = dict(line.rsplit(" ", 1) for line in own.client.get("/metrics").text.splitlines() if line[0] != "#")
        return float(lines.get(f'{name}{{deployment="default"}}', "nan"))

    before, pids = value("saucier_predict_images_total"), worker_pids(own)
    os.kill(min(pids), signal.SIGKILL)
    own.wait_for(lambda: len(worker_pids(own) - pids) == 1 and len(worker_pids(own)) == 2, "new worker")
    assert own.client.post("/predict", files=as_parts(labelled.files[:5])).status_code == 200
    own.wait_for(lambda: value("saucier_ready_workers") == 2, "two ready workers and no third", 20)
    assert value("saucier_sessions") == 2
    assert value("saucier_predict_images_total") == before + 5


def test_every_line_of_the_log_is_json(own: Server) -> None:
    lines = [json.loads(line) for line in own.log.read_text().splitlines()]
    assert {"time", "level", "logger", "process", "message"} <= set.intersection(*(set(line) for line in lines))
    assert len({line["process"] for line in lines}) >= 3
    assert any(line["message"].startswith("ready, serving") for line in lines)
    assert not any("/predict" in line["message"] for line in lines)
