"""The same network behind other model servers, each as its documentation has it.

All answer with the same JSON. They read files as the service does, or, with `PLAIN`, as most services do: Pillow
decodes the whole picture, converts, resizes and crops it. Where and what to serve stands in the environment, as two of
them start processes of their own.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deploy.runtime import Bundle
from service.demo.server import free_port
from service.http.answers import confidences, predictions_json
from service.settings import PACKAGE_ROOT
from training.images import CROP_FRACTION, Pixels, load_image, to_input
from training.manifest import InputSpec, read_manifest

BASE, BUNDLE, PORT, WORKERS = "RIVAL_BASE", "RIVAL_BUNDLE", "RIVAL_PORT", "RIVAL_WORKERS"
GRPC_PORT, PLAIN = "RIVAL_GRPC_PORT", "RIVAL_PLAIN"
MAX_BATCH = 32
START_SECONDS = 90
STOP_SECONDS = 20
RIVALS = ("fastapi", "litserve", "bentoml", "mlserver")
READY = {"mlserver": "/v2/health/ready"}  # of the others: /readyz


class Network:
    """A base set's default soup."""

    def __init__(self) -> None:
        self._manifest = read_manifest(Path(os.environ[BASE]), check_files=False)
        self._session = Bundle.open(Path(os.environ[BUNDLE])).session(self._manifest.default_coefficients)

    def decode(self, file: bytes) -> Pixels:
        """Return the pixels of a file as the network wants them."""
        if os.environ.get(PLAIN):
            return plain_pixels(file, self._manifest.input)
        return load_image(file, self._manifest.input).pixels

    def answer(self, images: list[Pixels]) -> list[bytes]:
        """Return the answers to images, as JSON."""
        probabilities = confidences(self._session.run(to_input(np.stack(images))), self._manifest.default_temperature)
        names = self._manifest.class_names
        return [predictions_json("default", 1, row[None], names, top_k=3) for row in probabilities]


def plain_pixels(file: bytes, spec: InputSpec) -> Pixels:
    """Return a file's pixels (spec.height, spec.width, 3) as torchvision's and timm's evaluation transforms have them.

    Nothing is turned, checked, or reduced first.
    """
    with Image.open(io.BytesIO(file)) as opened:
        image = opened.convert("RGB")
    if spec.resize == "stretch":
        return np.asarray(image.resize((spec.width, spec.height), Image.Resampling.BICUBIC))
    scale = max(spec.height / image.height, spec.width / image.width) / CROP_FRACTION
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - spec.width) // 2, (resized.height - spec.height) // 2
    return np.asarray(resized.crop((left, top, left + spec.width, top + spec.height)))


def fastapi_app() -> Any:
    """Return a FastAPI app whose endpoint runs the network in the thread pool, one image at a time."""
    from fastapi import Body, FastAPI, Response

    network, app = Network(), FastAPI()

    def predict(file: bytes = Body(media_type="image/jpeg")) -> Response:
        return Response(network.answer([network.decode(file)])[0], media_type="application/json")

    app.post("/predict")(predict)
    app.get("/readyz")(lambda: {})
    return app


def run_fastapi() -> None:
    """Serve the FastAPI app with uvicorn."""
    import uvicorn

    uvicorn.run(
        "benchmarks.serving.rivals:fastapi_app",
        factory=True,
        host="127.0.0.1",
        port=int(os.environ[PORT]),
        workers=int(os.environ[WORKERS]),
        log_level="warning",
        access_log=False,
    )


@contextlib.contextmanager
def serve_rival(
    name: str,
    folder: Path,
    base: Path,
    bundle: Path,
    *,
    workers: int,
    mlserver: Path | None = None,
    is_plain: bool = False,
) -> Iterator[int]:
    """Run a rival until the block ends and yield its port.

    Args:
        name: one of `RIVALS`.
        folder: gets its log.
        base: base set.
        bundle: its serving bundle.
        workers: processes.
        mlserver: interpreter of the environment that MLServer is installed in.
        is_plain: it reads files by `plain_pixels`.

    Raises:
        RuntimeError: it ended or was not ready in time; the message has the end of its log.
    """
    port = free_port()
    environment = os.environ | {
        BASE: str(base.absolute()),
        BUNDLE: str(bundle.absolute()),
        PORT: str(port),
        GRPC_PORT: str(free_port()),
        WORKERS: str(workers),
        PLAIN: "1" if is_plain else "",
        "OMP_NUM_THREADS": "1",
        "BENTOML_HOME": str(folder / "rival-bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": str(PACKAGE_ROOT),
    }
    where = ["--host", "127.0.0.1", "--port", str(port)]
    command = {
        "fastapi": [sys.executable, "-m", "benchmarks.serving.rivals"],
        "litserve": [sys.executable, "-m", "benchmarks.serving.lit"],
        "mlserver": [str(mlserver), "-m", "benchmarks.serving.mls"],
        "bentoml": [sys.executable, "-m", "bentoml", "serve", "benchmarks.serving.batchable:Batchable", *where],
    }[name]
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=PACKAGE_ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}{READY.get(name, '/readyz')}", log)
            yield port
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):  # LitServe leaves processes of its own behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{log.stem} is not ready (exit code {process.poll()}); its log ends with:\n{tail}")


if __name__ == "__main__":
    run_fastapi()
