"""A micro-batcher on the event loop: what waits while a batch runs is the next batch. Nobody waits on purpose."""

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


class _Waiting(NamedTuple, Generic[Scalar]):
    images: Sequence[npt.NDArray[Scalar]]
    answer: "asyncio.Future[Logits]"


class Batcher(Generic[Scalar]):
    """Runs one network on the images of concurrent requests.

    One instance belongs to one network, one event loop, and one kind of images: pixels, or what the network takes.

    Args:
        run: a batch to logits (B, K); called with 1 <= B <= max_batch, never twice at once.
        max_batch: most images per run.
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
        executor: Executor,
        seconds_per_image: float,
        observe: Callable[[int, float], Any],
        queued: Callable[[int], Any] = lambda _: None,
    ) -> None:
        self._run: Callable[[npt.NDArray[Scalar]], Logits] = run
        self._executor, self._observe, self._queued = executor, observe, queued
        self._max_batch = max_batch
        self._inline_images = int(INLINE_SECONDS / max(seconds_per_image, 1e-9))
        self._waiting: deque[_Waiting[Scalar]] = deque()
        self._runner: asyncio.Task[None] | None = None

    async def submit(self, images: Sequence[npt.NDArray[Scalar]]) -> Logits:
        """Return the logits (n, K) of n >= 1 images of the input size, in order."""
        loop = asyncio.get_running_loop()
        answers = []
        self._queued(len(images))
        for start in range(0, len(images), self._max_batch):
            answer: asyncio.Future[Logits] = loop.create_future()
            self._waiting.append(_Waiting(images[start : start + self._max_batch], answer))
            answers.append(answer)
        if self._runner is None:
            self._runner = loop.create_task(self._drain())
        if len(answers) == 1:
            return await answers[0]
        return np.concatenate(await asyncio.gather(*answers))

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(0)  # requests that arrived in the same turn of the loop come along
                batch = self._next_batch()
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
        batch = [self._waiting.popleft()]
        size = len(batch[0].images)
        while self._waiting and size + len(self._waiting[0].images) <= self._max_batch:
            size += len(self._waiting[0].images)
            batch.append(self._waiting.popleft())
        self._queued(-size)
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
