"""When a move of a deployment counts as rolled out: every live worker says that it follows this very move."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import OperationalError

from service.http.adaptation import Adaptation
from service.http.decoding import Threads
from service.metrics import Metrics
from service.prediction.loading import Loader
from service.prediction.predictor import DEFAULT, Predictor
from service.store.jobs import JobQueue
from tests.service.test_sessions import Site


class Pair:
    """Two predictors on one registry: one that answers, and one beside it whose builds a test can hold up."""

    def __init__(self, home: Path, bases: Path) -> None:
        self.site = Site(home, bases)
        self.registry = self.site.registry
        self.may_build, self.builds = threading.Event(), threading.Event()
        self.may_build.set()
        counted = Metrics(CollectorRegistry())
        self.beside = Predictor(self.site.settings, self.site.catalog, self.registry, counted)
        self.beside._loader = self.beside._sessions._loader = Held(self, counted)
        jobs: Any = JobQueue(self.site.database)
        intake: Any = None
        self.adaptation = Adaptation(self.site.settings, self.registry, jobs, intake, self.site.predictor, Threads())

    def hold(self) -> None:
        """Hold up what the predictor beside builds from now on."""
        self.may_build.clear()
        self.builds.clear()

    async def is_rolled_out(self, name: str = DEFAULT) -> bool:
        return await self.adaptation.is_rolled_out(self.registry.move(name))

    def run(self, test: Callable[[], Any]) -> None:
        async def whole() -> None:
            await self.beside.refresh()
            try:
                await test()
            finally:
                self.may_build.set()
                await self.beside.stop()

        self.site.run(whole)


class Held(Loader):
    """A loader that waits before it builds until a test lets it."""

    def __init__(self, pair: Pair, metrics: Metrics) -> None:
        super().__init__(pair.site.settings, pair.site.catalog, pair.registry, metrics)
        self._pair = pair

    def load(self, plan: Any) -> Any:
        self._pair.builds.set()
        assert self._pair.may_build.wait(20)
        return super().load(plan)


@pytest.fixture
def pair(prebuilt_bases: Path, tmp_path: Path) -> Pair:
    return Pair(tmp_path, prebuilt_bases)


async def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_version_that_was_gone_back_to_is_another_move(pair: Pair) -> None:
    """A worker still reports version 1 while it builds version 2: that is not the version 1 that was gone back to."""

    async def test() -> None:
        assert await pair.is_rolled_out()
        pair.hold()
        pair.site.dial(DEFAULT, 0.5)
        swap = asyncio.create_task(pair.beside.refresh())
        await until(pair.builds.is_set)
        pair.registry.point_at(DEFAULT, 1)
        assert not await pair.is_rolled_out()  # it would have served version 2 after the answer
        pair.may_build.set()
        seen = set()
        while not swap.done():
            seen.add((await pair.beside.pointer(DEFAULT)).version)
            await asyncio.sleep(0)
        seen.add((await pair.beside.pointer(DEFAULT)).version)
        assert seen == {1}  # what is no longer the latest move is not put in service
        assert not await pair.is_rolled_out()
        await pair.beside.refresh()
        assert await pair.is_rolled_out()

    pair.run(test)


def test_deployment_made_again_is_another_one(pair: Pair) -> None:
    pair.site.make("one")

    async def test() -> None:
        await pair.beside.get("one")
        assert await pair.is_rolled_out("one")
        pair.registry.delete_deployment("one")
        pair.site.make("one")
        assert not await pair.is_rolled_out("one")
        await pair.beside.refresh()
        assert await pair.is_rolled_out("one")

    pair.run(test)


def test_later_move_counts_as_well_and_a_deployment_that_is_gone_holds_nobody_up(pair: Pair) -> None:
    pair.site.make("one")

    async def test() -> None:
        pair.site.dial("one", 0.5)
        earlier = pair.registry.move("one")
        pair.registry.point_at("one", 1)
        await pair.beside.refresh()
        assert await pair.adaptation.is_rolled_out(earlier)
        pair.site.dial("one", 0.25)
        late = pair.registry.move("one")
        assert not await pair.adaptation.is_rolled_out(late)
        pair.registry.delete_deployment("one")
        assert await pair.adaptation.is_rolled_out(late)

    pair.run(test)


def test_worker_of_an_earlier_version_of_the_code_counts_as_late(pair: Pair) -> None:
    async def test() -> None:
        assert await pair.is_rolled_out()
        pair.registry.beat_worker("old", pid=1, host="h", provider=None, loaded={DEFAULT: 1})
        assert not await pair.is_rolled_out()

    pair.run(test)


def test_heartbeats_go_on_while_sessions_are_built(pair: Pair) -> None:
    async def test() -> None:
        await pair.beside.start()
        pair.hold()
        pair.site.dial(DEFAULT, 0.5)
        await until(pair.builds.is_set)
        held_at = time.time()
        await until(lambda: {worker.id for worker in beats(held_at)} >= {pair.beside.id})
        assert (await pair.beside.pointer(DEFAULT)).version == 1

    def beats(since: float) -> list[Any]:
        return [one for one in pair.registry.workers(stale_seconds=60) if one.heartbeat_at > since]

    pair.run(test)


def test_registry_that_fails_before_a_swap_leaves_no_session_pinned(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        pair.site.dial(DEFAULT, 0.5)

        def fail(_: object) -> bool:
            raise OperationalError("SELECT 1", {}, Exception("gone"))

        with monkeypatch.context() as patch:
            patch.setattr(pair.registry, "is_latest", fail)
            with pytest.raises(OperationalError):
                await pair.beside.refresh()
        assert {pointer.version for pointer in pair.beside._sessions._pinned} == {1}
        await pair.beside.refresh()
        assert {pointer.version for pointer in pair.beside._sessions._pinned} == {2}

    pair.run(test)
