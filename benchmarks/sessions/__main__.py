"""Hundreds of deployments on one base set: what a session costs, what workers share, what a first request waits."""

import http.client
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from benchmarks.machine import machine
from benchmarks.pictures import jpegs
from benchmarks.processes import MIB, accepted_by, age_seconds, cpu_seconds, is_alive, mapped, memory
from deploy.bundle import build_bundle
from deploy.runtime import Bundle
from service.demo.server import Server, serve
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.manifest import read_manifest
from training.parameters import Positional

COLD_START_SECONDS = 3.0
SMALL_MIB = 250e6 / MIB
SLACK_MIB = 16.0  # beyond the bound: threads, metrics, what a build has in hand
WARM_ROUNDS = 3


class Sessions(Command):
    """Make many deployments, touch each in turn on every worker, and watch the memory of the workers.

    Example: python -m benchmarks.sessions bases/cifar10 --deployments 100 --workers 1 2 4
    """

    name: ClassVar[str] = "sessions"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10"), description="base set")
    deployments: int = Field(default=100, ge=1, description="deployments besides `default`, each with its own soup")
    workers: tuple[int, ...] = Field(default=(1, 2, 4), description="predictor processes, one server after the other")
    restarts: int = Field(default=3, ge=1, description="starts of one predictor; the fastest counts")
    cache_mb: tuple[float, ...] = Field(
        default=(1024, 128), description="bounds of the cache: one with room for all deployments, one without, say"
    )

    def execute(self) -> Result:
        """Measure."""
        with tempfile.TemporaryDirectory(prefix="saucier-") as bundles:
            return self._run(build_bundle(self.base, Path(bundles)))

    def _run(self, folder: Path) -> Result:
        manifest, bundle = read_manifest(self.base), Bundle.open(folder)
        generator = np.random.default_rng(self.seed)
        shares = generator.dirichlet(np.ones(len(manifest.ingredients)), self.deployments)
        soups = {
            f"camera-{number:04}": dict(zip(manifest.ingredient_names, share.tolist(), strict=True))
            for number, share in enumerate(shares / shares.sum(axis=1, keepdims=True))
        }
        file = jpegs(1, manifest.input.height, manifest.input.width, seed=self.seed)[0]
        rows_file = folder / bundle.info.rows["folded"]
        rows = [
            self._measure(workers, cache, soups, file, rows_file) for cache in self.cache_mb for workers in self.workers
        ]
        data = {
            "base_set": manifest.name,
            "deployments": self.deployments,
            "weights_mib": round(bundle.info.row_floats * 4 / MIB, 2),
            "session_estimate_mib": round(bundle.session_bytes / MIB, 2),
            "rows": rows,
            "machine": machine(),
        }
        holds = all(row["claims_hold"] for row in rows)
        return Result(data, _text(data), EXIT_DONE if holds else EXIT_CLAIM_FAILED)

    def _measure(
        self, workers: int, cache_mb: float, soups: dict[str, dict[str, float]], file: bytes, rows_file: Path
    ) -> dict[str, Any]:
        bundles = rows_file.parent.parent
        settings = {"SAUCIER_SESSION_CACHE_MB": f"{cache_mb:g}"}
        with (
            tempfile.TemporaryDirectory(prefix="saucier-") as name,
            serve(Path(name), self.base, workers=workers, settings=settings, bundles=bundles) as server,
        ):
            ages = _wait_until_ready(server, workers)
            start = _cost_of_start(ages)
            for deployment, coefficients in soups.items():
                server.call("PUT", f"/deployments/{deployment}", {"base_set": read_manifest(self.base).name})
                server.call("PUT", f"/deployments/{deployment}/soup", {"coefficients": coefficients})
            connections = _connections(server, list(ages))
            for connection in connections:
                connection.predict("default", file)
            before = [memory(connection.pid) for connection in connections]
            cold: list[float] = []
            warm: list[float] = []
            answers: dict[str, set[str]] = {}
            for turn in range(WARM_ROUNDS + 1):
                for deployment in soups:
                    for connection in connections:
                        seconds, answer = connection.predict(deployment, file)
                        (warm if turn else cold).append(seconds)
                        answers.setdefault(deployment, set()).add(answer)
            after = [memory(connection.pid) for connection in connections]
            rows = [mapped(connection.pid, "/".join(rows_file.parts[-2:])) for connection in connections]
            restarts = [self._restart(server, workers) for _ in range(self.restarts)]
        grown = [late.anonymous - early.anonymous for early, late in zip(before, after, strict=True)]
        room = cache_mb * 1e6 / MIB
        return {
            "workers": workers,
            "cache_mb": cache_mb,
            "start": start,
            "restart": min(restarts, key=lambda restart: restart["seconds"]),
            "rss_before_mib": round(max(one.rss for one in before)),
            "rss_after_mib": round(max(one.rss for one in after)),
            "anonymous_grown_mib": round(max(grown), 1),
            "grown_per_deployment_mib": round(max(grown) / len(soups), 2),
            "all_workers_pss_before_mib": round(sum(one.pss for one in before)),
            "all_workers_pss_after_mib": round(sum(one.pss for one in after)),
            "rows_mapped_mib": round(max(rss for rss, _ in rows), 1),
            "rows_private_mib": round(max(private for _, private in rows), 1),
            "first_request_ms": _percentiles(cold),
            "later_request_ms": _percentiles(warm),
            "different_answers": sum(len(found) != 1 for found in answers.values()),
            "claims_hold": min(restart["seconds"] for restart in restarts) <= COLD_START_SECONDS
            and max(cost["rss_mib"] for cost in (start, *restarts)) <= SMALL_MIB
            and max(grown) <= room + SLACK_MIB
            and all(len(found) == 1 for found in answers.values()),
        }

    def _restart(self, server: Server, workers: int) -> dict[str, float]:
        """Kill a worker, and return what the start of the next one cost, which nothing else happens beside."""
        before = _wait_until_ready(server, workers)
        victim = next(iter(before))
        os.kill(victim, signal.SIGKILL)
        while is_alive(victim):
            time.sleep(0.01)
        after = _wait_until_ready(server, workers)
        return _cost_of_start({pid: age for pid, age in after.items() if pid not in before})


class _Connection:
    """A kept-alive connection to one worker."""

    def __init__(self, client: http.client.HTTPConnection, pid: int) -> None:
        self.pid = pid
        self._client = client

    def predict(self, deployment: str, file: bytes) -> tuple[float, str]:
        """Return the seconds that an answer took, and the answer."""
        start = time.perf_counter()
        self._client.request("POST", f"/predict?deployment={deployment}", file, {"Content-Type": "image/jpeg"})
        answer = self._client.getresponse()
        body = answer.read().decode()
        seconds = time.perf_counter() - start
        if answer.status != 200:
            raise ValueError(f"expected 200 from {deployment}, got {answer.status}: {body[:200]}")
        return seconds, json.dumps(json.loads(body)["predictions"])


def _wait_until_ready(server: Server, workers: int) -> dict[int, float]:
    """Return the age of each worker's process when it had loaded its first soup, by process.

    One that was killed stays listed for some seconds.
    """
    ages: dict[int, float] = {}
    while len(ages) < workers:
        for worker in server.call("GET", "/deployments/default")["workers"]:
            pid = worker["pid"]
            if worker["version"] is not None and pid not in ages and is_alive(pid):
                ages[pid] = age_seconds(pid)
        time.sleep(0.02)
    return ages


def _cost_of_start(ages: dict[int, float]) -> dict[str, float]:
    return {
        "seconds": round(max(ages.values()), 2),
        "cpu_seconds": round(max(map(cpu_seconds, ages)), 2),
        "rss_mib": round(max(memory(pid).rss for pid in ages)),
    }


def _connections(server: Server, pids: list[int]) -> list[_Connection]:
    """Return one connection to each worker."""
    found: dict[int, _Connection] = {}
    while len(found) < len(pids):
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        client.request("GET", "/livez")
        client.getresponse().read()
        pid = accepted_by(pids, server.port, client.sock.getsockname()[1])
        if pid is None or pid in found:
            client.close()
        else:
            found[pid] = _Connection(client, pid)
    return list(found.values())


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{level}": round(float(np.percentile(seconds, level)) * 1e3, 1) for level in (50, 99)}


def _text(data: dict[str, Any]) -> str:
    lines = [
        f"{data['deployments']} deployments of {data['base_set']}, each touched in turn on every worker",
        data["machine"],
        f"weights {data['weights_mib']} MiB, estimate of a session {data['session_estimate_mib']} MiB",
    ]
    for row in data["rows"]:
        first, later, restart = row["first_request_ms"], row["later_request_ms"], row["restart"]
        lines.append(
            f"{row['workers']} workers, cache {row['cache_mb']:g} MB: start of one {restart['seconds']} s "
            f"({restart['cpu_seconds']} s CPU, {restart['rss_mib']} MiB); rss {row['rss_before_mib']} -> "
            f"{row['rss_after_mib']} MiB, own memory +{row['anonymous_grown_mib']} MiB; all workers "
            f"{row['all_workers_pss_before_mib']} -> {row['all_workers_pss_after_mib']} MiB (PSS), rows mapped "
            f"{row['rows_mapped_mib']} MiB, not shared {row['rows_private_mib']} MiB; first request p50/p99 "
            f"{first['p50']}/{first['p99']} ms, later {later['p50']}/{later['p99']} ms; "
            f"answers that differ {row['different_answers']}; claims {'hold' if row['claims_hold'] else 'FAIL'}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run([Sessions], prog="python -m benchmarks.sessions", description="Cost of many deployments."))
