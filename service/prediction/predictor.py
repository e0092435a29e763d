"""One predictor process: which soups it serves, and how a new one takes over without a request noticing."""

import asyncio
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from adapt.documents.soup import Soup
from deploy.runtime import SoupSession
from service.metrics import Metrics
from service.prediction.catalog import Base
from service.prediction.confidences import Confidences
from service.prediction.freshness import Freshness, Limits
from service.prediction.loading import LoadedSoup, Loader, NotReady, OtherWeights, Outdated
from service.prediction.reservoir import Reservoirs
from service.prediction.sessions import Sessions
from service.settings import Settings
from service.store.database import UNAVAILABLE, cause_of
from service.store.moves import Move, Pointer, Snapshot
from service.store.registry import Registry
from service.store.tables import new_id
from service.store.transactions import UnknownVersion

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

DEFAULT = "default"  # the deployment that always exists, and whose session is always held

BUSY_POLL_SECONDS = 0.1  # while a job runs, a promotion is near; and until all predictors are ready
MAX_LOGGED = 3  # deployments that cannot be served
WHOLE_SECONDS = 60  # between two looks at all deployments, not only at those that events tell of
STARTUP_SECONDS = 20  # how long a start waits before it takes requests that it must answer with 503


class Predictor:
    """Serves the current soup of every deployment in the registry, and older versions to those who ask for one.

    Lives on one event loop. For each deployment it knows the move that a request accepted now is served by, and reports
    that. A deployment that nobody asked for has no session: it moves to a new version by taking note of it, and its
    next request has the session built. If there is one, the new one is built beside it and warmed up, and serves
    unless the deployment has moved on meanwhile. Either way, once all workers report a move, no request accepted later
    is served by an earlier one.

    Rollouts do not wait for a worker that has not reported for `stale_seconds`. So from then on it is not ready, until
    it has reported again and followed what the registry says after that. One that cannot read the registry serves on.
    """

    def __init__(self, settings: Settings, catalog: Mapping[str, Base], registry: Registry, metrics: Metrics) -> None:
        self.id = new_id()
        self.catalog = catalog
        self._settings, self._registry, self._metrics = settings, registry, metrics
        self._loader = Loader(settings, catalog, registry, metrics)
        self._sessions = Sessions(self._loader, max_bytes=settings.session_cache_bytes)
        self._served: dict[str, Move] = {}
        self._of_other_weights: set[Pointer] = set()  # what the registry points at, and cannot be served here
        self.deployments: frozenset[str] | None = None  # all that exist, once that is known
        self._is_ready = self._have_all_been_ready = False
        self._snapshot: Snapshot | None = None
        self._next_whole = 0.0
        self._freshness = Freshness(Limits(settings.stale_seconds, settings.registry_max_age_seconds))
        metrics.saw_registry()
        self._lock, self._report_lock = asyncio.Lock(), asyncio.Lock()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._reported: dict[str, Move] | None = None
        self._control = ThreadPoolExecutor(2, "control")  # its own, so that no request holds up looks and reports
        self.reservoirs = Reservoirs(settings)
        self.confidences = Confidences()

    @property
    def is_loaded(self) -> bool:
        """The current soup of `default` has been loaded and has run one inference."""
        return self._is_ready

    @property
    def is_ready(self) -> bool:
        """It has been loaded, and this worker keeps up with the registry."""
        return self._is_ready and not self._freshness.is_stale

    @property
    def are_all_ready(self) -> bool:
        """The answer to probes: every predictor of this machine has been ready, as any may get the next connection.

        That stays so: a predictor that is started again takes no connection before it is ready. But one that does not
        keep up with the registry, or could not read it for `registry_max_age_seconds`, is not ready until it can.
        """
        freshness = self._freshness
        return self._have_all_been_ready and not freshness.is_stale and not freshness.is_unread

    @property
    def has_other_weights(self) -> bool:
        """The current soup of `default` was made for other weights: this worker serves what it can without it."""
        return any(pointer.name == DEFAULT for pointer in self._of_other_weights)

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
        with suppress(*UNAVAILABLE):
            await self._report(force=True)
        self.reservoirs.start()
        self._tasks = (asyncio.create_task(self._poll()), asyncio.create_task(self._beat()))
        with suppress(*UNAVAILABLE):
            if await asyncio.to_thread(self._loader.waits_for_bundle, DEFAULT):
                return
        deadline = time.monotonic() + STARTUP_SECONDS
        while not self.is_ready and not self.has_other_weights and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Stop looking at the registry and leave the list of workers."""
        async with self._report_lock:  # a report whose thread runs on would put the worker back on the list
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._sessions.close()
        await self.reservoirs.stop()
        with suppress(*UNAVAILABLE):
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
        move = self._served.get(name)
        pointer = await self.pointer(name) if move is None else move.pointer
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
            for pointer in self._of_other_weights:
                if pointer.name == name:
                    raise OtherWeights(pointer)
            raise NotReady(f"deployment {name!r} is not ready yet")
        return self._served[name].pointer

    def is_current(self, pointer: Pointer) -> bool:
        """Say if requests accepted now are served with this version."""
        move = self._served.get(pointer.name)
        return move is not None and move.pointer == pointer

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
            except UNAVAILABLE as error:
                if is_well:
                    logger.warning("the registry cannot be used, serving on: %s", cause_of(error))
                is_well = False
            except Exception:
                logger.exception("unexpected error while looking for new soups, serving on")
            await asyncio.sleep(pause)

    async def refresh(self) -> bool:
        """Serve what the registry points at now and report it; returns True while jobs are queued or running."""
        async with self._lock:
            if self._freshness.is_silent:
                with suppress(*UNAVAILABLE):  # it may be readable
                    await self._report(force=True)
            start = time.monotonic()
            try:
                snapshot = await self._in_control(self._look)
            except UNAVAILABLE:
                self._freshness.could_not_read()
                raise
            self._freshness.read()
            self._metrics.saw_registry()
            self.deployments = frozenset(snapshot.moves)
            await self._follow(snapshot.moves)
            self._freshness.followed(start)
            if not self._is_ready and DEFAULT in self._served:
                self._is_ready = True
                self._metrics.ready.labels(DEFAULT).set(1)
                logger.info("ready, serving %d deployments, default at %d", len(self._served), self._version(DEFAULT))
            await self.reservoirs.refresh(
                {
                    name: (plan, self.catalog[self._served[name].pointer.base_set].manifest.input)
                    for name, plan in snapshot.reservoirs.items()
                    if name in self._served
                }
            )
            self.confidences.refresh(snapshot.watches)
            self._sessions.count_hits()
            self._metrics.expect(snapshot.active_jobs)
            await self._report()
            if self._is_ready and not self._have_all_been_ready:
                self._have_all_been_ready = await self._in_control(self._have_all_loaded)
            return bool(snapshot.active_jobs)

    def _look(self) -> Snapshot:
        """Look at the registry; runs in a thread, one at a time."""
        is_whole = self._snapshot is None or time.monotonic() >= self._next_whole
        self._snapshot = self._registry.snapshot(None if is_whole else self._snapshot)
        if is_whole:
            self._next_whole = time.monotonic() + WHOLE_SECONDS
        return self._snapshot

    async def _in_control(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Run in a thread that no request uses."""
        return await asyncio.get_running_loop().run_in_executor(self._control, partial(function, *args, **kwargs))

    def _have_all_loaded(self) -> bool:
        """Say if all predictors that live on this machine serve `default`; runs in a thread."""
        workers = self._registry.workers(stale_seconds=self._settings.stale_seconds)
        return all(DEFAULT in worker.loaded for worker in workers if worker.host == platform.node())

    def _version(self, name: str) -> int:
        return self._served[name].pointer.version

    async def _follow(self, wanted: Mapping[str, Move]) -> None:
        """Move to what the registry points at; a deployment stays where it is if that cannot be served."""
        if self._served == wanted:  # several times a second, and there may be thousands
            return
        for name in self._served.keys() - wanted.keys():
            self._sessions.forget(self._served.pop(name).pointer.uid)
        self._of_other_weights &= {move.pointer for move in wanted.values()}
        moved = []
        for name, move in wanted.items():
            if self.is_current(move.pointer):
                self._served[name] = move  # it went back to what is still served here
            elif move.pointer not in self._of_other_weights:
                moved.append(move)
        if moved:
            found = await self._in_control(self._loader.of_other_weights, [move.pointer for move in moved])
            self._note_other_weights(found)
            moved = [move for move in moved if move.pointer not in found]
        warm = [move for move in moved if self._is_warm(move.pointer.name)]
        if cold := [move for move in moved if not self._is_warm(move.pointer.name)]:
            for move, soup in await self._in_control(self._look_at, cold):
                self._serve(move, soup)
        for move in warm:
            await self._swap(move)

    def _note_other_weights(self, found: set[Pointer]) -> None:
        self._of_other_weights |= found
        for pointer in sorted(found)[:MAX_LOGGED]:
            logger.warning("%s", OtherWeights(pointer))
        if len(found) > MAX_LOGGED:
            logger.warning("the same holds for %d more deployments", len(found) - MAX_LOGGED)

    def _is_warm(self, name: str) -> bool:
        return name == DEFAULT or (name in self._served and self._served[name].pointer in self._sessions)

    def _look_at(self, moves: Iterable[Move]) -> list[tuple[Move, Soup | None]]:
        """Return those that can be served, with the soup of deployments that move on; runs in a thread."""
        found = []
        for move in moves:
            pointer = move.pointer
            with suppress(NotReady, UnknownVersion):
                self._loader.find_base(pointer)
                is_new = pointer.name not in self._served  # hundreds of them at the start
                found.append((move, None if is_new else self._registry.soup(pointer.name, pointer.version)))
        return found

    async def _swap(self, move: Move) -> None:
        """Build what a move asks for beside what is served, and then serve it, unless it is not the latest any more."""
        pointer = move.pointer
        if pointer.name == DEFAULT:
            self._sessions.pin(pointer)
        try:
            with suppress(NotReady, Outdated, UnknownVersion):
                loaded = self._sessions.get(pointer) or await self._sessions.load(pointer, at_once=True)
                if await asyncio.to_thread(self._registry.is_latest, move):
                    self._serve(move, loaded.soup)
        finally:
            if not self.is_current(pointer):
                self._sessions.unpin(pointer)

    def _serve(self, move: Move, soup: Soup | None) -> None:
        """Serve requests that are accepted from now on with another version."""
        pointer = move.pointer
        earlier, self._served[pointer.name] = self._served.get(pointer.name), move
        if earlier is not None:
            before = earlier.pointer
            self._sessions.unpin(before)
            self._sessions.drop(before)
            if before.uid != pointer.uid:  # deleted and made again
                self._sessions.forget(before.uid)
        if soup is not None:
            self._metrics.serve(pointer.name, pointer.version, soup.coefficients)

    async def _beat(self) -> None:
        """Go on reporting while sessions are built, which may take longer than silence is put up with."""
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            with suppress(*UNAVAILABLE):  # who looks at the registry says so
                await self._report()

    async def _report(self, *, force: bool = False) -> None:
        """Tell the registry that this worker lives and what it serves, when due or when it changed."""
        async with self._report_lock:  # the served move only rises, and so must the reported one
            served, start = dict(self._served), time.monotonic()
            is_news = served != self._reported
            if not force and not is_news and start - self._freshness.reported_at < self._settings.heartbeat_seconds:
                return
            batch = self.confidences.take()
            await self._in_control(
                self._registry.beat_worker,
                self.id,
                pid=os.getpid(),
                host=platform.node(),
                provider=self._sessions.provider,
                loaded={name: move.pointer.version for name, move in served.items()},
                moves={move.pointer.uid: move.seq for move in served.values()},
                digests={name: base.manifest.digest for name, base in self.catalog.items()},
                is_news=is_news,
                batch=batch.number,
                confidences=batch.sums,
            )
            self.confidences.confirm()
            self._freshness.reported(start)
            self._reported = served
