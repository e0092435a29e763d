"""What happens during the load: adaptations, heavy uploads, kills, restarts, silence; and what was answered."""

import asyncio
import bisect
import contextlib
import io
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from PIL import Image

from benchmarks.load.replicas import Replicas
from benchmarks.postgres import Postgres
from service.demo.client import multipart, post_request
from service.demo.server import Server

RETRY_SECONDS = 0.5
WAIT_SECONDS = 30  # for a job, in the request
UPGRADE_PAUSE = 0.05  # between the head and the body of a request that offers another protocol
CONNECTIONS = 8  # to each replica, to meet all of its workers after a promotion
HEAVY_SIDE, HEAVY_COUNT, HEAVY_REQUESTS = 7000, 20, 4  # grey pictures of 49 megapixels in a body of about a megabyte


class Promises:
    """Promotions that were answered with 200: every request sent later is answered by that version or a later one."""

    def __init__(self) -> None:
        """Begin with none."""
        self._times: list[float] = []
        self._versions: list[int] = []
        self.broken = 0

    def __len__(self) -> int:
        """Return how many were made."""
        return len(self._times)

    def add(self, version: int) -> None:
        """A 200 has arrived."""
        self._times.append(time.perf_counter())
        self._versions.append(max([version, *self._versions[-1:]]))

    def check(self, sent: float, version: int) -> None:
        """Count an answer as broken if it is of an older version than was promised when its request was sent."""
        made = bisect.bisect_left(self._times, sent)
        self.broken += made > 0 and version < self._versions[made - 1]


@dataclass
class Notes:
    """What was done and what the service said to it; times of `time.perf_counter`."""

    worker_kills: list[float] = field(default_factory=list)
    adapter_kills: list[float] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)  # of the database
    silences: list[float] = field(default_factory=list)  # of the connections to it
    restarts: list[tuple[float, float]] = field(default_factory=list)  # of replicas: seconds to end, to be ready
    heavy: Counter[int] = field(default_factory=Counter)  # statuses of heavy uploads
    upgrades: Counter[str] = field(default_factory=Counter)  # what offers of HTTP/2 were answered with
    jobs: list[dict[str, Any]] = field(default_factory=list)  # as acknowledged
    refused: list[tuple[float, int]] = field(default_factory=list)  # adaptations that were not: when, status
    rss_mb: list[tuple[float, float]] = field(default_factory=list)  # of all predictors together
    promises: Promises = field(default_factory=Promises)


class Upload:
    """Labelled images as a multipart request."""

    def __init__(self, files: list[bytes], labels: list[str]) -> None:
        self.first = files[0]
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


async def adapt(replicas: Replicas, notes: Notes, upload: Upload) -> None:
    """Send labelled images until they are acknowledged; what is not is noted, and what is promised is checked."""
    while True:
        url = replicas.server().url
        try:
            async with httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS + 40) as client:
                answer = await client.post(
                    f"/adapt?wait={WAIT_SECONDS}&effort=quick",
                    content=upload.body,
                    headers={"Content-Type": upload.media_type},
                )
        except httpx.TransportError:
            notes.refused.append((time.perf_counter(), 0))
        else:
            if answer.status_code in (200, 202):
                job = answer.json()
                notes.jobs.append(job)
                if job["state"] == "promoted":
                    notes.promises.add(job["version"])
                    await meet_workers(replicas, notes, upload)
                return
            notes.refused.append((time.perf_counter(), answer.status_code))
            if answer.status_code != 503:
                return
        await asyncio.sleep(RETRY_SECONDS)


async def meet_workers(replicas: Replicas, notes: Notes, upload: Upload) -> None:
    """Ask each replica over several new connections, which its workers share, for a prediction."""
    body, media_type = multipart([upload.first])

    async def ask(server: Server) -> None:
        sent = time.perf_counter()
        try:
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
                answer = await client.post("/predict", content=body, headers={"Content-Type": media_type})
        except httpx.TransportError:
            return  # a worker was killed; what the other connections meet is checked
        if answer.status_code == 200:
            notes.promises.check(sent, answer.json()["version"])

    ready = [server for server in replicas.servers if replicas.is_ready(server.port)]
    await asyncio.gather(*(ask(server) for server in ready for _ in range(CONNECTIONS)))


async def send_heavy(replicas: Replicas, notes: Notes) -> None:
    """Send pictures that are small as files and large as pixels, several requests at a time, and give up half-way."""
    body, media_type = multipart([_grey(HEAVY_SIDE)] * HEAVY_COUNT, media_type="image/png")

    async def send(seconds: float) -> None:
        try:
            async with httpx.AsyncClient(base_url=replicas.server().url, timeout=seconds) as client:
                answer = await client.post("/predict", content=body, headers={"Content-Type": media_type})
            notes.heavy[answer.status_code] += 1
        except httpx.TransportError:
            notes.heavy[0] += 1  # gave up, or a worker was killed

    await asyncio.gather(*(send(60.0 if number % 2 else 2.0) for number in range(HEAVY_REQUESTS)))


async def offer_upgrade(replicas: Replicas, notes: Notes, upload: Upload) -> None:
    """Ask for a prediction as Java's HTTP client does: with an offer of HTTP/2, the body in a packet of its own.

    One answer is expected, of HTTP/1.1. A second one would mean that the body was taken for a request.
    """
    port, killed = replicas.server().port, len(notes.worker_kills)
    body, media_type = multipart([upload.first])
    request = post_request("/predict", body, media_type, port)
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return  # the service is going down
    try:
        writer.write(request[: -len(body) - 2] + offer)
        await writer.drain()
        await asyncio.sleep(UPGRADE_PAUSE)
        writer.write(body)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_SECONDS)
        length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await asyncio.wait_for(reader.readexactly(length), WAIT_SECONDS)
        status = answer.split(b" ")[1].decode()
        with contextlib.suppress(TimeoutError):
            if await asyncio.wait_for(reader.read(1), UPGRADE_PAUSE):
                status = "two answers"
        notes.upgrades[status] += 1
    except (OSError, EOFError, TimeoutError) as error:
        if len(notes.worker_kills) == killed and replicas.is_ready(port):
            notes.upgrades[type(error).__name__] += 1
    finally:
        writer.close()


def _grey(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "PNG")
    return buffer.getvalue()


def kill_worker(replicas: Replicas, notes: Notes, turn: int) -> None:
    """Kill one predictor of one replica, the older ones in turn."""
    with replicas.lock:
        servers = replicas.servers
        found = processes(servers[turn % len(servers)], "Saucier")
        notes.worker_kills.append(time.perf_counter())
        os.kill(found[turn // len(servers) % len(found)].pid, signal.SIGKILL)


def kill_adapters(replicas: Replicas, notes: Notes) -> None:
    """Kill the adapter of each replica."""
    with replicas.lock:
        notes.adapter_kills.append(time.perf_counter())
        for server in replicas.servers:
            for process in processes(server, "Adapter"):
                os.kill(process.pid, signal.SIGKILL)


def restart_database(database: Postgres, notes: Notes) -> None:
    """Stop the database, at once for all connections, and start it again."""
    start = time.perf_counter()
    database.stop()
    database.start()
    notes.outages.append((start, time.perf_counter()))


def restart_replicas(replicas: Replicas, notes: Notes) -> None:
    """End one replica after the other as a rolling restart does, each once the one before is back."""
    for index in range(len(replicas.servers)):
        notes.restarts.append(replicas.restart(index))


def weigh(replicas: Replicas, notes: Notes) -> None:
    """Note how much memory the predictors have of their own, in MB."""
    total = 0.0
    for server in replicas.servers:
        try:
            total += sum(process.memory_info().rss / 1e6 for process in processes(server, "Saucier"))
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
