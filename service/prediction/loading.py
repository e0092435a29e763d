"""From a pointer of the registry to what serves it: the soup, its bundle, a checked session that has run once."""

import ctypes
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adapt.documents.soup import Soup, SoupError, check_soup
from deploy.runtime import Bundle, SoupSession
from service.metrics import DeploymentMetrics, Metrics
from service.prediction.batcher import Batcher, Logits
from service.prediction.catalog import Base
from service.settings import Settings
from service.store.moves import Pointer
from service.store.registry import Registry
from service.store.transactions import UnknownVersion
from training.images import to_input

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5  # pause before a soup that did not load is tried again
WARM_UP_RUNS = 3


class NotReady(RuntimeError):
    """It cannot be served yet, but will be soon."""


class OtherWeights(NotReady):
    """The current version was made for other weights than this worker has."""

    def __init__(self, pointer: Pointer) -> None:
        super().__init__(
            f"version {pointer.version} of deployment {pointer.name!r} was made for other weights of base set "
            f"{pointer.base_set!r} than this worker has; another worker may have them, or the operator runs "
            "`saucier db rebase`"
        )


class Outdated(ValueError):
    """A version that was made for other weights than those of the base set now."""


@dataclass(frozen=True)
class LoadedSoup:
    """A soup that serves: an immutable whole, so that a request keeps the one it was accepted with."""

    pointer: Pointer
    soup: Soup
    base: Base
    session: SoupSession
    batcher: Batcher[np.uint8]  # of pixels, (H, W, 3)
    tensors: Batcher[np.float32]  # of what the network takes, (3, H, W)
    metrics: DeploymentMetrics


class Plan(NamedTuple):
    """What a session is built from."""

    pointer: Pointer
    soup: Soup
    base: Base
    num_bytes: int  # that the session will keep, about


class Loader:
    """Builds what serves a pointer. All but the construction may run in any thread, several at once."""

    def __init__(self, settings: Settings, catalog: Mapping[str, Base], registry: Registry, metrics: Metrics) -> None:
        self.catalog = catalog
        self._settings, self._registry, self._metrics = settings, registry, metrics
        self._bundles: dict[str, Bundle] = {}
        self._awaited: set[str] = set()  # digests of base sets that were found without a bundle
        self._failed: dict[Pointer, float] = {}
        self._inference = ThreadPoolExecutor(1, "inference")

    def close(self) -> None:
        """Drop the batches that wait, and let the thread go that runs large ones."""
        self._inference.shutdown(wait=False, cancel_futures=True)

    def find_base(self, pointer: Pointer) -> Base:
        """Return the base set of a deployment, whose bundle is open from now on.

        Raises:
            NotReady: there is no bundle yet, or the base set is gone.
        """
        with self._noting_failure(pointer):
            base = self.catalog.get(pointer.base_set)
            if base is None:
                raise ValueError(f"expected the base set {pointer.base_set!r}, found {sorted(self.catalog)}")
            self._bundle(base)
            return base

    def of_other_weights(self, pointers: Iterable[Pointer]) -> set[Pointer]:
        """Return those whose version was made for other weights than their base set has here."""
        here = {name: base.manifest.digest for name, base in self.catalog.items()}
        made_for = self._registry.base_digests(pointers).items()
        return {pointer for pointer, digest in made_for if here.get(pointer.base_set, digest) != digest}

    def plan(self, pointer: Pointer) -> Plan:
        """Find what a session is to be built from.

        Raises:
            NotReady: see `find_base`.
            UnknownVersion: the deployment has no such version.
            Outdated: the version was made for other weights.
        """
        base = self.find_base(pointer)
        with self._noting_failure(pointer):
            soup = self._registry.soup(pointer.name, pointer.version)
            try:
                check_soup(soup, base.manifest)
            except SoupError as error:
                raise Outdated(str(error)) from error
            return Plan(pointer, soup, base, self._bundle(base).session_bytes)

    def load(self, plan: Plan) -> LoadedSoup:
        """Build, check and warm up what serves a pointer.

        Raises:
            NotReady: that failed; the log says why.
        """
        start = time.perf_counter()
        with self._noting_failure(plan.pointer):
            session = self.build(plan.base, plan.soup)
            run = partial(_run, session)
            spec = plan.base.manifest.input
            blank = np.zeros((1, spec.height, spec.width, 3), dtype=np.uint8)
            seconds = min(_time(run, blank) for _ in range(WARM_UP_RUNS))
        metrics = self._metrics.of(plan.pointer.name)
        batching: Any = {
            "max_batch": self._settings.max_batch,
            "max_waiting": self._settings.max_waiting_images,
            "executor": self._inference,
            "seconds_per_image": seconds,
            "observe": partial(_observe, metrics),
            "queued": metrics.queued.inc,
        }
        metrics.swap.observe(time.perf_counter() - start)
        return LoadedSoup(
            plan.pointer,
            plan.soup,
            plan.base,
            session,
            batcher=Batcher(run, **batching),
            tensors=Batcher(session.run, **batching),
            metrics=metrics,
        )

    def build(self, base: Base, soup: Soup) -> SoupSession:
        """Build a session for a soup and check it on the bundle's probe images; takes a while.

        Raises:
            SoupError: the soup was made for other weights.
            UnusableSoup: its logits are not finite, or its patch does not fit.
            BundleError: the bundle is corrupt.
            NotReady: there is no bundle yet.
        """
        check_soup(soup, base.manifest)
        try:
            return self._bundle(base).session(
                soup.coefficients,
                bn_mode=soup.bn_mode,
                patch=None if soup.patch is None else soup.patch.tensors(),
                device=self._settings.device,
            )
        finally:
            _return_freed_memory()

    def has_statistics(self, base: Base) -> bool:
        """Say if channel statistics of training are known, which images without labels can move."""
        return base.manifest.moments is not None or any(slot.is_variance for slot in self._bundle(base).info.tensors)

    def waits_for_bundle(self, name: str) -> bool:
        """Say if a deployment cannot be served before the adapter has built the bundle of its base set."""
        base = self.catalog.get(self._registry.deployment(name).base_set)
        return base is not None and base.bundle(self._settings.home) is None

    def _bundle(self, base: Base) -> Bundle:
        digest = base.manifest.digest
        if digest not in self._bundles:
            folder = base.bundle(self._settings.home)
            if folder is None:
                if digest not in self._awaited:
                    self._awaited.add(digest)
                    logger.info("waiting for the adapter to build the serving bundle of %s", base.manifest.name)
                raise NotReady("the serving bundle of the base set is not ready yet")
            # The digests were compared before the workers were started; every session is checked in any case.
            self._bundles[digest] = Bundle.open(folder, verify=False, base_digest=digest)
        return self._bundles[digest]

    @contextmanager
    def _noting_failure(self, pointer: Pointer) -> Iterator[None]:
        """Turn what goes wrong into NotReady, count it, and refuse to try again for a while."""
        if time.monotonic() < self._failed.get(pointer, 0):
            raise NotReady(_cannot_load(pointer))
        try:
            yield
        except (NotReady, Outdated, UnknownVersion):
            raise
        except (ValueError, OSError, KeyError) as error:
            now = time.monotonic()
            self._failed = {one: until for one, until in self._failed.items() if until > now}
            self._failed[pointer] = now + RETRY_SECONDS
            self._metrics.swap_failures.labels(pointer.name).inc()
            logger.error("%s: version %d cannot be loaded: %s", pointer.name, pointer.version, error)
            raise NotReady(_cannot_load(pointer)) from error


def _cannot_load(pointer: Pointer) -> str:
    return f"version {pointer.version} of deployment {pointer.name!r} cannot be loaded at the moment"


def _run(session: SoupSession, images: npt.NDArray[np.uint8]) -> Logits:
    return session.run(to_input(images))


def _observe(metrics: DeploymentMetrics, num_images: int, seconds: float) -> None:
    metrics.inference.observe(seconds)
    metrics.batch_size.observe(num_images)


def _time(run: partial[Logits], images: npt.NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start


def _return_freed_memory() -> None:
    """Give the system back what building freed; glibc would keep about as much again as the sessions take."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
