"""The adapter process: builds missing serving bundles, then works on queued jobs.

What needs torch is in `service.adapter.building` and `service.adapter.searching`, imported when the loop starts:
predictors import this module, too.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from adapt.documents.soup import Soup
from adapt.images.support import Reference
from service.adapter.doubts import Doubts
from service.adapter.heartbeat import Heartbeat
from service.adapter.packages import missing_packages, tell_what_is_left_out
from service.adapter.retrying import STORE_SECONDS, retry
from service.adapter.watch import WatchLoop, tell
from service.metrics import Metrics
from service.prediction.catalog import Base
from service.prediction.predictor import DEFAULT
from service.prediction.reservoir import delete_others, read_reservoir
from service.settings import Settings
from service.store.database import UNAVAILABLE, cause_of
from service.store.jobs import JobQueue
from service.store.material import Material
from service.store.references import References
from service.store.registry import Registry
from service.store.samples import Samples
from service.store.tables import Deployment, Job, new_id
from service.store.transactions import plan_of
from service.store.watches import Watches
from training.documents import one_line

if TYPE_CHECKING:
    from service.adapter.searching import Searcher, Survey

logger = logging.getLogger(__name__)

T = TypeVar("T")

NICENESS = 10  # predictors come first
IDLE_SECONDS = 0.1
RETRY_SECONDS = 2.0  # pause when the registry does not answer
UPKEEP_SECONDS = 60.0  # between two looks for what is too old
SWEEP_SECONDS = 3600.0  # between two looks for what no row knows
SECONDS_PER_DAY = 86_400
FORGET_FACTOR = 100  # predictors silent for so many times `stale_seconds` are deleted from the list


class Given(NamedTuple):
    """What a job works with."""

    material: Material
    current: Soup
    earlier: tuple[int, ...]
    reference: Reference | None


class End(NamedTuple):
    """How a job ended."""

    state: str
    job: Job  # as it is then
    survey: "Survey | None" = None


class AdapterLoop:
    """Works on jobs in a thread of its own until it is stopped."""

    def __init__(
        self,
        settings: Settings,
        catalog: Mapping[str, Base],
        registry: Registry,
        jobs: JobQueue,
        samples: Samples,
        references: References,
        watches: Watches,
        metrics: Metrics,
    ) -> None:
        self.id = new_id()
        self._settings, self._catalog = settings, catalog
        self._registry, self._jobs, self._samples, self._metrics = registry, jobs, samples, metrics
        self._references, self._watches = references, watches
        self._doubts = Doubts(registry, samples, watches, total=settings.promote_p)
        self._watch = WatchLoop(watches, metrics, seconds=settings.heartbeat_seconds)
        self._next_upkeep = self._next_sweep = 0.0
        self._job: Job | None = None  # at hand
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapter", daemon=True)

    def start(self) -> None:
        """Start working."""
        self._watch.start()
        self._thread.start()

    def put_back(self) -> None:
        """Take no further job, and let others have the one at hand now; the search notices that when it can.

        Does not block: it is called when a signal arrives.
        """
        self._stopping.set()
        threading.Thread(target=self._release, name="release").start()

    def _release(self) -> None:
        if (job := self._job) is not None:
            with suppress(*UNAVAILABLE):  # then its heartbeat goes stale, and it is done again
                self._jobs.release(job)

    def stop(self, *, timeout_seconds: float = 10) -> None:
        """Put the job at hand back and stop."""
        self._stopping.set()
        self._watch.stop(timeout_seconds=timeout_seconds)
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        searcher = None
        try:
            if missing := missing_packages():
                tell_what_is_left_out(missing, filter(self._is_missing, self._catalog.values()))
            else:
                if self._is_missing(first := self._first()):  # at full priority: the service is not ready before
                    self._build(first)
                os.nice(NICENESS)  # of this thread, and of those that torch starts from it
                searcher = self._prepare()
        except ValueError as error:
            logger.error("the adapter cannot start: %s", one_line(error))
            os._exit(1)  # the supervisor starts it again
        except Exception:
            logger.exception("the adapter cannot start")
            os._exit(1)
        while not self._stopping.is_set():
            try:
                self._keep_house()
                stale_seconds = self._settings.stale_seconds
                if searcher and (job := self._jobs.claim(self.id, stale_seconds=stale_seconds, digests=self._digests)):
                    self._work(searcher, job)
                else:
                    self._stopping.wait(IDLE_SECONDS)
            except UNAVAILABLE as error:  # a job at hand stays as it is, goes stale, and is done again
                logger.warning("the registry does not answer: %s", cause_of(error))
                self._stopping.wait(RETRY_SECONDS)
            except Exception:
                logger.exception("unexpected error, the adapter goes on")
                self._stopping.wait(RETRY_SECONDS)

    def _first(self) -> Base:
        """Return the base set of the deployment `default`, or any if the registry does not answer."""
        with suppress(KeyError, *UNAVAILABLE):
            return self._catalog[self._registry.deployment(DEFAULT).base_set]
        return next(iter(self._catalog.values()))

    @property
    def _digests(self) -> list[str]:
        """Of the base sets whose jobs can be done here."""
        return [base.manifest.digest for base in self._catalog.values()]

    def _prepare(self) -> "Searcher":
        """Build the other bundles that are missing, load torch, fold the weights, clear away what crashes left."""
        for base in filter(self._is_missing, self._catalog.values()):
            try:
                self._build(base)
            except ValueError as error:  # its deployments answer 503; all others are served
                logger.error("the serving bundle of %s cannot be built: %s", base.manifest.name, one_line(error))
        from service.adapter.searching import Searcher

        searcher = Searcher(self._settings, self._catalog)
        searcher.warm_up()
        self._delete_reservoirs()
        logger.info("the adapter is ready")
        return searcher

    def _delete_reservoirs(self) -> None:
        """Delete those that no deployment has any more, and that nobody could delete then."""
        delete_others(self._settings, lambda: {plan.id for plan in self._registry.snapshot().reservoirs.values()})

    def _is_missing(self, base: Base) -> bool:
        return base.bundle(self._settings.home) is None

    def _build(self, base: Base) -> None:
        from service.adapter.building import build

        build(base, self._settings.home)

    def _keep_house(self) -> None:
        """Between jobs, now and then: delete what is too old, and what crashes left."""
        if time.monotonic() < self._next_upkeep:
            return
        self._next_upkeep = time.monotonic() + UPKEEP_SECONDS
        self._registry.forget_workers(stale_seconds=FORGET_FACTOR * self._settings.stale_seconds)
        if old := self._jobs.forget(older_than=self._settings.job_retention_days * SECONDS_PER_DAY):
            logger.info("%d finished jobs are older than SAUCIER_JOB_RETENTION_DAYS and were deleted", old)
        self._watches.sweep()
        self._samples.expire(older_than=self._settings.sample_retention_days * SECONDS_PER_DAY)
        try:
            self._samples.packs.clean()
            if time.monotonic() >= self._next_sweep:
                self._samples.packs.sweep()
                self._references.sweep()
                self._delete_reservoirs()
                self._forget_history()
                self._next_sweep = time.monotonic() + SWEEP_SECONDS
        except OSError as error:
            logger.warning("the store of samples cannot be used: %s", error)

    def _forget_history(self) -> None:
        """Delete the versions and events that are too old, if there is a limit."""
        if (days := self._settings.history_retention_days) is not None:
            gone = self._registry.forget(older_than=days * SECONDS_PER_DAY)
            if any(gone):
                logger.info("%d versions and %d events are older than SAUCIER_HISTORY_RETENTION_DAYS: deleted", *gone)

    def _work(self, searcher: "Searcher", job: Job) -> None:
        """Do one job; whatever happens, the loop goes on."""
        start = time.perf_counter()
        self._job = job
        is_follow_up = job.follows is not None
        with self._heartbeat(
            lambda fraction, message: self._jobs.beat(job, progress=fraction, message=message),
            lambda: self._jobs.fail(job, self._too_long),
            lambda: is_follow_up and self._jobs.is_somebody_waiting(self._digests),
        ) as heartbeat:
            end = self._decide(searcher, job, heartbeat)
        self._job = None
        if end is not None:
            self._samples.discard(end.job)
            self._metrics.jobs.labels(job.deployment, end.state).inc()
            self._metrics.adapt.labels(job.deployment).observe(time.perf_counter() - start)
            if end.survey is not None:
                self._complete_landscape(job, end.survey)

    def _heartbeat(
        self,
        beat: Callable[[float, str], bool],
        give_up: Callable[[], None],
        gives_way: Callable[[], bool] = lambda: False,
    ) -> Heartbeat:
        seconds, limit = self._settings.heartbeat_seconds, self._settings.job_timeout_seconds
        return Heartbeat(beat, give_up, seconds=seconds, limit_seconds=limit, gives_way=gives_way)

    @property
    def _too_long(self) -> str:
        return f"the job took longer than {self._settings.job_timeout_seconds:g} s (SAUCIER_JOB_TIMEOUT_SECONDS)"

    def _complete_landscape(self, job: Job, survey: "Survey") -> None:
        """Evaluate what the map lacks: after the decision, which nobody should wait longer for."""
        from service.adapter.searching import Cancelled

        # A map is no reason to keep a process from stopping, or jobs from starting.
        with self._heartbeat(lambda *_: True, lambda: None) as heartbeat, suppress(Cancelled):
            self._jobs.keep_landscape(job, survey(should_stop=partial(self._should_stop, heartbeat)))

    def _should_stop(self, heartbeat: Heartbeat) -> bool:
        return heartbeat.should_stop or self._stopping.is_set()

    def _retry(self, action: Callable[[], T], heartbeat: Heartbeat) -> T:
        """Do what needs the database or the store, again while they do not answer; stops as a search does."""
        from service.adapter.searching import Cancelled

        def pause(seconds: float) -> None:
            deadline = time.monotonic() + seconds
            while (left := deadline - time.monotonic()) > 0:
                self._stopping.wait(min(left, self._settings.heartbeat_seconds))
                if self._should_stop(heartbeat):
                    raise Cancelled

        return retry(action, pause=pause)

    def _decide(self, searcher: "Searcher", job: Job, heartbeat: Heartbeat) -> End | None:
        """Search, store what was found, and say how the job ended; None if it did not end here."""
        from service.adapter.searching import Cancelled

        try:
            return self._search_or_fail(searcher, job, heartbeat)
        except Cancelled:
            return self._stopped(job, heartbeat)

    def _search_or_fail(self, searcher: "Searcher", job: Job, heartbeat: Heartbeat) -> End | None:
        from service.adapter.searching import Cancelled

        try:
            return self._search(searcher, job, heartbeat)
        except (Cancelled, *UNAVAILABLE):
            raise
        except ValueError as error:
            reason = one_line(error)
        except Exception:
            logger.exception("job %s: unexpected error", job.id)
            reason = "an unexpected error; the log of the service has more"
        self._retry(lambda: self._jobs.fail(job, reason), heartbeat)
        return End("failed", job)

    def _stopped(self, job: Job, heartbeat: Heartbeat) -> End | None:
        """Put down a job whose search has stopped.

        It was cancelled, or took too long, or the process stops, or it follows another and somebody waits for a third.
        """
        if heartbeat.is_lost:
            return None
        if heartbeat.is_late:
            self._jobs.fail(job, self._too_long)
            return End("failed", job)
        self._jobs.release(job)
        return None

    def _gather(self, job: Job, base: Base, deployment: Deployment) -> Given:
        """Read what a job works with.

        Raises:
            ValueError: its images, or the reference images, are gone or damaged.
            OSError: the store does not answer.
        """
        material = self._samples.load(job, base.manifest)
        if material.unlabelled is None:
            material = replace(material, unlabelled=self._recent_images(deployment))
        earlier = () if material.support is None else self._jobs.earlier(job, material.support.hashes)
        current = self._registry.soup(job.deployment, job.base_version, held_out=True)
        return Given(material, current, earlier, self._references.load(job.deployment))

    def _search(self, searcher: "Searcher", job: Job, heartbeat: Heartbeat) -> End | None:
        deployment = self._retry(lambda: self._registry.deployment(job.deployment), heartbeat)
        base = self._catalog.get(deployment.base_set)
        if base is None:
            raise ValueError(f"expected the base set {deployment.base_set!r}, found {sorted(self._catalog)}")
        try:
            given = self._retry(lambda: self._gather(job, base, deployment), heartbeat)
        except OSError as error:
            logger.error("the images of job %s cannot be read: %s", job.id, error)
            raise ValueError(f"the store of labelled images failed for {STORE_SECONDS:g} s") from None
        support = given.material.support
        found = searcher.find(
            deployment.base_set,
            given.material,
            current=given.current,
            strategy=job.strategy,  # type: ignore[arg-type]  # checked before it was stored
            promote=job.promote,  # type: ignore[arg-type]
            attempt=job.attempt,
            earlier=given.earlier,
            balance=job.balance == "class",
            is_quick=job.effort != "full",
            draw=job.draw,  # type: ignore[arg-type]
            reference=given.reference,
            progress=heartbeat.report,
            should_stop=partial(self._should_stop, heartbeat),
        )
        rollback = None
        if found.outcome.state == "kept" and support is not None:
            rollback = self._retry(lambda: self._doubts.look(searcher, job, deployment, support), heartbeat)
        finished = self._retry(
            lambda: self._jobs.finish(
                job,
                found.soup,
                found.outcome,
                found.landscape,
                rollback=rollback,
                is_more_to_try=found.is_more_to_try,
            ),
            heartbeat,
        )
        if finished is None:
            logger.warning("job %s was cancelled or taken over, or its deployment is gone", job.id)
            return None
        if rollback is not None and finished.rolled_back_to is not None:
            tell(self._metrics, job.deployment, "accuracy", rollback)
        logger.info("job %s: %s, %s", job.id, finished.state, finished.reason)
        if (accuracy := found.outcome.accuracy) is not None:
            self._metrics.accuracy.labels(job.deployment, "current").set(accuracy.current)
            self._metrics.accuracy.labels(job.deployment, "candidate").set(accuracy.candidate)
        return End(finished.state, finished, found.survey)

    def _recent_images(self, deployment: Deployment) -> npt.NDArray[np.uint8] | None:
        """Return what the reservoir of a deployment keeps at the moment; no copy is stored with the job."""
        plan, base = plan_of(deployment), self._catalog.get(deployment.base_set)
        return None if plan is None or base is None else read_reservoir(self._settings, plan, base.manifest.input)
