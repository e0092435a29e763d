"""What the demos have in common: serve, measure, adapt under load, measure again, show.

`swap_ms` is the time from the decision to promote (the job's `finished_at`) until the answer to `/adapt` is here: it is
sent when every live worker serves the new soup. A later answer of an older soup would count as failed.
"""

import asyncio
import base64
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import httpx
import numpy as np

from service.demo.adaptation import adapt
from service.demo.client import Load, hammer, post_request
from service.demo.picture import draw
from service.demo.server import Server, serve, wait_for_workers
from service.demo.story import Pictures, Story, table
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Result

logger = logging.getLogger("demo")

WORKERS = 2
CALM_SECONDS = 2.0  # of load before the labelled pictures are posted, and after the answer
JOB_SECONDS = 600.0
IMAGES_PER_REQUEST = 100


def perform(
    pictures: Pictures,
    make_bases: Callable[[Path], Path],
    *,
    out: Path,
    title: str,
    clients: int,
    pause: float = 0.0,
) -> Result:
    """Serve, measure, adapt, measure again; write the story and its picture; return its line as the result.

    Args:
        pictures: what is shown to the service.
        make_bases: returns the base set to serve; is given an empty folder that is removed at the end.
        out: folder for demo.png and demo.json.
        title: of the picture.
        clients: that keep asking meanwhile.
        pause: seconds that each client waits between an answer and its next request.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="saucier-demo-") as name:
            bases = make_bases(Path(name))
            logger.info("starting bentoml serve with %d workers; it builds the serving bundle first", WORKERS)
            with serve(Path(name), bases, workers=WORKERS) as server:
                wait_for_workers(server, WORKERS)
                story = asyncio.run(tell(server, pictures, clients=clients, pause=pause))
    except (RuntimeError, httpx.HTTPError) as error:
        line = {"demo": "failed", "reason": str(error)}
        return Result(line, f"the demo broke off\n{json.dumps(line)}", EXIT_CLAIM_FAILED)
    story.seconds = time.perf_counter() - start
    out.mkdir(parents=True, exist_ok=True)
    draw(story, pictures, out / "demo.png", title=title)
    (out / "demo.json").write_text(json.dumps(asdict(story)) + "\n", encoding="utf-8")
    text = f"\n{table(story)}\n\npicture: {out / 'demo.png'}\n{json.dumps(story.line)}"
    return Result(story.line, text, EXIT_DONE if story.is_shown else EXIT_CLAIM_FAILED)


async def tell(server: Server, pictures: Pictures, *, clients: int, pause: float = 0.0) -> Story:
    """Measure, adapt under load, measure again.

    Args:
        server: every worker of it serves.
        pictures: what is shown to it.
        clients: that keep asking meanwhile.
        pause: seconds that each client waits between an answer and its next request.
    """
    soup_before = server.call("GET", "/deployments/default")
    predicted_before = predict(server, [pictures.files[i] for i in pictures.test])
    before = _accuracy(predicted_before, pictures)
    logger.info("accuracy of the default soup on %d unseen pictures: %.3f", len(pictures.test), before)
    answers: list[tuple[float, float, int | None]] = []  # sent, received, version

    def note(sent: float, received: float, body: bytes, _: int) -> None:
        answers.append((sent, received, json.loads(body).get("version")))

    requests = [post_request("/predict", pictures.files[i], "image/jpeg", server.port) for i in pictures.test]
    stop = asyncio.Event()
    load_task = asyncio.create_task(
        hammer(server.port, requests, concurrency=clients, seconds=3600, pause=pause, stop=stop, on_answer=note)
    )
    await asyncio.sleep(CALM_SECONDS)
    logger.info("posting %d labelled pictures to /adapt while %d clients keep asking", len(pictures.support), clients)
    posted = time.perf_counter()
    support = [pictures.files[i] for i in pictures.support], pictures.labels(pictures.support)
    job = await asyncio.to_thread(adapt, server, *support, seconds=JOB_SECONDS)
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
    """Return the predicted class of each file, by as many `POST /predict` as it takes."""
    found: list[str] = []
    for start in range(0, len(files), IMAGES_PER_REQUEST):
        part = files[start : start + IMAGES_PER_REQUEST]
        body = {"images": [base64.b64encode(file).decode() for file in part]}
        found += [one["label"] for one in server.call("POST", "/predict?top_k=1", body)["predictions"]]
    return found


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
