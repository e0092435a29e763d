"""Image files of a request to network input, off the event loop where that pays."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor

from service.http.problems import Problem, invalid
from service.settings import Settings
from training.images import ImageError, Loaded, Pixels, load_image
from training.manifest import InputSpec

INLINE_BYTES = 16_384  # of all files together: a thread would cost more than it saves
INLINE_PIXELS = 65_536  # of one image: small files can be large pictures


class PixelBudget:
    """How many pixels the images of one request may still have."""

    def __init__(self, settings: Settings) -> None:
        self._limit = self._left = settings.max_request_pixels

    def spend(self, pixels: int) -> None:
        """Take an image of so many pixels into account.

        Raises:
            Problem: 413, it is more than was left.
        """
        self._left -= pixels
        if self._left < 0:
            raise Problem(413, f"expected at most {self._limit} pixels in one request", reason="pixels")


def load_in_order(
    files: Iterable[bytes],
    spec: InputSpec,
    settings: Settings,
    *,
    field: str = "images",
    budget: PixelBudget | None = None,
    max_pixels: int | None = None,
) -> Iterator[Loaded]:
    """Yield the pictures of image files at the network's size, one at a time, as only one should be in memory.

    Args:
        files: the files, each decoded when its picture is asked for.
        spec: of the network.
        settings: the limits.
        field: what the parts of the request are named.
        budget: shared by all images of the request; None where these are all.
        max_pixels: most pixels of one image, where that is fewer than the settings say.

    Raises:
        Problem: 422 or 413 naming the file's index.
    """
    budget = budget or PixelBudget(settings)
    for index, file in enumerate(files):
        try:
            loaded = load_image(file, spec, max_pixels=max_pixels or settings.max_image_pixels)
        except ImageError as error:
            raise _rejected(f"{field}[{index}]", error) from error
        budget.spend(loaded.num_pixels)
        yield loaded


def _rejected(item: str, error: ImageError) -> Problem:
    problem = invalid(item, str(error), status=413 if error.kind == "too_large" else 422)
    problem.reason = "pixels" if error.kind == "too_large" else "undecodable"
    return problem


async def decode_prepared(
    files: Sequence[bytes], spec: InputSpec, settings: Settings, executor: Executor
) -> list[Pixels]:
    """Return the images at the network's input size.

    Raises:
        Problem: see `load_in_order`.
    """
    if sum(map(len, files)) <= INLINE_BYTES:
        try:
            return _prepared(files, spec, settings, min(INLINE_PIXELS, settings.max_image_pixels))
        except Problem as problem:
            if problem.reason != "pixels":
                raise
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(executor, _prepared, files, spec, settings, settings.max_image_pixels)


def _prepared(files: Sequence[bytes], spec: InputSpec, settings: Settings, max_pixels: int) -> list[Pixels]:
    return [loaded.pixels for loaded in load_in_order(files, spec, settings, max_pixels=max_pixels)]
