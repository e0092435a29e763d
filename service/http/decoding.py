"""Image files of a request to network input, off the event loop where that pays, and one request beside the other."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from service.http.inflight import Share
from service.http.problems import Problem, invalid
from service.settings import Settings
from training.images import ImageError, Loaded, Pixels, count_pixels, load_image
from training.manifest import InputSpec

INLINE_BYTES = 16_384  # of all files together: a thread would cost more than it saves
INLINE_PIXELS = 65_536  # of one image: small files can be large pictures
SLICE_SECONDS = 0.02  # that a request's images are decoded before it is the turn of another request's
LARGE_PIXELS = 16_000_000  # of one image: it can take a second, in which no slice ends


def _threads(count: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, name)


@dataclass(frozen=True)
class Threads:
    """The threads of one process that work on what clients send, so that the default ones are free for the registry."""

    ordinary: ThreadPoolExecutor = field(default_factory=lambda: _threads(2, "decoding"))
    large: ThreadPoolExecutor = field(default_factory=lambda: _threads(1, "large"))  # requests with a large image
    uploads: ThreadPoolExecutor = field(default_factory=lambda: _threads(1, "uploads"))  # images of adaptations
    intake: ThreadPoolExecutor = field(default_factory=lambda: _threads(4, "intake"))  # stores them, and waits for that

    def close(self) -> None:
        """Drop what waits, and let the threads go when they are done with what they have."""
        for executor in (self.ordinary, self.large, self.uploads, self.intake):
            executor.shutdown(wait=False, cancel_futures=True)


class PixelBudget:
    """How many pixels the images of one request may still have."""

    def __init__(self, settings: Settings) -> None:
        self._limit = self._left = settings.max_request_pixels

    def spend(self, pixels: int) -> None:
        """Take an image of this number of pixels into account.

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
    spend: Callable[[int], None] | None = None,
    max_pixels: int | None = None,
) -> Iterator[Loaded]:
    """Yield the pictures of image files at the network's size, one at a time, as only one should be in memory.

    Args:
        files: the files, each decoded when its picture is asked for.
        spec: of the network.
        settings: the limits.
        field: name of the parts of the request.
        spend: told the pixels of each image once it is decoded; by default a `PixelBudget` of these images alone.
        max_pixels: most pixels of one image, where that is fewer than the settings say.

    Raises:
        Problem: 422 or 413 naming the file's index.
    """
    spend = spend or PixelBudget(settings).spend
    for index, file in enumerate(files):
        try:
            loaded = load_image(file, spec, max_pixels=max_pixels or settings.max_image_pixels)
        except ImageError as error:
            raise _rejected(f"{field}[{index}]", error) from error
        spend(loaded.num_pixels)
        yield loaded


def _rejected(item: str, error: ImageError) -> Problem:
    problem = invalid(item, str(error), status=413 if error.kind == "too_large" else 422)
    problem.reason = "pixels" if error.kind == "too_large" else "undecodable"
    return problem


def reserve_pixels(files: Iterable[bytes], settings: Settings, share: Share) -> int:
    """Take the pixels of image files into account before any is decoded; return those of the largest image.

    Raises:
        Problem: 413 more than a request may have; 503 others have too many.
    """
    counts = [count_pixels(file) for file in files]
    allowed = [count for count in counts if count <= settings.max_image_pixels]  # decoding refuses the others
    PixelBudget(settings).spend(sum(allowed))
    share.add_pixels(sum(allowed))
    return max(allowed, default=0)


async def decode_prepared(
    files: Sequence[bytes], spec: InputSpec, settings: Settings, threads: Threads, share: Share
) -> list[Pixels]:
    """Return the images at the network's input size. If it is cancelled, no further image is decoded.

    Args:
        files: of the images.
        spec: of the network.
        settings: the limits.
        threads: those of the process.
        share: of the request, which will hold the images' pixels.

    Raises:
        Problem: see `load_in_order` and `reserve_pixels`.
    """
    if sum(map(len, files)) <= INLINE_BYTES:
        try:
            small = min(INLINE_PIXELS, settings.max_image_pixels)
            return [loaded.pixels for loaded in load_in_order(files, spec, settings, max_pixels=small)]
        except Problem as problem:
            if problem.reason != "pixels":
                raise
    loop = asyncio.get_running_loop()
    decoding = _Decoding(files, spec, settings, share)
    while not await loop.run_in_executor(threads.large if decoding.is_large else threads.ordinary, decoding.go_on):
        pass
    return decoding.done


class _Decoding:
    """The images of one request, decoded slice by slice in whichever thread is free."""

    def __init__(self, files: Sequence[bytes], spec: InputSpec, settings: Settings, share: Share) -> None:
        self._files, self._settings, self._share = files, settings, share
        self._rest = load_in_order(files, spec, settings)
        self._is_reserved = self.is_large = False
        self.done: list[Pixels] = []

    def go_on(self) -> bool:
        """Decode the next images; say if that were all. Runs in a thread."""
        if not self._is_reserved:
            self.is_large = reserve_pixels(self._files, self._settings, self._share) > LARGE_PIXELS
            self._is_reserved = True
            if self.is_large:
                return False
        end = time.monotonic() + SLICE_SECONDS
        while len(self.done) < len(self._files):
            self.done.append(next(self._rest).pixels)
            if time.monotonic() > end:
                break
        return len(self.done) == len(self._files)
