"""`python -m benchmarks.load`: mixed requests to two services while their parts are killed, restarted and silenced."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field

from benchmarks.load.replicas import Replicas
from benchmarks.load.report import markdown, summary
from benchmarks.load.story import (
    Notes,
    Upload,
    adapt,
    every,
    kill_adapters,
    kill_worker,
    offer_upgrade,
    restart_database,
    restart_replicas,
    send_heavy,
    weigh,
)
from benchmarks.machine import machine
from benchmarks.pictures import jpegs
from benchmarks.postgres import Postgres
from benchmarks.proxy import Proxy
from benchmarks.shifts.sources import find_sources
from deploy.bundle import build_bundle
from deploy.runtime import Bundle
from service.demo.client import Load, hammer, multipart, post_request
from service.http.answers import confidences
from service.store.database import Database
from service.store.jobs import JobQueue
from service.store.registry import Registry
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.images import load_image, to_input
from training.manifest import Manifest, read_manifest
from training.parameters import Positional

logger = logging.getLogger(__name__)

SHIFTS = ("fog", "contrast", "gaussian_noise", "low_light", "inversion", "sketch")
END_SECONDS = 120  # for the jobs that are still queued when the load ends
TOLERANCE = 2e-3  # of a confidence: batches of other sizes round differently
N_LABELLED = 60


class Answered(NamedTuple):
    """An answer: which request, by which version, and what it said of the first image."""

    position: int
    version: int
    label: str
    confidence: float  # rounded, so that equal answers are counted together


class LoadTest(Command):
    """Load services with mixed requests and adaptations while their parts fail, and check every answer.

    Two services share a PostgreSQL registry; requests go to those that are ready. Workers and adapters are killed, the
    database is restarted, its connections fall silent, heavy uploads come, and the services are restarted one by one.
    Every answer is compared with the network of its version, and with the versions that were promised before.

    Example: python -m benchmarks.load --seconds 900 --data .data/cifar10 --json
    """

    name: ClassVar[str] = "load"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path = Field(default=Path(".data/cifar10"), description="CIFAR-10, or a folder with test/<class>/<file>")
    seconds: float = Field(default=900, gt=0, description="how long")
    concurrency: int = Field(default=8, ge=1, description="connections that keep predicting")
    workers: int = Field(default=2, ge=2, description="predictor processes of each service")
    replicas: int = Field(default=2, ge=1, description="services; with --no-postgres only 1")
    adapt_every: float = Field(default=20, gt=0, description="seconds between adaptations")
    kill_every: float = Field(default=60, gt=0, description="seconds between kills of a worker")
    postgres: bool = Field(
        default=True, description="registry on a PostgreSQL that is silenced, and restarted half-way"
    )
    out: Path | None = Field(default=None, description="folder for REPORT.md; none is written if not given")

    def execute(self) -> Result:
        """Load and check; the claim is that nothing was lost, nothing was wrong and every promise was kept."""
        if self.replicas > 1 and not self.postgres:
            raise ValueError(
                f"replicas: expected 1 without PostgreSQL, as SQLite is one machine's, got {self.replicas}"
            )
        logging.getLogger("httpx").setLevel(logging.WARNING)
        manifest = read_manifest(self.base)
        uploads = self._uploads(manifest)
        with tempfile.TemporaryDirectory(prefix="saucier-") as name, _database(self.postgres) as (database, proxy):
            folder = Path(name)
            build_bundle(self.base, folder / "bundles")
            settings = {"SAUCIER_STORE_URL": f"file://{folder / 'samples'}"}
            url = f"sqlite:///{folder / 'registry.db'}"
            if database is not None and proxy is not None:
                url = database.empty("saucier")
                settings["SAUCIER_DATABASE_URL"] = url.replace(f":{database.port}/", f":{proxy.port}/")
            else:
                settings["SAUCIER_DATABASE_URL"] = url
            with Replicas(
                folder,
                self.base,
                bundles=folder / "bundles",
                count=self.replicas,
                workers=self.workers,
                settings=settings,
            ) as replicas:
                requests, images = _requests(manifest, replicas.port(), seed=self.seed)
                load, answers, notes = asyncio.run(self._load(replicas, requests, uploads, database, proxy))
                wrong = _wrong_answers(self.base, url, manifest, images, answers, folder / "bundles")
                lost, states = _lost(url, notes)
        data = summary(load, notes) | {"wrong_answers": wrong, "lost_promotions": lost, "jobs": dict(states)}
        data |= {"workers": self.workers, "replicas": self.replicas, "concurrency": self.concurrency}
        data |= {"machine": machine()}
        faults = ("failed", "wrong_answers", "lost_promotions", "broken_promises", "refused", "upgrades_failed")
        text = markdown(data, self._command())
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "REPORT.md").write_text(text, encoding="utf-8")
        return Result(data, text, EXIT_CLAIM_FAILED if any(data[fault] for fault in faults) else EXIT_DONE)

    def _uploads(self, manifest: Manifest) -> list[Upload]:
        count = int(self.seconds / self.adapt_every) + 1
        sources = find_sources(self.data, None, manifest, size=2000, seed=self.seed)
        uploads = []
        for turn in range(count):
            data = sources.load(SHIFTS[turn % len(SHIFTS)], seed=self.seed)
            some = data.balanced(N_LABELLED, seed=self.seed + turn)
            uploads.append(
                Upload([_png(image) for image in some.images], [manifest.class_names[i] for i in some.labels])
            )
        return uploads

    async def _load(
        self,
        replicas: Replicas,
        requests: list[bytes],
        uploads: list[Upload],
        database: Postgres | None,
        proxy: Proxy | None,
    ) -> tuple[Load, "Counter[Answered]", Notes]:
        notes, answers = Notes(), Counter[Answered]()
        stop = asyncio.Event()

        def note(sent: float, _: float, body: bytes, position: int) -> None:
            answer = json.loads(body)
            first = answer["predictions"][0]
            answers[Answered(position, answer["version"], first["label"], round(first["confidence"], 4))] += 1
            notes.promises.check(sent, answer["version"])

        async def send(turn: int) -> None:
            await adapt(replicas, notes, uploads[turn % len(uploads)])

        async def in_thread(action: Any, *args: Any) -> None:
            await asyncio.to_thread(action, replicas, notes, *args)

        def silence() -> None:
            assert proxy is not None, "only planned with a database"
            notes.silences.append(time.perf_counter())
            proxy.silence()

        tasks = [
            asyncio.create_task(every(self.adapt_every, stop, send)),
            asyncio.create_task(every(self.kill_every, stop, partial(in_thread, kill_worker))),
            asyncio.create_task(every(5, stop, lambda _: in_thread(weigh))),
            asyncio.create_task(
                every(2, stop, lambda turn: offer_upgrade(replicas, notes, uploads[turn % len(uploads)]))
            ),
        ]
        plan: list[tuple[float, Callable[[], Any]]] = [
            (0.1, partial(send_heavy, replicas, notes)),
            (0.2, partial(in_thread, kill_adapters)),
            (0.7, partial(in_thread, kill_adapters)),
            (0.8, partial(send_heavy, replicas, notes)),
        ]
        if database is not None:
            plan += [(share, partial(asyncio.to_thread, silence)) for share in (0.3, 0.9)]
            plan.append((0.4, partial(asyncio.to_thread, restart_database, database, notes)))
        if self.replicas > 1:
            plan.append((0.5, partial(in_thread, restart_replicas)))
        tasks += [asyncio.create_task(self._once(share, stop, action)) for share, action in plan]
        load = await hammer(
            replicas.port,
            requests,
            concurrency=self.concurrency,
            seconds=self.seconds,
            on_answer=note,
            stays=replicas.is_ready,
        )
        stop.set()
        await asyncio.gather(*tasks)
        await _until_done(replicas, notes)
        return load, answers, notes

    async def _once(self, share: float, stop: asyncio.Event, action: Callable[[], Any]) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), share * self.seconds)
        if not stop.is_set():
            await action()

    def _command(self) -> str:
        return (
            f"python -m benchmarks.load --seconds {self.seconds:g} --concurrency {self.concurrency} --replicas "
            f"{self.replicas} --workers {self.workers} --adapt-every {self.adapt_every:g} --kill-every "
            f"{self.kill_every:g}"
        )


@contextlib.contextmanager
def _database(wanted: bool) -> Iterator[tuple[Postgres, Proxy] | tuple[None, None]]:
    """Run a database and what can silence the connections to it, if one is wanted."""
    if not wanted:
        yield None, None
        return
    database = Postgres()
    database.start()
    try:
        with Proxy(database.port) as proxy:
            yield database, proxy
    finally:
        database.remove()


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _requests(manifest: Manifest, port: int, *, seed: int) -> tuple[list[bytes], list[bytes]]:
    """Return requests of three kinds, and the first image of each."""
    files = jpegs(30, manifest.input.height, manifest.input.width, seed=seed)
    requests = []
    for number, file in enumerate(files):
        kind = number % 3
        if kind == 0:
            requests.append(post_request("/predict", file, "image/jpeg", port))
        elif kind == 1:
            body, media_type = multipart([file, files[number - 1], files[number - 2]])
            requests.append(post_request("/predict", body, media_type, port))
        else:
            body = json.dumps({"images": [base64.b64encode(file).decode()]}).encode()
            requests.append(post_request("/predict", body, "application/json", port))
    return requests, files


async def _until_done(replicas: Replicas, notes: Notes) -> None:
    """Wait for the jobs that were acknowledged."""
    deadline = time.monotonic() + END_SECONDS
    for job in notes.jobs:
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError, OSError):
                found = await asyncio.to_thread(replicas.server().call, "GET", f"/jobs/{job['job']}")
                if found["state"] not in ("queued", "running"):
                    break
            await asyncio.sleep(0.5)


def _wrong_answers(
    base: Path, url: str, manifest: Manifest, images: list[bytes], answers: "Counter[Answered]", bundles: Path
) -> int:
    """Return how many answers differ from what their version says in this process."""
    bundle = Bundle.open(build_bundle(base, bundles))  # which is there
    pixels = np.stack([load_image(file, manifest.input).pixels for file in images])
    wrong = 0
    with contextlib.closing(Database(url)) as database:
        registry = Registry(database)
        for version in sorted({answer.version for answer in answers}):
            soup = registry.soup("default", version)
            patch = None if soup.patch is None else soup.patch.tensors()
            session = bundle.session(soup.coefficients, bn_mode=soup.bn_mode, patch=patch)
            probabilities = confidences(session.run(to_input(pixels)), soup.temperature)
            for answer, count in answers.items():
                if answer.version == version and not _agrees(answer, probabilities[answer.position], manifest):
                    wrong += count
    return wrong


def _agrees(answer: Answered, probabilities: Any, manifest: Manifest) -> bool:
    said = float(probabilities[manifest.class_names.index(answer.label)])
    return abs(said - answer.confidence) < TOLERANCE and said > float(probabilities.max()) - TOLERANCE


def _lost(url: str, notes: Notes) -> tuple[int, Counter[str]]:
    """Return how many acknowledged jobs or promotions are lost, and the states of the jobs."""
    lost, states = 0, Counter[str]()
    with contextlib.closing(Database(url)) as database:
        registry, queue = Registry(database), JobQueue(database)
        events = {event.job: event for event in registry.events("default", limit=10_000) if event.kind == "promoted"}
        for acknowledged in {job["job"]: job for job in notes.jobs}.values():
            job = queue.get(acknowledged["job"])
            states["missing" if job is None else job.state] += 1
            if (
                job is None
                or not job.is_finished
                or (job.state == "promoted" and (job.id not in events or events[job.id].to_version != job.version))
            ):
                lost += 1
        latest = registry.events("default", limit=1)[0]
        lost += registry.deployment("default").version != latest.to_version
    return lost, states


if __name__ == "__main__":
    sys.exit(run([LoadTest], prog="python -m benchmarks.load", description="Load while parts fail."))
