"""A micro-batcher on the event loop: images that wait while a batch runs are the next batch. Nobody waits on purpose.

A request of more images than a batch waits with one batch of them at a time, so that others get their turn between.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Scalar = TypeVar("Scalar", np.uint8, np.float32)
Logits = npt.NDArray[np.float32]

INLINE_SECONDS = 0.002  # a shorter run costs less on the event loop than the way to a thread and back


class Busy(RuntimeError):
    """Too many images wait for the network already."""


class _Waiting(NamedTuple, Generic[Scalar]):
    images: Sequence[npt.NDArray[Scalar]]
    answer: "asyncio.Future[Logits]"


class Batcher(Generic[Scalar]):
    """Runs one network on the images of concurrent requests.

    One instance belongs to one network, one event loop, and one kind of images: pixels, or what the network takes.

    Args:
        run: a batch to logits (B, K); called with 1 <= B <= max_batch, never twice at once.
        max_batch: most images per run.
        max_waiting: most images that wait.
        executor: where runs go that would hold up the event loop.
        seconds_per_image: what one image takes, as measured; decides where a batch runs.
        observe: called with the number of images and the seconds of each run.
        queued: called with the number of images that begin to wait, or less than 0 when they are taken.
    """

    def __init__(
        self,
        run: Callable[[npt.NDArray[Scalar]], Logits],
        *,
        max_batch: int,
        max_waiting: int,
        executor: Executor,
        seconds_per_image: float,
        observe: Callable[[int, float], Any],
        queued: Callable[[int], Any] = lambda _: None,
    ) -> None:
        self._run: Callable[[npt.NDArray[Scalar]], Logits] = run
        self._executor, self._observe, self._queued = executor, observe, queued
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._inline_images = int(INLINE_SECONDS / max(seconds_per_image, 1e-9))
        self._waiting: deque[_Waiting[Scalar]] = deque()
        self._num_waiting = 0  # images
        self._runner: asyncio.Task[None] | None = None

    async def submit(self, images: Sequence[npt.NDArray[Scalar]]) -> Logits:
        """Return the logits (n, K) of n >= 1 images of the input size, in order.

        Raises:
            Busy: the images of others wait, and with these there would be too many.
        """
        first = images[: self._max_batch]
        if self._num_waiting and self._num_waiting + len(first) > self._max_waiting:
            raise Busy("too many images wait already (SAUCIER_MAX_WAITING_IMAGES); try again in a moment")
        found = [await self._wait(first)]
        for start in range(self._max_batch, len(images), self._max_batch):
            found.append(await self._wait(images[start : start + self._max_batch]))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _wait(self, images: Sequence[npt.NDArray[Scalar]]) -> "asyncio.Future[Logits]":
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Logits] = loop.create_future()
        self._waiting.append(_Waiting(images, answer))
        self._count(len(images))
        if self._runner is None:
            self._runner = loop.create_task(self._drain())
        return answer

    def _count(self, change: int) -> None:
        self._num_waiting += change
        self._queued(change)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(0)  # requests that arrived in the same turn of the loop come along
                batch = self._next_batch()
                if not batch:
                    continue
                try:
                    logits = await self._run_batch([image for waiting in batch for image in waiting.images])
                except Exception as error:
                    for waiting in batch:
                        if not waiting.answer.done():
                            waiting.answer.set_exception(error)
                    continue
                start = 0
                for waiting in batch:
                    end = start + len(waiting.images)
                    if not waiting.answer.done():
                        waiting.answer.set_result(logits[start:end])
                    start = end
        finally:
            self._runner = None

    def _next_batch(self) -> list[_Waiting[Scalar]]:
        """Take the images that run next, without those that nobody waits for any more."""
        batch: list[_Waiting[Scalar]] = []
        size = 0
        while self._waiting and size + len(self._waiting[0].images) <= self._max_batch:
            waiting = self._waiting.popleft()
            self._count(-len(waiting.images))
            if not waiting.answer.done():
                size += len(waiting.images)
                batch.append(waiting)
        return batch

    async def _run_batch(self, images: list[npt.NDArray[Scalar]]) -> Logits:
        start = time.perf_counter()
        stacked = np.stack(images)
        logits: Logits
        if len(images) <= self._inline_images:
            logits = self._run(stacked)
        else:
            logits = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, stacked)
        self._observe(len(images), time.perf_counter() - start)
        return logits
