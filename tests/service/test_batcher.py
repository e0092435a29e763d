"""The micro-batcher: order, grouping, errors, no waiting."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from service.prediction.batcher import Batcher, Busy, Logits

SLOW, FAST = 1.0, 1e-6  # seconds per image: in a thread, or on the loop


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def picture(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, dtype=np.uint8)


class Net:
    """Says which value each picture has, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: np.ndarray) -> Logits:
        self.batches.append(len(images))
        if (images == 13).any():
            raise RuntimeError("thirteen")
        return images[:, 0, 0, :2].astype(np.float32)


def make(net: Any, executor: Executor, seconds: float, **kwargs: Any) -> Batcher:
    observe = kwargs.pop("observe", lambda count, seconds: None)
    waiting = kwargs.pop("max_waiting", 100)
    return Batcher(net, max_batch=4, max_waiting=waiting, executor=executor, seconds_per_image=seconds, observe=observe)


@pytest.mark.parametrize("seconds", [SLOW, FAST])
def test_everyone_gets_their_own_answer(executor: Executor, seconds: float) -> None:
    net = Net()

    async def run() -> list[Logits]:
        batcher = make(net, executor, seconds)
        requests = [[picture(10 * first + offset) for offset in range(first)] for first in range(1, 8)]
        return list(await asyncio.gather(*(batcher.submit(request) for request in requests)))

    for first, logits in enumerate(asyncio.run(run()), start=1):
        assert logits[:, 0].tolist() == [10 * first + offset for offset in range(first)]
    assert max(net.batches) <= 4
    assert len(net.batches) < 7 + 2 + 1  # requests share batches


def test_request_larger_than_a_batch_keeps_its_order(executor: Executor) -> None:
    net = Net()
    logits = asyncio.run(make(net, executor, FAST).submit([picture(value) for value in range(10)]))
    assert logits[:, 0].tolist() == list(range(10))
    assert net.batches == [4, 4, 2]


def test_single_request_does_not_wait_for_company(executor: Executor) -> None:
    net = Net()

    async def run() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        counter = asyncio.create_task(count())
        await make(net, executor, FAST).submit([picture(1)])
        counter.cancel()
        return turns

    assert asyncio.run(run()) <= 3


@pytest.mark.parametrize("seconds", [SLOW, FAST])
def test_failure_reaches_its_batch_and_the_batcher_goes_on(executor: Executor, seconds: float) -> None:
    net = Net()

    async def run() -> Logits:
        batcher = make(net, executor, seconds)
        with pytest.raises(RuntimeError, match="thirteen"):
            await batcher.submit([picture(13)])
        return await batcher.submit([picture(7)])

    assert asyncio.run(run())[0, 0] == 7


def test_loop_stays_free_while_a_slow_network_runs(executor: Executor) -> None:
    def slow(images: np.ndarray) -> Logits:
        import time

        time.sleep(0.2)
        return images[:, 0, 0, :2].astype(np.float32)

    async def run() -> int:
        batcher = make(slow, executor, SLOW)
        task = asyncio.create_task(batcher.submit([picture(1)]))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(run()) >= 5


def test_given_up_request_does_not_disturb_the_others(executor: Executor) -> None:
    net = Net()

    async def run() -> Logits:
        batcher = make(net, executor, SLOW)
        gone = asyncio.create_task(batcher.submit([picture(1)]))
        stays = asyncio.create_task(batcher.submit([picture(2)]))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(run())[0, 0] == 2


def test_images_of_a_request_that_was_given_up_do_not_run(executor: Executor) -> None:
    net = Net()

    async def run() -> Logits:
        batcher = make(net, executor, FAST)
        gone = [asyncio.create_task(batcher.submit([picture(1)] * count)) for count in (3, 10)]
        stays = asyncio.create_task(batcher.submit([picture(2)]))
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        return await stays

    assert asyncio.run(run())[0, 0] == 2
    assert net.batches == [1]


def test_too_many_waiting_images_are_refused(executor: Executor) -> None:
    net = Net()

    async def run() -> list[Any]:
        batcher = make(net, executor, FAST, max_waiting=6)
        found = await asyncio.gather(*(batcher.submit([picture(1)] * 3) for _ in range(4)), return_exceptions=True)
        return [*found, await batcher.submit([picture(1)] * 30)]  # alone, any number is taken

    *found, alone = asyncio.run(run())
    assert [isinstance(answer, Busy) for answer in found] == [False, False, True, True]
    assert len(alone) == 30


def test_small_request_does_not_wait_for_all_of_a_large_one(executor: Executor) -> None:
    net = Net()

    async def run() -> int:
        batcher = make(net, executor, FAST)
        large = asyncio.create_task(batcher.submit([picture(1)] * 40))
        await asyncio.sleep(0)
        await batcher.submit([picture(2)])
        ran = len(net.batches)
        await large
        return ran

    assert asyncio.run(run()) <= 3
