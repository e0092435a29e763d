"""What happens during the load: adaptations, kills, a restart of the database; and what was acknowledged."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

from benchmarks.client import multipart
from benchmarks.postgres import Postgres
from benchmarks.server import Server

RETRY_SECONDS = 0.5


@dataclass
class Notes:
    """What was done and what the service said to it; times of `time.perf_counter`."""

    worker_kills: list[float] = field(default_factory=list)
    adapter_kills: list[float] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)  # of the database
    jobs: list[dict[str, Any]] = field(default_factory=list)  # as acknowledged
    refused: list[tuple[float, int]] = field(default_factory=list)  # adaptations that were not: when, status
    rss_mb: list[tuple[float, float]] = field(default_factory=list)  # of all predictors together


class Upload:
    """Labelled images as a multipart request."""

    def __init__(self, files: list[bytes], labels: list[str]) -> None:
        body, self.media_type = multipart(files)
        boundary = self.media_type.partition("boundary=")[2].encode()
        part = b'--%b\r\nContent-Disposition: form-data; name="labels"\r\n\r\n%b\r\n'
        self.body = part % (boundary, json.dumps(labels).encode()) + body


async def every(seconds: float, stop: asyncio.Event, action: Callable[[int], Awaitable[None]]) -> None:
    """Do something again and again, first after that many seconds."""
    turn = 0
    while True:
        try:
            await asyncio.wait_for(stop.wait(), seconds)
        except TimeoutError:
            await action(turn)
            turn += 1
        else:
            return


async def adapt(server: Server, notes: Notes, upload: Upload) -> None:
    """Send labelled images until they are acknowledged; what is not is noted."""
    async with httpx.AsyncClient(base_url=server.url, timeout=70) as client:
        while True:
            try:
                answer = await client.post(
                    "/adapt?wait=0", content=upload.body, headers={"Content-Type": upload.media_type}
                )
            except httpx.TransportError:
                notes.refused.append((time.perf_counter(), 0))
            else:
                if answer.status_code in (200, 202):
                    notes.jobs.append(answer.json())
                    return
                notes.refused.append((time.perf_counter(), answer.status_code))
                if answer.status_code != 503:
                    return
            await asyncio.sleep(RETRY_SECONDS)


def kill_worker(server: Server, notes: Notes, turn: int) -> None:
    """Kill one predictor, the older ones in turn."""
    found = processes(server, "Saucier")
    notes.worker_kills.append(time.perf_counter())
    os.kill(found[turn % len(found)].pid, signal.SIGKILL)


def kill_adapter(server: Server, notes: Notes) -> None:
    """Kill the adapter."""
    notes.adapter_kills.append(time.perf_counter())
    for process in processes(server, "Adapter"):
        os.kill(process.pid, signal.SIGKILL)


def restart(database: Postgres, notes: Notes) -> None:
    """Stop the database, at once for all connections, and start it again."""
    start = time.perf_counter()
    database.stop()
    database.start()
    notes.outages.append((start, time.perf_counter()))


def weigh(server: Server, notes: Notes) -> None:
    """Note how much memory the predictors have of their own, in MB."""
    total = 0.0
    for process in processes(server, "Saucier"):
        try:
            total += process.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            return
    notes.rss_mb.append((time.perf_counter(), total))


def processes(server: Server, service: str) -> list[psutil.Process]:
    """Return the processes of a BentoML service, the oldest first."""
    found = []
    for child in psutil.Process(server.pid).children(recursive=True):
        try:
            if f"--service-name {service}" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=psutil.Process.create_time)
