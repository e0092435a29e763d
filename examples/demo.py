"""The whole idea in one program: train, serve, shift, adapt, all on this machine.

Trains the four digits ingredients, serves them with `bentoml serve` and two workers, looks at the digits through a
camera on a dull, hazy day, posts 100 labelled pictures to `/adapt` while clients keep asking `/predict`, and measures
500 other pictures before and after, over HTTP. `python -m examples.demo` or `make demo`.

`swap_ms` is the time from the decision to promote (the job's `finished_at`) until the answer to `/adapt` is here: it is
sent when every live worker serves the new soup. A later answer of an older soup would count as failed.
"""

import asyncio
import base64
import json
import logging
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

import httpx
import numpy as np
import tyro
from pydantic import Field

from adapt.commands.default import DefaultCommand
from benchmarks.client import Load, hammer, post_request
from benchmarks.server import Server, serve
from examples.camera import CAMERAS, DEMO_CAMERA
from examples.picture import draw
from examples.story import Pictures, Story, table
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.data import balanced_indices, load_digits
from training.devices import thread_count
from training.recipe import load_recipe
from training.train import train

logger = logging.getLogger("demo")

NUM_SUPPORT = 100
WORKERS = 2
CALM_SECONDS = 2.0  # of load before the labelled pictures are posted, and after the answer
START_SECONDS = 60.0
JOB_SECONDS = 120.0


class Demo(Command):
    """Train four digit classifiers, serve them, shift the pictures, adapt, and show what it did.

    Takes about a minute on two cores. Exit code 1 if accuracy did not rise or a request failed.

    Example: python -m examples.demo --seed 3 --out runs/demo-3
    """

    name: ClassVar[str] = "demo"
    out: Path = Field(default=Path("runs/demo"), description="folder for demo.png and demo.json")
    base: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = Field(
        default=None, description="digits base set to serve instead of training one"
    )
    clients: int = Field(default=3, ge=1, description="clients that keep asking /predict while the service adapts")

    def execute(self) -> Result:
        """Train, serve, adapt, show."""
        logging.getLogger("httpx").setLevel(logging.WARNING)
        try:
            story, pictures = self._play()
        except (RuntimeError, httpx.HTTPError) as error:
            line = {"demo": "failed", "reason": str(error)}
            return Result(line, f"the demo broke off\n{json.dumps(line)}", EXIT_CLAIM_FAILED)
        self.out.mkdir(parents=True, exist_ok=True)
        draw(story, pictures, self.out / "demo.png")
        (self.out / "demo.json").write_text(json.dumps(asdict(story)) + "\n", encoding="utf-8")
        text = f"\n{table(story)}\n\npicture: {self.out / 'demo.png'}\n{json.dumps(story.line)}"
        return Result(story.line, text, EXIT_DONE if story.is_shown else EXIT_CLAIM_FAILED)

    def _play(self) -> tuple[Story, Pictures]:
        start = time.perf_counter()
        pictures = photograph_digits(DEMO_CAMERA, seed=self.seed)
        with tempfile.TemporaryDirectory(prefix="saucier-demo-") as name:
            folder = Path(name)
            bases = self.base or train_digits(folder / "bases" / "digits", seed=self.seed)
            logger.info("starting bentoml serve with %d workers; it builds the serving bundle first", WORKERS)
            with serve(folder, bases, workers=WORKERS) as server:
                _wait_for_workers(server)
                story = asyncio.run(tell(server, pictures, clients=self.clients))
        story.seconds = time.perf_counter() - start
        return story, pictures


def train_digits(folder: Path, *, seed: int) -> Path:
    """Train the recipe `digits` and choose its default soup; returns the folder."""
    logger.info("training the digits ingredients, as `python -m training run digits` does")
    # The network is so small that a second thread gains little, and beside other load costs much.
    with thread_count(1):
        train(load_recipe(Path("digits")), folder, seed=seed)
        chosen = DefaultCommand(bases=folder).execute()
    logger.info("default soup, as `python -m adapt default` chooses it: %s", chosen.text.replace("\n", "; "))
    return folder


def photograph_digits(camera: str, *, seed: int) -> Pictures:
    """Return the digits' test images as a camera of `CAMERAS` sees them, 100 for support, the rest for the test."""
    _, scenes = load_digits()
    support = balanced_indices(scenes.labels, NUM_SUPPORT, seed=seed)
    test = np.setdiff1d(np.arange(len(scenes)), support)
    return Pictures(scenes, CAMERAS[camera].photograph(scenes.images, seed=seed), support, test)


def _wait_for_workers(server: Server) -> None:
    """Wait until every worker serves: readiness is that of the one that happened to be asked."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        view = server.call("GET", "/deployments/default")
        if view["is_rolled_out"] and len(view["workers"]) == WORKERS:
            return
        time.sleep(0.2)
    raise RuntimeError(f"expected {WORKERS} workers within {START_SECONDS:g} s, found {len(view['workers'])}")


async def tell(server: Server, pictures: Pictures, *, clients: int) -> Story:
    """Measure, adapt under load, measure again."""
    soup_before = server.call("GET", "/deployments/default")
    predicted_before = predict(server, [pictures.files[i] for i in pictures.test])
    before = _accuracy(predicted_before, pictures)
    logger.info("accuracy of the default soup on %d shifted pictures: %.3f", len(pictures.test), before)
    answers: list[tuple[float, float, int | None]] = []  # sent, received, version

    def note(sent: float, received: float, body: bytes, _: int) -> None:
        answers.append((sent, received, json.loads(body).get("version")))

    requests = [post_request("/predict", pictures.files[i], "image/jpeg", server.port) for i in pictures.test]
    stop = asyncio.Event()
    load_task = asyncio.create_task(
        hammer(server.port, requests, concurrency=clients, seconds=3600, stop=stop, on_answer=note)
    )
    await asyncio.sleep(CALM_SECONDS)
    logger.info("posting %d labelled pictures to /adapt while %d clients keep asking", len(pictures.support), clients)
    posted = time.perf_counter()
    job = await asyncio.to_thread(post_labelled, server, pictures)
    rolled_out = time.perf_counter()
    # `finished_at` is a time of day: bring it onto the clock of the answers.
    decided = datetime.fromisoformat(job["finished_at"]).timestamp() - time.time() + time.perf_counter()
    logger.info("%s: %s", job["state"], job["reason"])
    await asyncio.sleep(CALM_SECONDS)
    stop.set()
    load = await load_task
    failures = _failures(load, answers, {soup_before["version"], job["version"]}, job["version"], rolled_out)
    predicted_after = predict(server, [pictures.files[i] for i in pictures.test])
    start = min(sent for sent, _, _ in answers)
    return Story(
        before=before,
        after=_accuracy(predicted_after, pictures),
        predicted_before=predicted_before,
        predicted_after=predicted_after,
        soup_before=soup_before["coefficients"],
        soup_after=server.call("GET", "/deployments/default")["coefficients"],
        job=job,
        num_requests=len(load.latencies) + len(load.failed),
        failures=failures[:20],
        num_failed=len(failures),
        answers=[(received - start, version) for _, received, version in answers if version is not None],
        posted=posted - start,
        decided=decided - start,
        rolled_out=rolled_out - start,
    )


def predict(server: Server, files: list[bytes]) -> list[str]:
    """Return the predicted class of each file, by one `POST /predict`."""
    body = {"images": [base64.b64encode(file).decode() for file in files]}
    return [prediction["label"] for prediction in server.call("POST", "/predict?top_k=1", body)["predictions"]]


def post_labelled(server: Server, pictures: Pictures) -> dict[str, Any]:
    """Post the support pictures to `/adapt` and return the finished job, once every worker serves what it promoted."""
    parts = [("images", (f"{i}.jpg", pictures.files[i], "image/jpeg")) for i in pictures.support]
    labels = {"labels": json.dumps(pictures.labels(pictures.support))}
    with httpx.Client(base_url=server.url, timeout=70) as client:
        answer = client.post("/adapt", params={"wait": 50}, files=parts, data=labels)
        answer.raise_for_status()
        job: dict[str, Any] = answer.json()
        if answer.status_code == 202:
            job = _follow(client, job["job"])
    if job["state"] == "failed":
        raise RuntimeError(f"the adaptation failed: {job['reason']}")
    return job


def _follow(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Wait for a job that takes longer than one request may wait."""
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
        is_rolled_out = client.get(f"/deployments/{job['deployment']}").json()["is_rolled_out"]
        if job["finished_at"] is not None and is_rolled_out:
            return job
        time.sleep(0.1)
    raise RuntimeError(f"expected the job to end within {JOB_SECONDS:g} s, it is {job['state']}: {job['message']}")


def _failures(
    load: Load,
    answers: list[tuple[float, float, int | None]],
    known: set[int],
    version: int,
    rolled_out: float,
) -> list[str]:
    """Return one line for every request that was not answered, or answered by a soup that should not have."""
    failures = list(load.failed)
    failures += [f"an answer names version {named}" for _, _, named in answers if named not in known]
    failures += [
        f"version {named} after the rollout" for sent, _, named in answers if sent > rolled_out and named != version
    ]
    return failures


def _accuracy(predicted: list[str], pictures: Pictures) -> float:
    return float(
        np.mean([found == label for found, label in zip(predicted, pictures.labels(pictures.test), strict=True)])
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the server when asked to stop, too
    sys.exit(run([Demo], prog="python -m examples.demo", description="Adaptation to a shift, end to end."))
