"""The least that could serve the same network: a bare Starlette app with the service's decoder, batcher and session.

No deployments, versions, limits, metrics, checks of hosts, or problem details. The baseline of the predict path.
"""

import contextlib
import multiprocessing
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.runtime import Bundle, SoupSession
from service.http.answers import confidences, predictions_json
from service.prediction.batcher import Batcher
from training.images import load_image, to_input
from training.manifest import Manifest, read_manifest

MAX_BATCH = 32
MAX_WAITING = 1024


def create_app(base: Path, bundle: Path) -> Starlette:
    """Return the app for a base set's default soup."""
    manifest = read_manifest(base, check_files=False)
    session = Bundle.open(bundle).session(manifest.default_coefficients)
    batcher = _batcher(session, manifest)
    temperature, spec, names = manifest.default_temperature, manifest.input, manifest.class_names

    async def predict(request: Request) -> Response:
        pixels = load_image(await request.body(), spec).pixels
        probabilities = confidences(await batcher.submit([pixels]), temperature)
        body = predictions_json("default", 1, probabilities, names, top_k=3)
        return Response(body, media_type="application/json")

    async def ready(request: Request) -> Response:
        return Response(b"")

    return Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/readyz", ready)])


def _batcher(session: SoupSession, manifest: Manifest) -> Batcher[np.uint8]:
    def run(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return session.run(to_input(images))

    blank = np.zeros((1, manifest.input.height, manifest.input.width, 3), np.uint8)
    seconds = min(_seconds(partial(run, blank)) for _ in range(5))
    executor = ThreadPoolExecutor(1)
    return Batcher(
        run,
        max_batch=MAX_BATCH,
        max_waiting=MAX_WAITING,
        executor=executor,
        seconds_per_image=seconds,
        observe=lambda images, seconds: None,
    )


def _seconds(action: partial[npt.NDArray[np.float32]]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _worker(base: Path, bundle: Path, listener: socket.socket) -> None:
    config = uvicorn.Config(create_app(base, bundle), log_level="warning", access_log=False, lifespan="off")
    server = uvicorn.Server(config)

    server.run(sockets=[listener])


@contextlib.contextmanager
def serve_bare(base: Path, bundle: Path, *, workers: int) -> Iterator[int]:
    """Run the bare app in `workers` processes on one loopback socket and yield its port."""
    # With the protocol named, asyncio switches Nagle's algorithm off, as it does for servers that bind by themselves.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    port = int(listener.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_worker, args=(base, bundle, listener)) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                break
            time.sleep(0.1)
        yield port
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(10)
        listener.close()
