"""One row of the table: a base set is bundled, served by 1, 4 and 2 workers, asked, swapped and adapted."""

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from benchmarks.load.story import processes
from benchmarks.pictures import jpegs, labelled_jpegs
from benchmarks.processes import MIB, memory, peak_rss
from deploy.bundle import build_bundle
from deploy.runtime import Bundle
from service.demo.adaptation import Unfinished, adapt
from service.demo.client import Load, hammer, post_request
from service.demo.server import Server, serve, wait_for_workers
from training.devices import thread_count
from training.manifest import Manifest, read_manifest

FEW, MANY = 1, 4  # workers whose memory is compared
WORKERS = 2  # of the server that is asked, swapped and adapted: one for each core
CLIENTS = 8  # that measure throughput
BUSY_CLIENTS = 2  # that keep predicting while soups are swapped: one for each worker
MOST_SECONDS = 120  # of one load
SETTLE_SECONDS = 2.0  # after a start, before memory is read
WARM_SECONDS = 2.0  # of load that does not count
PAUSE_SECONDS = 1.0  # between two swaps
ADAPTER_SECONDS = 300  # for the adapter to load the base set
NUM_FILES = 32


class Plan(NamedTuple):
    """How much is measured."""

    seconds: float  # of each load, at least
    answers: int  # of each load, at least
    swaps: int
    n: int  # labelled images
    adapt_seconds: float  # after which an adaptation is given up
    cores: int


@contextmanager
def limited_to(cores: int) -> Iterator[None]:
    """Keep this process and what it starts to so many cores, where there are more."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(base: Path, work: Path, plan: Plan, *, seed: int) -> dict[str, Any]:
    """Return the costs of a base set; times in seconds unless the name says otherwise, memory in MiB.

    Args:
        base: the base set.
        work: an empty folder.
        plan: how much.
        seed: of the images.
    """
    manifest = read_manifest(base)
    start = time.perf_counter()
    with thread_count(plan.cores):
        bundle = build_bundle(base, work / "bundles")
    row: dict[str, Any] = {"bundle_s": round(time.perf_counter() - start, 1)}
    info = Bundle.open(bundle).info
    row["input"] = [info.input.height, info.input.width]
    row["weights_m"] = round(sum(slot.num_floats for slot in info.tensors) / 1e6, 3)
    row["weights_mib"] = round(info.row_floats * 4 / MIB, 3)
    row["memory"] = {str(workers): memory_of_workers(base, bundle, work, workers) for workers in (FEW, MANY)}
    settings = {"SAUCIER_THREADS": str(max(1, plan.cores - 1))}  # what is the default on so many cores
    with (
        tempfile.TemporaryDirectory(prefix="serve-", dir=work) as name,
        serve(Path(name), base, workers=WORKERS, settings=settings, bundles=bundle.parent) as server,
    ):
        pids = wait_for_workers(server, WORKERS)
        _wait_for_adapter(Path(name) / "serve.log")
        row |= _exercise(server, pids, manifest, plan, seed=seed)
    return row


def memory_of_workers(base: Path, bundle: Path, work: Path, workers: int) -> dict[str, float]:
    """Start a server, and return the memory of its workers once each has answered its own probe.

    `rss` of the largest worker, shared pages included; `pss` of all workers together, each shared page once; `private`
    of the median worker: what is free again when it ends.
    """
    with (
        tempfile.TemporaryDirectory(prefix="serve-", dir=work) as name,
        serve(Path(name), base, workers=workers, bundles=bundle.parent) as server,
    ):
        pids = wait_for_workers(server, workers)
        time.sleep(SETTLE_SECONDS)
        found = [memory(pid) for pid in pids]
    return {
        "rss": round(max(one.rss for one in found)),
        "pss": round(sum(one.pss for one in found)),
        "private": round(float(np.median([one.private for one in found])), 1),
    }


def _wait_for_adapter(log: Path) -> None:
    """Wait until the adapter has loaded its base set: before, it takes a core from whatever is measured."""
    deadline = time.monotonic() + ADAPTER_SECONDS
    while "the adapter is ready" not in log.read_text(errors="replace"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected an adapter within {ADAPTER_SECONDS} s; the log ends {log.read_text()[-500:]}")
        time.sleep(0.2)


def _exercise(server: Server, pids: list[int], manifest: Manifest, plan: Plan, *, seed: int) -> dict[str, Any]:
    """Ask, swap and adapt, one after the other."""
    height, width = manifest.input.height, manifest.input.width
    files = jpegs(NUM_FILES, height, width, seed=seed)
    requests = [post_request("/predict", file, "image/jpeg", server.port) for file in files]
    names = manifest.ingredient_names
    dials = [
        dict(zip(names, np.roll([0.5, 0.5] + [0.0] * (len(names) - 2), turn).tolist(), strict=True))
        for turn in range(2)
    ]
    asyncio.run(hammer(server.port, requests, concurrency=CLIENTS, seconds=WARM_SECONDS))
    one = asyncio.run(_ask(server, requests, 1, plan))
    many = asyncio.run(_ask(server, requests, CLIENTS, plan))
    loaded = max(memory(pid).private for pid in pids)
    calm = [_swap(server, dials[turn % 2]) for turn in range(plan.swaps)]
    busy, load = asyncio.run(_swap_under_load(server, requests, dials, plan))
    server.call("PUT", "/deployments/default/soup", {"version": 1})
    failed = [*one.failed, *many.failed, *load.failed]
    return {
        "predict": {"1": _latency(one), str(CLIENTS): _latency(many)},
        "loaded_private_mib": round(loaded),
        "swap": {"calm": _extremes(calm), "busy": _extremes(busy)},
        "adapt": _adapt(server, manifest, plan, seed=seed),
        "requests": len(one.latencies) + len(many.latencies) + len(load.latencies) + len(failed),
        "failed": len(failed),
        "first_failures": failed[:3],
    }


async def _ask(server: Server, requests: list[bytes], clients: int, plan: Plan) -> Load:
    """Predict for so long and so often as planned."""
    stop, start, answers = asyncio.Event(), time.perf_counter(), 0

    def note(_: float, received: float, __: bytes, ___: int) -> None:
        nonlocal answers
        answers += 1
        if answers >= plan.answers and received - start >= plan.seconds:
            stop.set()

    return await hammer(server.port, requests, concurrency=clients, seconds=MOST_SECONDS, stop=stop, on_answer=note)


def _latency(load: Load) -> dict[str, float]:
    return {
        "p50_ms": round(load.percentile_ms(50), 1),
        "p99_ms": round(load.percentile_ms(99), 1),
        "per_second": round(load.per_second, 1),
        "answers": len(load.latencies),
    }


def _swap(server: Server, coefficients: dict[str, float]) -> float:
    """Turn the dial; return the seconds until every live worker serves the new soup."""
    time.sleep(PAUSE_SECONDS)
    start = time.perf_counter()
    view = server.call("PUT", "/deployments/default/soup", {"coefficients": coefficients})
    while not view["is_rolled_out"]:
        if time.perf_counter() - start > MOST_SECONDS:
            raise RuntimeError(f"expected a swap within {MOST_SECONDS} s, the workers serve {view['workers']}")
        time.sleep(0.02)
        view = server.call("GET", "/deployments/default")
    return time.perf_counter() - start


async def _swap_under_load(
    server: Server, requests: list[bytes], dials: list[dict[str, float]], plan: Plan
) -> tuple[list[float], Load]:
    stop = asyncio.Event()
    task = asyncio.create_task(hammer(server.port, requests, concurrency=BUSY_CLIENTS, seconds=3600, stop=stop))
    seconds = [await asyncio.to_thread(_swap, server, dials[turn % 2]) for turn in range(plan.swaps)]
    stop.set()
    return seconds, await task


def _extremes(seconds: list[float]) -> dict[str, float]:
    return {"median_s": round(float(np.median(seconds)), 2), "max_s": round(max(seconds), 2)}


def _adapt(server: Server, manifest: Manifest, plan: Plan, *, seed: int) -> dict[str, Any]:
    """Adapt to images of the network's size; what goes wrong is a finding."""
    shape = (manifest.input.height, manifest.input.width)
    files, labels = labelled_jpegs(plan.n, len(manifest.class_names), *shape, seed=seed)
    found: dict[str, Any] = {"n": plan.n}
    start = time.perf_counter()
    try:
        job = adapt(server, files, [manifest.class_names[label] for label in labels], seconds=plan.adapt_seconds)
    except Unfinished:
        found |= {"state": "given up", "seconds": None}
    except (RuntimeError, httpx.HTTPError) as error:
        found |= {"state": "failed", "seconds": None, "reason": str(error)[:300]}
    else:
        found |= {"state": job["state"], "seconds": round(time.perf_counter() - start, 1)}
    found["gave_up_after_s"] = plan.adapt_seconds
    found["peak_mib"] = round(max((peak_rss(one.pid) for one in processes(server, "Adapter")), default=0))
    return found
