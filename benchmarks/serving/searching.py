"""What a search costs those who ask for predictions meanwhile: the service calm and searching, in turn."""

import asyncio
import contextlib
import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks.pictures import jpegs
from deploy.bundle import build_bundle
from service.demo.client import Load, hammer, multipart, post_request
from service.demo.server import Server, serve
from training.manifest import Manifest, read_manifest

NUM_LABELLED = 200
START_SECONDS = 60.0  # for a job until it runs
SETTLE_SECONDS = 1.5  # of a search before it is measured, and after one


class Traffic(NamedTuple):
    """Who asks for predictions."""

    clients: int
    pause: float  # seconds between an answer and the next request of a client


TRAFFIC = {"light": Traffic(4, 0.02), "full": Traffic(8, 0.0)}
CALM, SHIPPED, IDLE = "calm", "search", "search, SCHED_IDLE"
STATES = (CALM, SHIPPED, IDLE)


def measure_searching(base: Path, *, workers: int, threads: int, rounds: int, seconds: float, seed: int) -> list[Any]:
    """Return latencies for each kind of traffic: calm, during a search, and during one at idle priority.

    Args:
        base: base set.
        workers: predictor processes.
        threads: of the search.
        rounds: interleaved, after one that does not count.
        seconds: of one measurement.
        seed: of the pictures.
    """
    manifest = read_manifest(base)
    files = jpegs(64, manifest.input.height, manifest.input.width, seed=seed)
    loads: dict[tuple[str, str], list[Load]] = {(kind, state): [] for kind in TRAFFIC for state in STATES}
    with tempfile.TemporaryDirectory(prefix="saucier-") as work:
        folder = Path(work)
        bundle = build_bundle(base, folder / "bundles")
        settings = {"OMP_NUM_THREADS": str(threads)}
        with serve(folder, base, workers=workers, bundles=bundle.parent, settings=settings) as server:
            requests = [post_request("/predict", file, "image/jpeg", server.port) for file in files]
            for turn in range(rounds + 1):
                for kind, traffic in TRAFFIC.items():
                    for state in STATES:
                        with _in_state(server, manifest, state, seed=seed):
                            load = asyncio.run(
                                hammer(
                                    server.port,
                                    requests,
                                    concurrency=traffic.clients,
                                    seconds=seconds,
                                    pause=traffic.pause,
                                )
                            )
                        if load.failed:
                            raise RuntimeError(f"{len(load.failed)} requests failed, first: {load.failed[0]}")
                        if turn > 0:
                            loads[kind, state].append(load)
    return [_row(kind, {state: loads[kind, state] for state in STATES}) for kind in TRAFFIC]


@contextlib.contextmanager
def _in_state(server: Server, manifest: Manifest, state: str, *, seed: int) -> Iterator[None]:
    """Keep a full search running while the block runs; end it then."""
    if state == CALM:
        yield
        return
    job = _start(server, manifest, seed=seed)
    _schedule(server, os.SCHED_IDLE if state == IDLE else os.SCHED_OTHER)
    time.sleep(SETTLE_SECONDS)
    try:
        yield
        if (found := server.call("GET", f"/jobs/{job}"))["state"] != "running":
            raise RuntimeError(f"the search ended before it was measured: {found['state']}; give fewer seconds")
    finally:
        server.call("DELETE", f"/jobs/{job}")
        _schedule(server, os.SCHED_OTHER)
        time.sleep(SETTLE_SECONDS)


def _start(server: Server, manifest: Manifest, *, seed: int) -> str:
    labels = [manifest.class_names[number % len(manifest.class_names)] for number in range(NUM_LABELLED)]
    body, media_type = multipart(jpegs(NUM_LABELLED, manifest.input.height, manifest.input.width, seed=seed + 1))
    boundary = media_type.partition("boundary=")[2].encode()
    part = b'--%b\r\nContent-Disposition: form-data; name="labels"\r\n\r\n%b\r\n'
    request = urllib.request.Request(
        f"{server.url}/adapt?wait=0&promote=never&effort=full",
        part % (boundary, json.dumps(labels).encode()) + body,
        {"Content-Type": media_type},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        job = str(json.loads(answer.read())["job"])
    deadline = time.monotonic() + START_SECONDS
    while server.call("GET", f"/jobs/{job}")["state"] != "running":
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected the search to run within {START_SECONDS:g} s")
        time.sleep(0.05)
    return job


def _schedule(server: Server, policy: int) -> None:
    """Give all threads of the adapter a scheduling policy; their niceness stays."""
    for process in psutil.Process(server.pid).children(recursive=True):
        if "--service-name Adapter" in " ".join(process.cmdline()):
            for thread in process.threads():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(thread.id, policy, os.sched_param(0))


def _row(kind: str, loads: dict[str, list[Load]]) -> dict[str, Any]:
    row: dict[str, Any] = {"traffic": kind}
    for state, measured in loads.items():
        ratios = [
            load.percentile_ms(99) / calm.percentile_ms(99) for load, calm in zip(measured, loads[CALM], strict=True)
        ]
        row[state] = {
            "per_second": round(float(np.median([load.per_second for load in measured])), 1),
            "p50_ms": round(float(np.median([load.percentile_ms(50) for load in measured])), 2),
            "p99_ms": round(float(np.median([load.percentile_ms(99) for load in measured])), 2),
            "p99_ratio": round(float(np.median(ratios)), 2),
        }
    return row


def searching_text(rows: list[Any]) -> str:
    """Return the measurements as lines."""
    lines = [f"{'traffic':8} {'state':20} {'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'of calm':>8}"]
    for row in rows:
        for state in STATES:
            cell = row[state]
            lines.append(
                f"{row['traffic']:8} {state:20} {cell['per_second']:10} {cell['p50_ms']:8} {cell['p99_ms']:8} "
                f"{cell['p99_ratio']:8}"
            )
    return "\n".join(lines)
