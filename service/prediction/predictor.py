"""One predictor process: which soups it serves, and how a new one takes over without a request noticing."""

import asyncio
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from adapt.documents.soup import Soup
from deploy.runtime import SoupSession
from service.metrics import Metrics
from service.prediction.catalog import Base
from service.prediction.confidences import Confidences
from service.prediction.loading import LoadedSoup, Loader, NotReady, Outdated
from service.prediction.reservoir import Reservoirs
from service.prediction.sessions import Sessions
from service.settings import Settings
from service.store.registry import Pointer, Registry, Snapshot
from service.store.tables import new_id
from service.store.transactions import UnknownVersion

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

DEFAULT = "default"  # the deployment that always exists, and whose session is always held

BUSY_POLL_SECONDS = 0.1  # while a job runs, a promotion is near; and until all predictors are ready
STARTUP_SECONDS = 20  # how long a start waits before it takes requests that it must answer with 503


class Predictor:
    """Serves the current soup of every deployment in the registry, and older versions to those who ask for one.

    Lives on one event loop. For each deployment it knows the version that a request accepted now is served with, and
    reports that. A deployment that nobody asked for has no session: it moves to a new version by taking note of it, and
    its next request has the session built. Where there is one, the new one is built beside it and warmed up before it
    serves. Either way, once all workers report a version, no request accepted later is served with an older one.

    Rollouts do not wait for a worker that has not reported for `stale_seconds`. So from then on it is not ready, until
    it has reported again and followed what the registry says after that. One that cannot read the registry serves on.
    """

    def __init__(self, settings: Settings, catalog: Mapping[str, Base], registry: Registry, metrics: Metrics) -> None:
        self.id = new_id()
        self.catalog = catalog
        self._settings, self._registry, self._metrics = settings, registry, metrics
        self._loader = Loader(settings, catalog, registry, metrics)
        self._sessions = Sessions(self._loader, max_bytes=settings.session_cache_bytes)
        self._served: dict[str, Pointer] = {}
        self.deployments: frozenset[str] | None = None  # all that exist, once that is known
        self._is_ready = self._are_all_ready = False
        self._lock = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._reported: tuple[float, dict[str, int]] = (-math.inf, {})
        self._returned = self._followed = -math.inf  # when it reported after a silence, and last looked at the registry
        self._is_cut_off = False  # the registry could not be read, and the next report is still to come
        self._control = ThreadPoolExecutor(1, "control")  # its own, so that no request holds up reports
        self.reservoirs = Reservoirs(settings)
        self.confidences = Confidences()

    @property
    def is_loaded(self) -> bool:
        """The current soup of `default` has been loaded and has run one inference."""
        return self._is_ready

    @property
    def is_ready(self) -> bool:
        """It has been loaded, and this worker keeps up with the registry."""
        return self._is_ready and not self.is_stale

    @property
    def is_stale(self) -> bool:
        """Rollouts may have ended without this worker, so what it serves may be an older version."""
        return not self._is_cut_off and (self._is_silent or self._followed <= self._returned)

    @property
    def _is_silent(self) -> bool:
        """The registry takes this worker for one that is gone."""
        return time.monotonic() - self._reported[0] > self._settings.stale_seconds

    @property
    def are_all_ready(self) -> bool:
        """Every predictor of this machine has been ready: what probes ask for, as any may get the next connection.

        Stays true from then on while this one keeps up: a predictor that is started again takes no connection before
        it is ready.
        """
        return self._are_all_ready and not self.is_stale

    @property
    def held_bytes(self) -> int:
        """About how much memory the sessions keep that are held."""
        return self._sessions.num_bytes

    async def start(self) -> None:
        """Report to the registry, load the current soup of `default`, and keep up with the registry from now on.

        The report comes before the first look at the registry: a promotion in between sees this worker and waits for
        it. Waits a while for the first load, so that a worker that is started again takes no request too early; not for
        the adapter to build the serving bundle, which takes longer: probes and clients are told so meanwhile.
        """
        self._metrics.ready.labels(DEFAULT).set(0)
        with suppress(DBAPIError):
            await self._report(force=True)
        self.reservoirs.start()
        self._tasks = [asyncio.create_task(self._poll()), asyncio.create_task(self._beat())]
        with suppress(DBAPIError):
            if await asyncio.to_thread(self._loader.waits_for_bundle, DEFAULT):
                return
        deadline = time.monotonic() + STARTUP_SECONDS
        while not self.is_ready and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Stop looking at the registry and leave the list of workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sessions.close()
        await self.reservoirs.stop()
        with suppress(DBAPIError):
            await self._in_control(self._registry.remove_worker, self.id)
        self._control.shutdown(wait=False)
        self._loader.close()

    async def get(self, name: str, version: int | None = None) -> LoadedSoup:
        """Return what a request accepted now is served with.

        Args:
            name: the deployment.
            version: one of its stored versions; None for the current one.

        Raises:
            UnknownDeployment, UnknownVersion: there is no such thing (service.store.transactions).
            NotReady: it cannot serve yet.
            Outdated: the version was made for other weights.
        """
        pointer = self._served.get(name) or await self.pointer(name)
        if version is not None:
            pointer = pointer._replace(version=version)
        return self._sessions.get(pointer) or await self._load(pointer)

    async def pointer(self, name: str) -> Pointer:
        """Return which version of a deployment a request accepted now is served with; builds nothing.

        Raises:
            UnknownDeployment: there is none of that name (service.store.transactions).
            NotReady: it cannot serve yet.
        """
        if name not in self._served:
            await asyncio.to_thread(self._registry.deployment, name)  # made a moment ago by another worker?
            await self.refresh()
        if name not in self._served:
            raise NotReady(f"deployment {name!r} is not ready yet")
        return self._served[name]

    def is_current(self, pointer: Pointer) -> bool:
        """Say if requests accepted now are served with this version."""
        return self._served.get(pointer.name) == pointer

    def build(self, base: Base, soup: Soup) -> SoupSession:
        """Build a session that nobody is served with, to see if the soup can be: see `Loader.build`."""
        return self._loader.build(base, soup)

    def has_statistics(self, base: Base) -> bool:
        """Say if channel statistics of training are known, which images without labels can move."""
        return self._loader.has_statistics(base)

    async def _load(self, pointer: Pointer) -> LoadedSoup:
        loaded = await self._sessions.load(pointer)
        loaded.metrics.misses.inc()
        if self.is_current(pointer):
            self._metrics.serve(pointer.name, pointer.version, loaded.soup.coefficients)
        return loaded

    async def _poll(self) -> None:
        is_well = True
        while True:
            pause = self._settings.poll_seconds
            try:
                if await self.refresh() or not self.are_all_ready:
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

    async def _beat(self) -> None:
        """Report also while a swap takes long, so that rollouts wait for this worker."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            with suppress(DBAPIError):  # `_poll` tells
                await self._report()

    async def refresh(self) -> bool:
        """Serve what the registry points at now and report it; returns True while jobs are queued or running."""
        async with self._lock:
            if self._is_silent:
                with suppress(DBAPIError):  # it may be readable
                    await self._report(force=True)
            start = time.monotonic()
            snapshot = await self._snapshot()
            self.deployments = frozenset(pointer.name for pointer in snapshot.deployments)
            await self._follow({pointer.name: pointer for pointer in snapshot.deployments})
            self._followed = start
            self._is_cut_off = self._is_cut_off and self._is_silent
            if not self._is_ready and DEFAULT in self._served:
                self._is_ready = True
                self._metrics.ready.labels(DEFAULT).set(1)
                logger.info("ready, serving %d deployments, default at %d", len(self._served), self._version(DEFAULT))
            await self.reservoirs.refresh(
                {
                    name: (plan, self.catalog[self._served[name].base_set].manifest.input)
                    for name, plan in snapshot.reservoirs.items()
                    if name in self._served
                }
            )
            self.confidences.refresh(snapshot.watches)
            self._sessions.count_hits()
            self._metrics.expect(snapshot.active_jobs)
            await self._report()
            if self._is_ready and not self._are_all_ready:
                self._are_all_ready = await self._in_control(self._have_all_loaded)
            return bool(snapshot.active_jobs)

    async def _snapshot(self) -> Snapshot:
        try:
            return await self._in_control(self._registry.snapshot)
        except DBAPIError:
            self._is_cut_off = True
            raise

    async def _in_control(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Run in the thread that no request uses."""
        return await asyncio.get_running_loop().run_in_executor(self._control, partial(function, *args, **kwargs))

    def _have_all_loaded(self) -> bool:
        """Say if all predictors that live on this machine serve `default`; runs in a thread."""
        workers = self._registry.workers(stale_seconds=self._settings.stale_seconds)
        return all(DEFAULT in worker.loaded for worker in workers if worker.host == platform.node())

    def _version(self, name: str) -> int:
        return self._served[name].version

    async def _follow(self, wanted: Mapping[str, Pointer]) -> None:
        """Move to what the registry points at; a deployment stays where it is if that cannot be served."""
        for name in self._served.keys() - wanted.keys():
            self._sessions.forget(self._served.pop(name).uid)
        moved = [pointer for name, pointer in wanted.items() if self._served.get(name) != pointer]
        warm = [pointer for pointer in moved if self._is_warm(pointer.name)]
        if cold := [pointer for pointer in moved if not self._is_warm(pointer.name)]:
            for pointer, soup in await self._in_control(self._look_at, cold):
                self._serve(pointer, soup)
        for pointer in warm:
            await self._swap(pointer)

    def _is_warm(self, name: str) -> bool:
        return name == DEFAULT or self._served.get(name) in self._sessions

    def _look_at(self, pointers: Iterable[Pointer]) -> list[tuple[Pointer, Soup | None]]:
        """Return those that can be served, with the soup of deployments that move on; runs in a thread."""
        found = []
        for pointer in pointers:
            with suppress(NotReady, UnknownVersion):
                self._loader.find_base(pointer)
                is_new = pointer.name not in self._served  # hundreds of them at the start
                found.append((pointer, None if is_new else self._registry.soup(pointer.name, pointer.version)))
        return found

    async def _swap(self, pointer: Pointer) -> None:
        """Build what `pointer` says beside what is served, and then serve it."""
        if pointer.name == DEFAULT:
            self._sessions.pin(pointer)
        try:
            loaded = self._sessions.get(pointer) or await self._sessions.load(pointer, at_once=True)
        except (NotReady, Outdated, UnknownVersion):
            self._sessions.unpin(pointer)
        else:
            self._serve(pointer, loaded.soup)

    def _serve(self, pointer: Pointer, soup: Soup | None) -> None:
        """Serve requests that are accepted from now on with another version."""
        before, self._served[pointer.name] = self._served.get(pointer.name), pointer
        if before is not None:
            self._sessions.unpin(before)
            self._sessions.drop(before)
            if before.uid != pointer.uid:  # deleted and made again
                self._sessions.forget(before.uid)
        if soup is not None:
            self._metrics.serve(pointer.name, pointer.version, soup.coefficients)

    async def _report(self, *, force: bool = False) -> None:
        """Tell the registry that this worker lives and what it serves, when due or when it changed."""
        versions = {name: pointer.version for name, pointer in self._served.items()}
        start = time.monotonic()
        last, reported = self._reported
        if not force and versions == reported and start - last < self._settings.heartbeat_seconds:
            return
        confidences = self.confidences.take()
        try:
            await self._in_control(
                self._registry.beat_worker,
                self.id,
                pid=os.getpid(),
                host=platform.node(),
                provider=self._sessions.provider,
                loaded=versions,
                confidences=confidences,
            )
        except DBAPIError:
            self.confidences.give_back(confidences)
            raise
        if time.monotonic() - last > self._settings.stale_seconds:
            self._returned = time.monotonic()
        self._reported = (start, versions)
