"""The same network as a BentoML service with `batchable=True`, as its documentation has it."""

import io
import json
import os
from typing import Any

import bentoml
import PIL.Image

from benchmarks.serving.rivals import MAX_BATCH, WORKERS, Network


@bentoml.service(workers=int(os.environ.get(WORKERS, "1")), logging={"access": {"enabled": False}})
class Batchable:
    """Batches requests of one image."""

    def __init__(self) -> None:
        self._network = Network()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, route="/predict")  # type: ignore[untyped-decorator]
    def predict(self, images: list[PIL.Image.Image]) -> list[dict[str, Any]]:
        """Classify images."""
        pixels = [self._network.decode(_file(image)) for image in images]
        return [json.loads(answer) for answer in self._network.answer(pixels)]


def _file(image: PIL.Image.Image) -> bytes:
    """Return the image as the file it came in, which BentoML keeps open behind it."""
    file = getattr(image, "fp", None)
    if file is not None:
        file.seek(0)
        return bytes(file.read())
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()
