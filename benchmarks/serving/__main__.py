"""The predict path against a bare Starlette app with the same decoder, batcher and session, in one interleaved run."""

import asyncio
import base64
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from benchmarks.machine import machine
from benchmarks.pictures import jpegs, photographs
from benchmarks.serving.bare import serve_bare
from benchmarks.serving.forms import forms_text, measure_forms
from benchmarks.serving.raw import Raw, start_raw
from benchmarks.serving.rivals import MAX_BATCH, RIVALS, serve_rival
from benchmarks.serving.searching import measure_searching, searching_text
from deploy.bundle import build_bundle
from deploy.runtime import Bundle
from service.demo.client import Load, hammer, multipart, post_request
from service.demo.server import serve
from service.http.answers import confidences, predictions_json
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.images import load_image, to_input
from training.manifest import Manifest, read_manifest
from training.parameters import Positional

NUM_IMAGES = 64


class Photo(NamedTuple):
    """A kind of photograph to send."""

    height: int
    width: int
    quality: int
    num_files: int  # different ones
    aim: float  # times the requests of the next best server that the service is meant to answer


PHOTOS = {
    "12 MP": Photo(3000, 4000, 90, 4, 4.0),
    "1.2 MP": Photo(960, 1280, 85, 16, 1.0),
    "500 px": Photo(375, 500, 85, 32, 1.0),
}
SMALL = "input size"  # of pictures that have the network's


class Serving(Command):
    """Measure `/predict` on one image per request at several concurrencies, beside a bare app.

    Example: python -m benchmarks.serving bases/cifar10-small --rounds 5

    Photographs: python -m benchmarks.serving --photos --rivals fastapi litserve bentoml --concurrency 1 8

    During a search: python -m benchmarks.serving --search --seconds 4

    Forms alone, in a second: python -m benchmarks.serving --forms --rounds 15
    """

    name: ClassVar[str] = "serving"
    base: Annotated[Path | None, Positional] = Field(
        default=None, description="base set; default: bases/cifar10-small, with --photos bases/photos"
    )
    photos: bool = Field(
        default=False,
        description="send JPEGs of 12 and 1.2 megapixels and of 500 pixels, which rivals leave to Pillow; exit code 1 "
        "unless the service answers 4 times as many of the first as the next best, and more of the others",
    )
    forms: bool = Field(
        default=False, description="measure no server, but how long forms of many parts take to be taken apart"
    )
    search: bool = Field(default=False, description="measure the service alone, calm and while a search runs")
    threads: int = Field(default=2, ge=1, description="of the search, with --search")
    concurrency: tuple[int, ...] = Field(default=(1, 8, 32), description="kept-alive connections")
    rounds: int = Field(
        default=5, ge=1, description="interleaved rounds per concurrency, after one that does not count"
    )
    seconds: float = Field(default=2.0, gt=0, description="length of one measurement")
    workers: int = Field(default=2, ge=1, description="processes of each server")
    rivals: tuple[str, ...] = Field(default=(), description=f"other servers beside them: {', '.join(RIVALS)}")
    mlserver: Path | None = Field(
        default=None,
        description="Python of an environment with mlserver, uvloop<0.22, onnxruntime, pillow, safetensors",
    )

    def execute(self) -> Result:
        """Measure."""
        if self.forms:
            rows = measure_forms(rounds=self.rounds, seed=self.seed)
            data: dict[str, Any] = {"forms": rows, "rounds": self.rounds, "machine": machine()}
            return Result(data, f"{forms_text(rows)}\n{data['machine']}")
        if self.search:
            base = self.base or Path("bases/cifar10-small")
            rows = measure_searching(
                base,
                workers=self.workers,
                threads=self.threads,
                rounds=self.rounds,
                seconds=self.seconds,
                seed=self.seed,
            )
            data = {"searching": rows, "rounds": self.rounds, "threads": self.threads, "machine": machine()}
            return Result(data, f"{searching_text(rows)}\n{data['machine']}")
        if unknown := sorted(set(self.rivals) - set(RIVALS)):
            raise ValueError(f"rivals: expected some of {', '.join(RIVALS)}, got {unknown[0]!r}")
        if ("mlserver" in self.rivals) != (self.mlserver is not None):
            raise ValueError("expected --mlserver PYTHON together with the rival mlserver, got one of them")
        base = self.base or Path("bases/photos" if self.photos else "bases/cifar10-small")
        manifest = read_manifest(base)
        pictures = self._pictures(manifest)
        with tempfile.TemporaryDirectory(prefix="saucier-") as work:
            folder = Path(work)
            bundle = build_bundle(base, folder / "bundles")
            costs = {kind: _stage_costs(bundle, manifest, files) for kind, files in pictures.items()}
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(serve(folder, base, workers=self.workers, bundles=bundle.parent))
                bare_port = stack.enter_context(serve_bare(base, bundle, workers=self.workers))
                ports = {"bare": bare_port, "service": server.port, "service_multipart": server.port}
                options: dict[str, Any] = {"workers": self.workers, "mlserver": self.mlserver, "is_plain": self.photos}
                for name in self.rivals:
                    ports[name] = stack.enter_context(serve_rival(name, folder, base, bundle, **options))
                rows = []
                for kind, files in pictures.items():
                    with start_raw(base, bundle, files, workers=self.workers) as raw:
                        found = [self._measure(concurrency, ports, files, raw) for concurrency in self.concurrency]
                    rows += [{"pictures": kind} | row for row in found]
        data = {
            "rows": rows,
            "stage_us": costs,
            "workers": self.workers,
            "rounds": self.rounds,
            "machine": machine(),
        }
        is_met = True
        if self.photos and self.rivals:
            data["ahead"] = ahead(rows, self.rivals)
            is_met = all(min(ratios.values()) >= PHOTOS[kind].aim for kind, ratios in data["ahead"].items())
        return Result(data, _text(data), EXIT_DONE if is_met else EXIT_CLAIM_FAILED)

    def _pictures(self, manifest: Manifest) -> dict[str, list[bytes]]:
        """Return the files to send, by kind."""
        if not self.photos:
            return {SMALL: jpegs(NUM_IMAGES, manifest.input.height, manifest.input.width, seed=self.seed)}
        return {
            kind: photographs(photo.num_files, photo.height, photo.width, seed=self.seed, quality=photo.quality)
            for kind, photo in PHOTOS.items()
        }

    def _measure(self, concurrency: int, ports: dict[str, int], files: list[bytes], raw: Raw) -> dict[str, Any]:
        requests = {}
        for name, port in ports.items():
            bodies = [BODIES.get(name, _file)(file) for file in files]
            requests[name] = [post_request(PATHS.get(name, "/predict"), *body, port) for body in bodies]
        loads: dict[str, list[Load]] = {name: [] for name in requests}
        ceilings = []
        for turn in range(self.rounds + 1):
            ceilings.append(raw.measure(min(concurrency, MAX_BATCH), self.seconds))
            for name, sent in requests.items():
                load = asyncio.run(hammer(ports[name], sent, concurrency=concurrency, seconds=self.seconds))
                if load.failed:
                    raise RuntimeError(f"{name}: {len(load.failed)} requests failed, first: {load.failed[0]}")
                if turn > 0:
                    loads[name].append(load)
        bare = [load.per_second for load in loads["bare"]]
        row: dict[str, Any] = {
            "concurrency": concurrency,
            "raw": {
                "per_second": round(float(np.median(ceilings[1:])), 1),
                "ratio": round(float(np.median(np.divide(ceilings[1:], bare))), 3),
            },
        }
        for name, measured in loads.items():
            row[name] = {
                "per_second": round(float(np.median([load.per_second for load in measured])), 1),
                "p50_ms": round(float(np.median([load.percentile_ms(50) for load in measured])), 2),
                "p99_ms": round(float(np.median([load.percentile_ms(99) for load in measured])), 2),
            }
            against = np.divide([load.per_second for load in measured], bare)
            row[name]["ratio"] = round(float(np.median(against)), 3)
        return row


def ahead(rows: list[dict[str, Any]], rivals: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return how many times the requests of the best rival the service answers, by kind of picture and clients."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        best = max(row[name]["per_second"] for name in rivals)
        found.setdefault(row["pictures"], {})[str(row["concurrency"])] = round(row["service"]["per_second"] / best, 2)
    return found


def _file(file: bytes) -> tuple[bytes, str]:
    return file, "image/jpeg"


def _multipart(file: bytes) -> tuple[bytes, str]:
    return multipart([file])


def _json(file: bytes) -> tuple[bytes, str]:
    return json.dumps({"image": base64.b64encode(file).decode()}).encode(), "application/json"


def _tensor(file: bytes) -> tuple[bytes, str]:
    image = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    return json.dumps({"inputs": [image | {"data": [base64.b64encode(file).decode()]}]}).encode(), "application/json"


# How each server takes an image; all others take the file itself. BentoML takes batchable images as form fields only,
# LitServe reads JSON or forms, MLServer the tensors of the Open Inference Protocol.
BODIES: dict[str, Callable[[bytes], tuple[bytes, str]]] = {
    "service_multipart": _multipart,
    "bentoml": _multipart,
    "litserve": _json,
    "mlserver": _tensor,
}
PATHS = {"mlserver": "/v2/models/network/infer"}


def _stage_costs(bundle: Path, manifest: Manifest, files: list[bytes]) -> dict[str, float]:
    """Return microseconds per request of the work that both servers share, measured alone in this process."""
    session = Bundle.open(bundle).session(manifest.default_coefficients)
    pixels = [load_image(file, manifest.input).pixels for file in files]
    logits = session.run(to_input(np.stack(pixels[:1])))
    probabilities = confidences(logits, 1.0)
    stages: dict[str, Callable[[int], Any]] = {
        "decode": lambda index: load_image(files[index], manifest.input).pixels,
        "session_run": lambda index: session.run(to_input(pixels[index][None])),
        "confidences": lambda index: confidences(logits, 1.0),
        "json": lambda index: predictions_json("default", 1, probabilities, manifest.class_names, top_k=3),
    }
    costs = {}
    for name, stage in stages.items():
        rounds = []
        for _ in range(7):
            start = time.perf_counter()
            for index in range(len(files)):
                stage(index)
            rounds.append((time.perf_counter() - start) / len(files))
        costs[name] = round(float(np.median(rounds)) * 1e6, 1)
    return costs


def _text(data: dict[str, Any]) -> str:
    lines = [
        f"one image per request, {data['workers']} workers, median of {data['rounds']} interleaved rounds",
        data["machine"],
        f"{'clients':>7}  {'server':18} {'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8} {'of bare':>8}",
    ]
    kind = None
    for row in data["rows"]:
        if row["pictures"] != kind:
            kind = row["pictures"]
            lines.append(f"pictures: {kind}")
        for name, cell in row.items():
            if name in ("concurrency", "pictures"):
                continue
            p50, p99 = cell.get("p50_ms", ""), cell.get("p99_ms", "")
            numbers = f"{cell['per_second']:10} {p50:>8} {p99:>8} {cell['ratio']:8.3f}"
            lines.append(f"{row['concurrency']:7}  {name:18} {numbers}")
    for kind, costs in data["stage_us"].items():
        shared = ", ".join(f"{name} {cost:.0f} us" for name, cost in costs.items())
        lines.append(f"work that both share, per request, alone in one process ({kind}): {shared}")
    for kind, ratios in data.get("ahead", {}).items():
        said = ", ".join(f"{ratio} with {clients}" for clients, ratio in ratios.items())
        lines.append(f"requests of the service over those of the next best, {kind}: {said} clients")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run([Serving], prog="python -m benchmarks.serving", description="Speed of the predict path."))
