"""Many deployments in one predictor: sessions on demand, within a bound of memory, and the contract of a swap."""

import asyncio
import gc
import logging
import platform
import shutil
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from adapt.documents.patch import make_patch
from adapt.documents.soup import default_soup, make_soup
from deploy.runtime import Bundle
from service.metrics import Metrics
from service.prediction.catalog import read_catalog
from service.prediction.loading import LoadedSoup, Loader, NotReady, Outdated
from service.prediction.predictor import DEFAULT, STARTUP_SECONDS, Predictor
from service.settings import Settings
from service.store.database import Database
from service.store.migrate import upgrade
from service.store.registry import Registry
from service.store.transactions import UnknownDeployment, UnknownVersion
from training.images import to_input

ROOM = 3  # sessions of the base set `tiny` that fit into the cache


class Site:
    """A registry, and one predictor that looks at it when a test says so."""

    def __init__(self, home: Path, bases: Path, *, room: float = ROOM) -> None:
        self.catalog = read_catalog(bases, check_files=False)
        base = self.catalog["tiny"]
        folder = base.bundle(home)
        assert folder is not None
        self.bundle = Bundle.open(folder)
        size_mb = (room + 0.5) * self.bundle.session_bytes / 1e6
        self.settings = Settings(home=home, bases=bases, session_cache_mb=size_mb, heartbeat_seconds=0.001)
        self.database = Database(f"sqlite:///{home / 'registry.db'}")
        upgrade(self.database)
        self.registry = Registry(self.database)
        self.counted = CollectorRegistry()
        self.predictor = Predictor(self.settings, self.catalog, self.registry, Metrics(self.counted))
        self.make(DEFAULT)

    def make(self, *names: str, base_set: str = "tiny") -> None:
        for name in names:
            self.registry.ensure_deployment(name, default_soup(self.catalog[base_set].manifest))

    def dial(self, name: str, first: float, **changes: Any) -> int:
        """Make a new version, told from others by its coefficients, and return its number."""
        found = self.registry.deployment(name)
        manifest = self.catalog[found.base_set].manifest
        values = (first, 1 - first, *(0.0,) * (len(manifest.ingredients) - 2))
        soup = make_soup(manifest, dict(zip(manifest.ingredient_names, values, strict=True)))
        return self.registry.dial(name, soup.model_copy(update=changes)).version

    def count(self, metric: str, name: str) -> float:
        return self.counted.get_sample_value(f"saucier_{metric}", {"deployment": name}) or 0.0

    def held(self) -> set[str]:
        """The deployments that have a session."""
        return {row.name for row in self.registry.deployments() if self.count("sessions", row.name)}

    def reported(self) -> dict[str, int]:
        """The versions that the predictor says it serves."""
        (worker,) = self.registry.workers(stale_seconds=60)
        return worker.loaded

    def run(self, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a test on a loop, with `default` loaded."""

        async def whole() -> None:
            await self.predictor.refresh()
            assert self.predictor.is_ready
            try:
                await test()
            finally:
                await self.predictor.stop()

        asyncio.run(whole())


@pytest.fixture
def site(prebuilt_bases: Path, tmp_path: Path) -> Iterator[Site]:
    """A site with room for `default` and two sessions more."""
    return Site(tmp_path, prebuilt_bases)


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


async def check_answers(site: Site, loaded: LoadedSoup, pictures: np.ndarray) -> None:
    """Compare with a session that was built from the bundle for this soup alone."""
    folder = loaded.base.bundle(site.settings.home)
    assert folder is not None
    expected = Bundle.open(folder).session(loaded.soup.coefficients, bn_mode=loaded.soup.bn_mode)
    logits = await loaded.batcher.submit(list(pictures))
    np.testing.assert_allclose(logits, expected.run(to_input(pictures)), atol=1e-5)


def test_probes_say_ready_once_all_predictors_of_the_machine_are(site: Site) -> None:
    def report(worker: str, host: str, loaded: dict[str, int]) -> None:
        site.registry.beat_worker(worker, pid=1, host=host, provider=None, loaded=loaded)

    async def scenario() -> None:
        report("beside", platform.node(), {})
        report("elsewhere", "another-machine", {})
        await site.predictor.refresh()
        assert site.predictor.is_ready
        assert not site.predictor.are_all_ready  # the next connection may go to the one beside
        report("beside", platform.node(), {DEFAULT: 1})
        await site.predictor.refresh()
        assert site.predictor.are_all_ready
        report("beside", platform.node(), {})  # it takes no connection until it is ready again
        await site.predictor.refresh()
        assert site.predictor.are_all_ready
        await site.predictor.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("missing", ["tiny-ln", "tiny"])
def test_a_start_waits_for_no_bundle_but_says_so(
    missing: str, prebuilt_bases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bases = shutil.copytree(prebuilt_bases, tmp_path / "bases")
    site = Site(tmp_path, bases)
    shutil.rmtree(bases / missing / "bundle")

    async def start() -> bool:
        try:
            await asyncio.wait_for(site.predictor.start(), STARTUP_SECONDS / 2)
            await site.predictor.refresh()
            await site.predictor.refresh()
            return site.predictor.is_ready
        finally:
            await site.predictor.stop()

    with caplog.at_level(logging.INFO, "service.prediction"):
        assert asyncio.run(start()) == (missing != "tiny")  # `default` serves tiny
    assert caplog.text.count("waiting for the adapter to build the serving bundle of tiny\n") == (missing == "tiny")


def test_deployments_that_nobody_asks_for_cost_no_session_and_count_as_rolled_out(site: Site) -> None:
    names = [f"camera-{number}" for number in range(200)]
    site.make(*names)

    async def test() -> None:
        assert site.reported() == dict.fromkeys([*names, DEFAULT], 1)
        assert site.held() == {DEFAULT}
        site.dial(names[7], 0.25)
        await site.predictor.refresh()
        assert site.reported()[names[7]] == 2
        assert site.count("soup_version", names[7]) == 2
        assert site.held() == {DEFAULT}
        loaded = await site.predictor.get(names[7])
        assert loaded.pointer.version == 2
        assert site.held() == {DEFAULT, names[7]}

    site.run(test)


def test_what_was_not_asked_for_the_longest_makes_room(site: Site, pictures: np.ndarray) -> None:
    names = [f"camera-{number}" for number in range(5)]
    site.make(*names)
    for number, name in enumerate(names):
        site.dial(name, number / 10)

    async def test() -> None:
        for name in names[:2]:
            await site.predictor.get(name)
        await site.predictor.get(names[0])  # so that 1 is older
        await site.predictor.get(names[2])
        assert site.held() == {DEFAULT, names[0], names[2]}
        for name in (*names, *names):
            loaded = await site.predictor.get(name)
            assert loaded.soup.coefficients["linf"] == names.index(name) / 10
            await check_answers(site, loaded, pictures)
            assert site.predictor.held_bytes <= site.settings.session_cache_bytes
        assert site.held() == {DEFAULT, *names[-2:]}
        assert site.count("session_evictions_total", names[1]) == 3
        await site.predictor.refresh()
        assert site.count("session_hits_total", names[0]) + site.count("session_misses_total", names[0]) == 4
        assert site.count("session_bytes", names[4]) == site.bundle.session_bytes

    site.run(test)


def test_default_stays_whatever_the_bound(prebuilt_bases: Path, tmp_path: Path) -> None:
    site = Site(tmp_path, prebuilt_bases, room=0)
    site.make("one", "two")

    async def test() -> None:
        for name in ("one", "two", "one"):
            await site.predictor.get(name)
            assert site.held() == {DEFAULT, name}
        site.dial(DEFAULT, 0.5)
        await site.predictor.refresh()
        assert (await site.predictor.get(DEFAULT)).pointer.version == 2
        await site.predictor.get("two")
        assert site.held() == {DEFAULT, "two"}
        assert site.count("sessions", DEFAULT) == 1
        assert site.count("session_misses_total", DEFAULT) == 0

    site.run(test)


def test_concurrent_first_requests_build_once(site: Site) -> None:
    site.make("one", "two")

    async def test() -> None:
        found = await asyncio.gather(*(site.predictor.get(name) for name in ("one", "two") * 10))
        assert len({id(loaded) for loaded in found}) == 2
        assert site.count("swap_seconds_count", "one") == site.count("swap_seconds_count", "two") == 1
        assert site.count("session_misses_total", "one") == 10

    site.run(test)


def test_one_who_goes_away_takes_nothing_from_the_others(site: Site) -> None:
    site.make("one")

    async def test() -> None:
        impatient, patient = (asyncio.create_task(site.predictor.get("one")) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        assert (await patient).pointer.name == "one"
        assert impatient.cancelled()
        assert site.count("swap_seconds_count", "one") == 1

    site.run(test)


def test_request_keeps_its_evicted_session_and_nobody_else_does(site: Site, pictures: np.ndarray) -> None:
    names = ["one", "two", "three", "four"]
    site.make(*names)
    site.dial("one", 0.75)

    async def test() -> None:
        loaded = await site.predictor.get("one")
        for name in names[1:]:
            await site.predictor.get(name)
        assert "one" not in site.held()
        await check_answers(site, loaded, pictures)
        session = weakref.ref(loaded.session)
        del loaded
        gc.collect()
        assert session() is None

    site.run(test)


def test_swap_of_a_session_in_use_lets_nobody_wait_and_nobody_slip_back(site: Site, pictures: np.ndarray) -> None:
    site.make("one")

    async def test() -> None:
        await site.predictor.get("one")
        site.dial("one", 0.5)
        swap = asyncio.create_task(site.predictor.refresh())
        seen = []
        while not swap.done():
            seen.append((await site.predictor.get("one")).pointer.version)
            await asyncio.sleep(0)
        assert seen == sorted(seen)
        assert set(seen) <= {1, 2}
        assert seen[0] == 1
        assert site.reported()["one"] == 2
        await check_answers(site, await site.predictor.get("one"), pictures)
        assert (await site.predictor.get("one")).pointer.version == 2
        assert site.count("session_misses_total", "one") == 1
        assert site.count("sessions", "one") == 1

    site.run(test)


def test_promotion_during_the_first_build_is_served_to_the_next_request(site: Site) -> None:
    site.make("one")

    async def test() -> None:
        first = asyncio.create_task(site.predictor.get("one"))
        await asyncio.sleep(0)
        site.dial("one", 0.5)
        await site.predictor.refresh()
        assert site.reported()["one"] == 2
        assert (await site.predictor.get("one")).pointer.version == 2
        assert (await first).pointer.version == 1
        assert (await site.predictor.get("one")).pointer.version == 2
        assert site.count("sessions", "one") == 1

    site.run(test)


def test_any_stored_version_can_be_asked_for(site: Site, pictures: np.ndarray) -> None:
    site.make("one")
    for first in (0.25, 0.5):
        site.dial("one", first)

    async def test() -> None:
        for version in (1, 2, 3, 1):
            loaded = await site.predictor.get("one", version)
            assert loaded.pointer.version == version
            await check_answers(site, loaded, pictures)
        assert site.predictor.held_bytes <= site.settings.session_cache_bytes
        assert (await site.predictor.get("one")).pointer.version == 3
        assert site.count("soup_version", "one") == 3
        with pytest.raises(UnknownVersion):
            await site.predictor.get("one", 4)
        with pytest.raises(UnknownDeployment):
            await site.predictor.get("none", 1)

    site.run(test)


def test_base_sets_share_the_cache(site: Site, pictures: np.ndarray) -> None:
    site.make("plain")
    site.make("transformer", "other", base_set="tiny-ln")

    async def test() -> None:
        for _ in range(2):
            for name in ("plain", "transformer", "other"):
                loaded = await site.predictor.get(name)
                assert loaded.base.manifest.name == ("tiny" if name == "plain" else "tiny-ln")
                await check_answers(site, loaded, pictures)
        assert site.held() == {DEFAULT, "other"}  # the transformer's graph is larger: one of them is two of the others
        assert site.predictor.held_bytes <= site.settings.session_cache_bytes

    site.run(test)


@pytest.mark.parametrize("is_building", [False, True])
def test_deleted_deployment_leaves_nothing(site: Site, is_building: bool) -> None:
    site.make("one")
    site.dial("one", 0.5)

    async def test() -> None:
        waiting = [asyncio.create_task(site.predictor.get("one", version)) for version in (None, 1)]
        if is_building:
            await asyncio.sleep(0)
        else:
            await asyncio.gather(*waiting)
        await site.predictor.refresh()
        site.registry.delete_deployment("one")
        await site.predictor.refresh()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert site.predictor.held_bytes == site.bundle.session_bytes
        assert site.count("sessions", "one") == 0
        assert "one" not in site.reported()
        with pytest.raises(UnknownDeployment):
            await site.predictor.get("one")
        site.make("one")
        assert (await site.predictor.get("one")).pointer.version == 1

    site.run(test)


def test_version_that_cannot_be_loaded_costs_one_try_and_leaves_others_alone(
    site: Site, pictures: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    site.make("cold", "warm")
    broken = make_patch({"none.such": np.zeros(1, np.float32)}, rungs=["head"])

    async def test() -> None:
        before = await site.predictor.get("warm")
        for name in ("cold", "warm"):
            site.dial(name, 0.5, patch=broken)
        await site.predictor.refresh()
        await site.predictor.refresh()
        assert site.reported()["warm"] == 1
        assert await site.predictor.get("warm") is before
        for _ in range(3):
            with pytest.raises(NotReady, match="version 2 of deployment 'cold' cannot be loaded"):
                await site.predictor.get("cold")
        assert site.count("swap_failures_total", "cold") == site.count("swap_failures_total", "warm") == 1
        assert sum("none.such" in record.getMessage() for record in caplog.records) == 2
        await check_answers(site, await site.predictor.get(DEFAULT), pictures)
        site.registry.point_at("cold", 1)
        await site.predictor.refresh()
        assert (await site.predictor.get("cold")).pointer.version == 1

    site.run(test)


def test_version_made_for_other_weights_is_named_so(site: Site) -> None:
    site.make("one")
    site.dial("one", 0.5, base_digest="0" * 64)
    site.dial("one", 0.25)

    async def test() -> None:
        for _ in range(2):
            with pytest.raises(Outdated, match="expected 'tiny' with digest"):
                await site.predictor.get("one", 2)
        assert (await site.predictor.get("one")).pointer.version == 3

    site.run(test)


def test_first_requests_take_turns(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that many at once hold no more memory than the bound and one session."""
    names = [f"camera-{number}" for number in range(8)]
    site.make(*names)
    running, most = 0, 0
    load = Loader.load

    def counted(self: Loader, *args: Any) -> LoadedSoup:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return load(self, *args)
        finally:
            running -= 1

    async def test() -> None:
        monkeypatch.setattr(Loader, "load", counted)
        found = await asyncio.gather(*(site.predictor.get(name) for name in names))
        assert [loaded.pointer.name for loaded in found] == names
        assert most == 1
        assert site.predictor.held_bytes <= site.settings.session_cache_bytes

    site.run(test)
