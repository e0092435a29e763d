"""Photographs, then drawings: the bundled base set `photos` meets pictures of a kind it has never seen, and adapts.

Serves `bases/photos` with `bentoml serve` and two workers, posts labelled drawings to `/adapt` while clients keep
asking `/predict`, and measures other drawings before and after, over HTTP. The drawings are made by code
(examples/sketches.py) unless a folder of pictures is given. `python -m examples.demo_photos` or `make demo-photos`.
"""

import io
import signal
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from examples.sketches import draw
from service.demo.performance import perform
from service.demo.story import Pictures
from service.settings import PACKAGE_ROOT
from training.cli import Command, Result, run
from training.data import balanced_indices, find_files
from training.documents import file_sha256
from training.images import decode
from training.manifest import Manifest, read_manifest

BASE_SET = PACKAGE_ROOT / "bases" / "photos"
NUM_SUPPORT, NUM_TEST = 70, 210
MIN_TEST = 50  # fewer pictures of one's own would show next to nothing
MOST_PIXELS = 512  # of a picture's longer side: a client that has larger ones sends them smaller
CLIENT_PAUSE = 0.5  # seconds between a client's requests: the machine is to be used, not full


class DemoPhotos(Command):
    """Serve a classifier of photographs, show it drawings, adapt it to them, and show what that did.

    Takes two to three minutes on two cores. Exit code 1 if accuracy did not rise or a request failed.

    Example: python -m examples.demo_photos --photos PICTURES --out runs/mine
    """

    name: ClassVar[str] = "demo-photos"
    out: Path = Field(default=Path("runs/demo-photos"), description="folder for demo.png and demo.json")
    photos: Path | None = Field(
        default=None,
        description="pictures to show instead of drawings: one folder per class, of dog, elephant, giraffe, guitar, "
        "horse, house, person",
    )
    clients: int = Field(default=3, ge=1, description="clients that keep asking /predict while the service adapts")

    def execute(self) -> Result:
        """Serve, adapt, show."""
        manifest = read_manifest(BASE_SET)
        if self.photos is None:
            pictures = draw_pictures(manifest.class_names, seed=self.seed)
            title = "Unseen drawings, and what a service that has only seen photographs answers"
        else:
            pictures = find_pictures(self.photos, manifest, seed=self.seed)
            title = f"Unseen pictures of {self.photos.resolve().name}, and what the service answers"
        return perform(
            pictures, lambda _: BASE_SET, out=self.out, title=title, clients=self.clients, pause=CLIENT_PAUSE
        )


def draw_pictures(class_names: tuple[str, ...], *, seed: int) -> Pictures:
    """Return drawings by code, each class in turn: no two alike, 70 for support, 210 for the test."""
    generator = np.random.default_rng(seed)
    classes = np.arange(NUM_SUPPORT + NUM_TEST, dtype=np.int64) % len(class_names)
    files = [_jpeg(draw(class_names[label], generator)) for label in classes]
    support = np.arange(NUM_SUPPORT)
    return Pictures(class_names, classes, files, support, np.arange(NUM_SUPPORT, len(files)))


def find_pictures(folder: Path, manifest: Manifest, *, seed: int) -> Pictures:
    """Return pictures of a folder, 70 for support and at most 210 others for the test, as evenly drawn as there are.

    Large ones are made smaller, as a client would that does not want to send more than the network looks at.

    Args:
        folder: `<class>/<file>`; every class is one of the base set's.
        manifest: of the base set.
        seed: of the choice.

    Raises:
        ValueError: no such folder, an unknown class, too few pictures, or a file that is no image.
    """
    found = find_files(folder, manifest.input, manifest.class_names)
    _, first = np.unique([file_sha256(file) for file in found.files], return_index=True)
    found = found.subset(np.sort(first))  # a copy could be adapted to and tested on
    if len(found) < NUM_SUPPORT + MIN_TEST:
        wanted = f"expected at least {NUM_SUPPORT + MIN_TEST} pictures, {NUM_SUPPORT} to adapt to and others to test on"
        raise ValueError(f"{folder}: {wanted}, found {len(found)}")
    support = balanced_indices(found.labels, NUM_SUPPORT, seed=seed)
    others = np.setdiff1d(np.arange(len(found)), support)
    test = others[balanced_indices(found.labels[others], NUM_TEST, seed=seed)]
    chosen = found.subset(np.concatenate([support, test]))
    files = [_read(file) for file in chosen.files]
    positions = np.arange(len(files))
    return Pictures(manifest.class_names, chosen.labels, files, positions[:NUM_SUPPORT], positions[NUM_SUPPORT:])


def _read(file: Path) -> bytes:
    try:
        image = Image.fromarray(decode(file.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    image.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
    return _jpeg(image)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the server when asked to stop, too
    sys.exit(run([DemoPhotos], prog="python -m examples.demo_photos", description="Photographs, then drawings."))
