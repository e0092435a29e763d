"""The ceiling: decoder, session and JSON in a loop in as many processes, with no HTTP and no waiting."""

import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtime import Bundle
from service.http.answers import confidences, predictions_json
from training.images import load_image, to_input
from training.manifest import read_manifest


class Raw:
    """Processes that classify on demand, through pipes."""

    def __init__(self, pipes: Sequence["Connection[Any, Any]"]) -> None:
        self._pipes = pipes

    def measure(self, batch: int, seconds: float) -> float:
        """Return images per second of all processes together.

        Args:
            batch: images that run through the network at once.
            seconds: how long.
        """
        for pipe in self._pipes:
            pipe.send((batch, seconds))
        return float(sum(pipe.recv() for pipe in self._pipes))


def _worker(base: Path, bundle: Path, files: list[bytes], pipe: "Connection[Any, Any]") -> None:
    manifest = read_manifest(base, check_files=False)
    session = Bundle.open(bundle).session(manifest.default_coefficients)
    names, temperature = manifest.class_names, manifest.default_temperature
    with contextlib.suppress(EOFError):
        while True:
            batch, seconds = pipe.recv()
            done, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < seconds:
                some = [files[(done + index) % len(files)] for index in range(batch)]
                pixels = np.stack([load_image(file, manifest.input).pixels for file in some])
                for row in confidences(session.run(to_input(pixels)), temperature):
                    predictions_json("default", 1, row[None], names, top_k=3)
                done += batch
            pipe.send(done / passed)


@contextlib.contextmanager
def start_raw(base: Path, bundle: Path, files: list[bytes], *, workers: int) -> Iterator[Raw]:
    """Run that many processes until the block ends."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(workers)]
    processes = [context.Process(target=_worker, args=(base, bundle, files, there)) for _, there in pairs]
    for process, (_, there) in zip(processes, pairs, strict=True):
        process.start()
        there.close()
    try:
        yield Raw([here for here, _ in pairs])
    finally:
        for here, _ in pairs:
            here.close()
        for process in processes:
            process.join(10)
            process.kill()
