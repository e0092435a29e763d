"""The sessions of one predictor process: built when they are first asked for, kept while there is room."""

import asyncio
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass

from service.prediction.loading import LoadedSoup, Loader
from service.store.moves import Pointer


@dataclass
class _Held:
    loaded: LoadedSoup
    num_bytes: int
    hits: int = 0  # since the last look at the metrics


class Sessions:
    """A cache of sessions by the soup that they serve, bounded by memory; the one unused for the longest goes first.

    Belongs to one event loop; sessions are built in threads. A request that has a session keeps it, evicted or not.

    Args:
        loader: builds them.
        max_bytes: most memory, as `Plan.num_bytes` estimates it. Pinned sessions and the one that was built last stay
            even if they alone need more.
    """

    def __init__(self, loader: Loader, *, max_bytes: int) -> None:
        self._loader, self._max_bytes = loader, max_bytes
        self._held: OrderedDict[Pointer, _Held] = OrderedDict()
        self._building: dict[Pointer, asyncio.Task[LoadedSoup]] = {}
        self._reserved = 0  # bytes of the sessions that are being built
        self._pinned: set[Pointer] = set()
        self._turn = asyncio.Lock()

    def __contains__(self, pointer: Pointer | None) -> bool:
        return pointer in self._held

    @property
    def num_bytes(self) -> int:
        """About how much memory the sessions keep that are held."""
        return sum(held.num_bytes for held in self._held.values())

    @property
    def provider(self) -> str | None:
        """The ONNX Runtime provider in use; None while there is no session."""
        return next((held.loaded.session.provider for held in self._held.values()), None)

    def get(self, pointer: Pointer) -> LoadedSoup | None:
        """Return what serves a pointer if it is held."""
        held = self._held.get(pointer)
        if held is None:
            return None
        held.hits += 1
        self._held.move_to_end(pointer)
        return held.loaded

    async def load(self, pointer: Pointer, *, at_once: bool = False) -> LoadedSoup:
        """Build what serves a pointer, once for all who wait for it, and hold it.

        Args:
            pointer: not held.
            at_once: beside other builds. Otherwise they take turns, so that many first requests do not build as many
                sessions at the same time.

        Raises:
            NotReady, UnknownVersion, Outdated: see `Loader.plan` and `Loader.load`.
        """
        task = self._building.get(pointer)
        if task is None:
            task = self._building[pointer] = asyncio.create_task(self._build(pointer, at_once=at_once))
        return await asyncio.shield(task)  # who goes away takes nothing from the others

    def pin(self, pointer: Pointer) -> None:
        """Never evict the session of a pointer, held or not yet."""
        self._pinned.add(pointer)

    def unpin(self, pointer: Pointer) -> None:
        """Let the session of a pointer be evicted like others."""
        self._pinned.discard(pointer)

    def drop(self, pointer: Pointer) -> None:
        """Hold the session of a pointer no longer; one that is being built serves those who wait, and no others."""
        self._building.pop(pointer, None)
        if (held := self._held.pop(pointer, None)) is not None:
            self._report(held)

    def forget(self, uid: str) -> None:
        """Drop all versions of a deployment that is gone."""
        for pointer in [one for one in (*self._held, *self._building) if one.uid == uid]:
            self.drop(pointer)

    def count_hits(self) -> None:
        """Bring the metric up to date: counting there at each request would cost more than the rest of `get`."""
        for held in self._held.values():
            _count_hits(held)

    async def close(self) -> None:
        """Build no more."""
        tasks = list(self._building.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _build(self, pointer: Pointer, *, at_once: bool) -> LoadedSoup:
        try:
            plan = await asyncio.to_thread(self._loader.plan, pointer)
            async with nullcontext() if at_once else self._turn:
                self._make_room(plan.num_bytes)
                self._reserved += plan.num_bytes
                try:
                    loaded = await asyncio.to_thread(self._loader.load, plan)
                finally:
                    self._reserved -= plan.num_bytes
                if self._is_wanted(pointer):
                    held = self._held[pointer] = _Held(loaded, plan.num_bytes)
                    self._report(held)
            return loaded
        finally:
            if self._is_wanted(pointer):
                del self._building[pointer]

    def _is_wanted(self, pointer: Pointer) -> bool:
        """Say if the running task is the one that builds for a pointer: it may have been dropped since."""
        return self._building.get(pointer) is asyncio.current_task()

    def _make_room(self, num_bytes: int) -> None:
        for pointer in [one for one in self._held if one not in self._pinned]:
            if self.num_bytes + self._reserved + num_bytes <= self._max_bytes:
                return
            held = self._held.pop(pointer)
            held.loaded.metrics.evictions.inc()
            self._report(held)

    def _report(self, changed: _Held) -> None:
        """Bring the metrics of a session's deployment up to date after it came or went."""
        _count_hits(changed)
        name, metrics = changed.loaded.pointer.name, changed.loaded.metrics
        sizes = [held.num_bytes for pointer, held in self._held.items() if pointer.name == name]
        metrics.sessions.set(len(sizes))
        metrics.session_bytes.set(sum(sizes))


def _count_hits(held: _Held) -> None:
    if held.hits:
        held.loaded.metrics.hits.inc(held.hits)
        held.hits = 0
