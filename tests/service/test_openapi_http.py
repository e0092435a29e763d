"""Requests made from the OpenAPI document of a running service, right ones and wrong ones, by the thousand.

`schemathesis.toml` says what is generated, and which refusals of right requests are right; `fuzzing.py` adds checks.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service import fuzzing
from tests.service.conftest import ROOT, Labelled, Server, sample_files
from tests.service.keyed import KeyedServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 170
LEAST_CASES = 2000
# Tensors of the right size and jobs that have not ended are beyond what is generated; test_inference_http.py sends the
# former, and test_adapt_http.py cancels one of the latter.
NEVER_RIGHT = {
    "POST /v2/models/{name}/infer",
    "POST /v2/models/{name}/versions/{version}/infer",
    "DELETE /jobs/{id}",
}
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def schemathesis(tmp_path: Path) -> Run:
    """Run Schemathesis on a server, and return its report; every check must hold for every request."""

    def run(server: Server, job: str, *options: str, role: str = "", secrets: tuple[str, ...] = ()) -> dict[str, Any]:
        report = tmp_path / "report.json"
        hidden = ("Traceback (most recent call last)", str(ROOT), str(server.home.parent), sys.prefix, *secrets)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            fuzzing.ROLE: role,
            fuzzing.SECRETS: os.pathsep.join(hidden),
        }
        configuration = tmp_path / "schemathesis.toml"
        configuration.write_text(Path(__file__).with_name(configuration.name).read_text().replace("THE-JOB", job))
        command = [str(Path(sys.executable).parent / "schemathesis"), "--no-color"]
        command += ["--config-file", str(configuration), "run", f"{server.url}/openapi.json"]
        command += ["--report", "json", "--report-json-path", str(report)]
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr  # the offending requests are there, as curl commands
        found: dict[str, Any] = json.loads(report.read_text())
        assert (found["complete"], found["stop_reason"], found["errors"]) == (True, "completed", [])
        assert found["operations"]["tested"] == found["operations"]["total"] > 30
        return found

    return run


def prepared(server: Server, labelled: Labelled) -> str:
    """Make a second deployment and a job, and return the job's id."""
    assert server.client.put("/deployments/fuzzed", json={"base_set": "tiny"}).status_code == 201
    done = server.client.post("/adapt?promote=never", **labelled.request(0, 12))
    assert done.json()["state"] == "kept"
    return str(done.json()["job"])


def pids(server: Server) -> list[int]:
    return [process.pid for service in ("Saucier", "Adapter") for process in server.processes(service)]


@pytest.fixture
def fresh(prebuilt_bases: Path, tmp_path: Path) -> Iterator[Server]:
    """A server of its own: it will not be the same afterwards."""
    server = Server(tmp_path / "home", prebuilt_bases, BASE_SET="tiny", MAX_UPLOAD_MB="2", MAX_IMAGES="300")
    server.start()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def keyed(prebuilt_bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedServer]:
    """A server that asks for keys."""
    server = KeyedServer(tmp_path_factory.mktemp("fuzzed") / "home", prebuilt_bases, METRICS_KEY="always")
    server.start()
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def job(keyed: KeyedServer, labelled: Labelled) -> str:
    """A job of that server."""
    return prepared(keyed, labelled)


def test_service_does_what_its_document_says(fresh: Server, labelled: Labelled, schemathesis: Run) -> None:
    job, before = prepared(fresh, labelled), pids(fresh)
    found = schemathesis(fresh, job)
    rates = found["valid_rates"].items()
    reached = {name for name, phases in rates if any(phase["accepted"] for phase in phases.values())}
    assert {name for name, _ in rates} - reached <= NEVER_RIGHT
    assert found["test_cases"]["generated"] >= LEAST_CASES
    phases = {name: phase["status"] for name, phase in found["phases"].items() if name != "examples"}
    assert phases == {"coverage": "success", "fuzzing": "success", "stateful": "success"}
    assert pids(fresh) == before
    answer = fresh.client.post("/predict", **{"files": labelled.request(0, 3)["files"]})
    assert len(answer.json()["predictions"]) == 3


def contents(server: KeyedServer) -> list[Any]:
    """Return all that is stored."""
    paths = ["/deployments"]
    paths += [f"/deployments/{name}/{part}" for name in ("default", "fuzzed") for part in ("soups", "jobs", "events")]
    paths += [f"/deployments/{name}/samples" for name in ("default", "fuzzed")]
    return [sample_files(server), *(server.client.get(path).json() for path in paths)]


@pytest.mark.parametrize("role", ["nobody", "predict", "adapt"])
def test_key_does_nothing_that_its_role_may_not(keyed: KeyedServer, job: str, schemathesis: Run, role: str) -> None:
    before = contents(keyed), pids(keyed)
    header = () if role == "nobody" else ("-H", f"Authorization: Bearer {keyed.secrets[role]}")
    # Whether a request is right, or its method known, matters only once its sender may ask.
    options = ("--exclude-checks", "positive_data_acceptance,unsupported_method", "-n", "15", *header)
    found = schemathesis(keyed, job, *options, role=role, secrets=tuple(keyed.secrets.values()))
    assert found["test_cases"]["generated"] >= LEAST_CASES / 4
    assert pids(keyed) == before[1]
    if role != "adapt":
        assert contents(keyed) == before[0]
