"""The reservoir: a bounded sample of the images that a deployment was asked about lately, off unless switched on.

Every worker samples what it serves, in memory and on its event loop; a thread writes the changes to the worker's own
file, so that no request waits for a disk. The adapter reads the files of all workers. A file is a row of records, each
the time of a request and an image at the network's input size; one whose time is over is overwritten with zeros.
"""

import asyncio
import fcntl
import logging
import mmap
import os
import random
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.settings import Settings
from service.store.tables import ReservoirPlan
from training.images import Pixels
from training.manifest import InputSpec

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0  # between two writes of what was sampled

Images = npt.NDArray[np.uint8]
Changes = dict[int, tuple[float, Pixels] | None]  # by position in the file; None clears it


def record_type(spec: InputSpec) -> np.dtype[Any]:
    """Return the layout of one image in a file."""
    return np.dtype([("at", "<f8"), ("pixels", "u1", (spec.height, spec.width, 3))])


class Share:
    """One worker's part of a reservoir. All but `write` belongs on the event loop.

    While there is room every image is kept; then the n-th image takes the place of a random one with probability
    capacity / n (Algorithm R), so that each is kept with the same probability. Where images are too old, n shrinks as
    the number of images kept does. After a restart n starts from the number of kept images.
    """

    def __init__(self, file: int, plan: ReservoirPlan, spec: InputSpec, capacity: int) -> None:
        """Go on with what the file holds.

        Args:
            file: descriptor, open for reading and writing; closed by `close`.
            plan: of the whole reservoir.
            spec: of the network's input.
            capacity: most images of this share.
        """
        self.plan, self.spec = plan, spec
        self._file, self._type = file, record_type(spec)
        self._at = np.zeros(capacity)
        self._changes: Changes = {}
        record = self._type.itemsize
        size = os.fstat(file).st_size
        count = size // record
        if size % record:  # a write broke off
            os.ftruncate(file, count * record)
        for position in range(capacity, count):  # of another capacity; not cut off, as others may have it mapped
            os.pwrite(file, bytes(record), position * record)
        times = _times(file, min(count, capacity), self._type)
        self._at[: len(times)] = times
        self._seen = float(np.count_nonzero(self._at))
        self._free = np.flatnonzero(self._at == 0)[::-1].tolist()

    def offer(self, images: Iterable[Pixels], now: float) -> None:
        """Keep some of these images at the network's input size; costs about a microsecond each."""
        shape = (self.spec.height, self.spec.width, 3)
        for pixels in images:
            if pixels.shape != shape:  # of a request to the base set that the deployment had until now
                continue
            self._seen += 1
            position = self._free.pop() if self._free else int(random.random() * self._seen)
            if position < len(self._at):
                self._at[position] = now
                self._changes[position] = (now, pixels)

    def take_changes(self, now: float) -> Changes:
        """Drop what is too old and return what must be written since the last call."""
        kept = np.count_nonzero(self._at)
        expired = np.flatnonzero((self._at != 0) & (self._at < self.plan.oldest(now))).tolist()
        if expired:
            self._at[expired] = 0
            self._seen *= 1 - len(expired) / kept
            self._free += expired
            self._changes |= dict.fromkeys(expired)
        changes, self._changes = self._changes, {}
        return changes

    def give_back(self, changes: Changes) -> None:
        """Have changes written the next time, as that failed now; later ones count."""
        self._changes = changes | self._changes

    def write(self, changes: Changes) -> None:
        """Bring the file up to date; runs in a thread.

        Raises:
            OSError: the disk is full or gone.
        """
        # What is to be cleared first: on a full disk that still works.
        for position, change in sorted(changes.items(), key=lambda item: item[1] is not None):
            record = np.zeros((), dtype=self._type)
            if change is not None:
                record["at"], record["pixels"] = change
            os.pwrite(self._file, record.tobytes(), position * self._type.itemsize)

    def close(self) -> None:
        """Let another process have the file."""
        os.close(self._file)


class Reservoirs:
    """The shares of one predictor process, by deployment."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._shares: dict[str, Share] = {}
        self._lock = asyncio.Lock()  # a file is not closed while it is written
        self._is_stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def offer(self, deployment: str, images: Sequence[Pixels]) -> None:
        """Sample from the images of a request, if the deployment has a reservoir."""
        if (share := self._shares.get(deployment)) is not None:
            share.offer(images, time.time())

    def is_on(self, deployment: str) -> bool:
        """Say if the images of a deployment are sampled."""
        return deployment in self._shares

    def start(self) -> None:
        """Write from now on what is sampled."""
        self._task = asyncio.create_task(self._keep_flushing())

    async def stop(self) -> None:
        """Write the rest and let the files go."""
        self._is_stopping.set()
        if self._task is not None:
            await self._task
        await self.flush()
        for share in self._shares.values():
            share.close()
        self._shares.clear()

    async def refresh(self, wanted: Mapping[str, tuple[ReservoirPlan, InputSpec]]) -> None:
        """Sample for these deployments and no others; reservoirs that were switched off are deleted.

        A deployment that moved to a base set of another input size begins with an empty share.
        """
        current = {name: (share.plan, share.spec) for name, share in self._shares.items()}
        if current == wanted:
            return
        async with self._lock:
            for name, (plan, spec) in current.items():
                if wanted.get(name) != (plan, spec):
                    self._shares.pop(name).close()
                if name not in wanted or wanted[name][0] != plan:
                    await asyncio.to_thread(delete_reservoir, self._settings, plan.id)
            for name, (plan, spec) in wanted.items():
                if name not in self._shares:
                    try:
                        share = await asyncio.to_thread(claim, self._settings, plan, spec)
                    except OSError as error:
                        logger.warning("%s: no reservoir can be kept: %s", name, error.strerror)
                        continue
                    if share is not None:
                        self._shares[name] = share

    async def flush(self) -> None:
        """Write what was sampled since the last time."""
        async with self._lock:
            for name, share in self._shares.items():
                if changes := share.take_changes(time.time()):
                    try:
                        await asyncio.to_thread(share.write, changes)
                    except OSError as error:
                        share.give_back(changes)
                        logger.warning("%s: the reservoir cannot be written: %s", name, error.strerror)

    async def _keep_flushing(self) -> None:
        while not self._is_stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), FLUSH_SECONDS)
            try:
                await self.flush()
            except Exception:  # images whose time is over must go, whatever is wrong with others
                logger.exception("unexpected error while writing reservoirs, going on")


def claim(settings: Settings, plan: ReservoirPlan, spec: InputSpec) -> Share | None:
    """Return the first share of a reservoir that no living process has, or None if each is taken.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = settings.reservoirs_path / plan.id
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    capacity = -(-min(plan.size, most_images(settings, spec)) // settings.workers)
    paths = [folder / f"{number}-{spec.height}x{spec.width}.bin" for number in range(settings.workers)]
    for path in set(folder.iterdir()) - set(paths):  # there were more workers once, or images of another size
        path.unlink(missing_ok=True)
    for path in paths:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        else:
            return Share(file, plan, spec, capacity)
    return None


def read_reservoir(settings: Settings, plan: ReservoirPlan, spec: InputSpec) -> Images | None:
    """Return the images that are kept, uint8 (m, H, W, 3), or None if there are none."""
    found = []
    for path in _files(settings, plan, spec):
        with suppress(OSError):
            content = path.read_bytes()
            layout = record_type(spec)
            records = np.frombuffer(content[: len(content) // layout.itemsize * layout.itemsize], dtype=layout)
            found.append(records["pixels"][_is_kept(records["at"], plan)])
    images: Images | None = np.concatenate(found)[: plan.size] if found else None
    return images if images is not None and len(images) else None


def count_kept(settings: Settings, plan: ReservoirPlan, spec: InputSpec) -> int:
    """Return how many images are kept, without reading them."""
    total, layout = 0, record_type(spec)
    for path in _files(settings, plan, spec):
        with suppress(OSError), path.open("rb") as file:
            times = _times(file.fileno(), os.fstat(file.fileno()).st_size // layout.itemsize, layout)
            total += int(np.count_nonzero(_is_kept(times, plan)))
    return min(total, plan.size)


def delete_reservoir(settings: Settings, reservoir: str) -> None:
    """Delete the images of a reservoir, if there are any."""
    shutil.rmtree(settings.reservoirs_path / reservoir, ignore_errors=True)


def delete_others(settings: Settings, known: Callable[[], Collection[str]]) -> None:
    """Delete what belongs to no reservoir: some were switched off while no worker was alive to see it.

    Args:
        settings: for the folder.
        known: returns the reservoirs that are on; asked after looking, so that none is deleted that is made meanwhile.
    """
    if settings.reservoirs_path.is_dir():
        found = [folder.name for folder in settings.reservoirs_path.iterdir()]
        for name in set(found) - set(known()):
            delete_reservoir(settings, name)


def most_images(settings: Settings, spec: InputSpec) -> int:
    """Return the largest size that a reservoir may have."""
    return int(settings.max_reservoir_mb * 1e6) // record_type(spec).itemsize


def _files(settings: Settings, plan: ReservoirPlan, spec: InputSpec) -> list[Path]:
    return sorted((settings.reservoirs_path / plan.id).glob(f"*-{spec.height}x{spec.width}.bin"))


def _times(file: int, count: int, layout: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """Return the times of the first `count` records of a file; it is mapped, as reading each alone is far slower."""
    if count == 0:  # nothing can be mapped
        return np.zeros(0)
    with mmap.mmap(file, count * layout.itemsize, prot=mmap.PROT_READ) as mapped:
        records = np.frombuffer(mapped, dtype=layout, count=count)
        times = records["at"].copy()
        del records  # it holds the mapping
    return times


def _is_kept(times: npt.NDArray[np.float64], plan: ReservoirPlan) -> npt.NDArray[np.bool_]:
    kept: npt.NDArray[np.bool_] = times >= max(plan.oldest(time.time()), 1.0)
    return kept
