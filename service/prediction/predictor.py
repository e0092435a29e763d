"""One predictor process: the soups it serves, and how a new one takes over without a request noticing."""

import asyncio
import logging
import os
import platform
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from sqlalchemy.exc import DBAPIError

from adapt.soup import Soup, check_soup
from deploy.runtime import Bundle, SoupSession
from service.metrics import DeploymentMetrics, Metrics
from service.prediction.batcher import Batcher, Logits
from service.prediction.catalog import Base
from service.prediction.reservoir import Reservoirs
from service.settings import Settings
from service.store.registry import Pointer, Registry
from service.store.tables import new_id
from training.images import to_input

logger = logging.getLogger(__name__)

DEFAULT = "default"  # the deployment that always exists

BUSY_POLL_SECONDS = 0.1  # while a job runs, a promotion is near
RETRY_SECONDS = 5  # pause before a soup that did not load is tried again
STARTUP_SECONDS = 20  # how long a start waits before it takes requests that it must answer with 503
WARM_UP_RUNS = 3


class NotReady(RuntimeError):
    """It cannot be served yet, but will be soon."""


@dataclass(frozen=True)
class LoadedSoup:
    """A soup that serves: an immutable whole, so that a request keeps the one it was accepted with."""

    pointer: Pointer
    soup: Soup
    base: Base
    session: SoupSession
    batcher: Batcher
    metrics: DeploymentMetrics


class Predictor:
    """Serves the current soup of every deployment in the registry.

    Lives on one event loop. Sessions are built in threads, beside those that serve; a swap replaces one reference.
    """

    def __init__(self, settings: Settings, catalog: Mapping[str, Base], registry: Registry, metrics: Metrics) -> None:
        self.id = new_id()
        self.catalog = catalog
        self._settings, self._registry, self._metrics = settings, registry, metrics
        self._loaded: dict[str, LoadedSoup] = {}
        self._bundles: dict[str, Bundle] = {}
        self._failed: dict[tuple[str, int], float] = {}
        self._is_ready = False
        self._lock = asyncio.Lock()
        self._poll_task: asyncio.Task[None] | None = None
        self._reported: tuple[float, dict[str, int]] = (0.0, {})
        self._inference = ThreadPoolExecutor(1, "inference")
        self.reservoirs = Reservoirs(settings)

    @property
    def is_ready(self) -> bool:
        """The current soups have been loaded and have run one inference each."""
        return self._is_ready

    async def start(self) -> None:
        """Report to the registry, load the current soups, and keep up with the registry from now on.

        The report comes before the first look at the registry: a promotion in between sees this worker and waits for
        it. Waits a while for the first load, so that a worker that is started again takes no request too early.
        """
        with suppress(DBAPIError):
            await self._report(force=True)
        self.reservoirs.start()
        self._poll_task = asyncio.create_task(self._poll())
        deadline = time.monotonic() + STARTUP_SECONDS
        while not self._is_ready and time.monotonic() < deadline and self._has_bundles():
            await asyncio.sleep(0.02)

    def _has_bundles(self) -> bool:
        return all(base.bundle(self._settings.home) for base in self.catalog.values())

    async def stop(self) -> None:
        """Stop looking at the registry and leave the list of workers."""
        if self._poll_task is not None:
            self._poll_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._poll_task
        await self.reservoirs.stop()
        with suppress(DBAPIError):
            await asyncio.to_thread(self._registry.remove_worker, self.id)
        self._inference.shutdown(wait=False)

    async def get(self, name: str) -> LoadedSoup:
        """Return the soup that a request accepted now is served with.

        Raises:
            UnknownDeployment: there is none of that name (service.store.registry).
            NotReady: it cannot serve yet.
        """
        if (loaded := self._loaded.get(name)) is not None:
            return loaded
        await asyncio.to_thread(self._registry.deployment, name)  # made a moment ago by another worker?
        await self.refresh()
        if name not in self._loaded:
            raise NotReady(f"deployment {name!r} is not ready yet")
        return self._loaded[name]

    def is_known(self, name: str) -> bool:
        """Say if a deployment is served here: only such names become values of labels."""
        return name in self._loaded

    async def _poll(self) -> None:
        is_well = True
        while True:
            pause = self._settings.poll_seconds
            try:
                if await self.refresh():
                    pause = min(BUSY_POLL_SECONDS, pause)
                is_well = True
            except DBAPIError as error:
                if is_well:
                    cause = " ".join(str(error.orig).split())
                    logger.warning("the registry cannot be used, serving on: %s", cause)
                is_well = False
            except Exception:
                logger.exception("unexpected error while looking for new soups, serving on")
            await asyncio.sleep(pause)

    async def refresh(self) -> bool:
        """Serve what the registry points at now and report it; returns True while jobs are queued or running."""
        async with self._lock:
            snapshot = await asyncio.to_thread(self._registry.snapshot)
            wanted = {pointer.name: pointer for pointer in snapshot.deployments}
            for name in self._loaded.keys() - wanted.keys():
                del self._loaded[name]
            for pointer in wanted.values():
                loaded = self._loaded.get(pointer.name)
                if loaded is None or loaded.pointer != pointer:
                    await self._swap(pointer)
            if not self._is_ready and DEFAULT in self._loaded:
                self._is_ready = True
                logger.info("ready, serving %s", {name: pointer.version for name, pointer in wanted.items()})
            await self.reservoirs.refresh(
                {
                    name: (plan, self._loaded[name].base.manifest.input)
                    for name, plan in snapshot.reservoirs.items()
                    if name in self._loaded
                }
            )
            await self._report()
            return snapshot.has_active_jobs

    async def _swap(self, pointer: Pointer) -> None:
        """Load what `pointer` says and serve it; what is served stays if that fails."""
        key = (pointer.uid, pointer.version)
        if time.monotonic() < self._failed.get(key, 0):
            return
        try:
            loaded = await asyncio.to_thread(self._load, pointer)
        except NotReady:
            return  # the adapter builds the bundle
        except (ValueError, OSError, KeyError) as error:
            self._failed[key] = time.monotonic() + RETRY_SECONDS
            self._metrics.swap_failures.labels(pointer.name).inc()
            logger.error("%s: version %d cannot be loaded: %s", pointer.name, pointer.version, error)
            return
        self._loaded[pointer.name] = loaded
        self._metrics.serve(pointer.name, pointer.version, loaded.soup.coefficients)

    def _load(self, pointer: Pointer) -> LoadedSoup:
        """Build, check and warm up what serves a pointer."""
        start = time.perf_counter()
        base = self.catalog.get(pointer.base_set)
        if base is None:
            raise ValueError(f"expected the base set {pointer.base_set!r}, found {sorted(self.catalog)}")
        soup = self._registry.soup(pointer.name, pointer.version)
        session = self.build(base, soup)
        run = partial(_run, session)
        metrics = self._metrics.of(pointer.name)
        blank = np.zeros((1, base.manifest.input.height, base.manifest.input.width, 3), dtype=np.uint8)
        batcher = Batcher(
            run,
            max_batch=self._settings.max_batch,
            executor=self._inference,
            seconds_per_image=min(_time(run, blank) for _ in range(WARM_UP_RUNS)),
            observe=partial(_observe, metrics),
        )
        metrics.swap.observe(time.perf_counter() - start)
        return LoadedSoup(pointer, soup, base, session, batcher, metrics)

    def build(self, base: Base, soup: Soup) -> SoupSession:
        """Build a session for a soup and check it on the bundle's probe images; takes a while, runs in any thread.

        Raises:
            SoupError: the soup was made for other weights.
            UnusableSoup: its logits are not finite, or its patch does not fit.
            BundleError: the bundle is corrupt.
            NotReady: there is no bundle yet.
        """
        check_soup(soup, base.manifest)
        return self._bundle(base).session(
            soup.coefficients,
            bn_mode=soup.bn_mode,
            patch=None if soup.patch is None else soup.patch.tensors(),
            device=self._settings.device,
        )

    def has_statistics(self, base: Base) -> bool:
        """Say if channel statistics of training are known, which images without labels can move."""
        return base.manifest.moments is not None or any(slot.is_variance for slot in self._bundle(base).info.tensors)

    def _bundle(self, base: Base) -> Bundle:
        digest = base.manifest.digest
        if digest not in self._bundles:
            folder = base.bundle(self._settings.home)
            if folder is None:
                raise NotReady("the serving bundle of the base set is not ready yet")
            # The digests were compared before the workers were started; every session is checked in any case.
            self._bundles[digest] = Bundle.open(folder, verify=False, base_digest=digest)
        return self._bundles[digest]

    async def _report(self, *, force: bool = False) -> None:
        """Tell the registry that this worker lives and what it serves, when due or when it changed."""
        versions = {name: loaded.pointer.version for name, loaded in self._loaded.items()}
        last, reported = self._reported
        if not force and versions == reported and time.monotonic() - last < self._settings.heartbeat_seconds:
            return
        provider = next((loaded.session.provider for loaded in self._loaded.values()), None)
        await asyncio.to_thread(
            self._registry.beat_worker,
            self.id,
            pid=os.getpid(),
            host=platform.node(),
            provider=provider,
            loaded=versions,
        )
        self._reported = (time.monotonic(), versions)


def _run(session: SoupSession, images: npt.NDArray[np.uint8]) -> Logits:
    return session.run(to_input(images))


def _observe(metrics: DeploymentMetrics, num_images: int, seconds: float) -> None:
    metrics.inference.observe(seconds)
    metrics.batch_size.observe(num_images)


def _time(run: partial[Logits], images: npt.NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start
