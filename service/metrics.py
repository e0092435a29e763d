"""Prometheus metrics of the predictors and the adapter.

All carry the label `deployment`, except those of requests, which are counted by route.
"""

import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from service.dead_counts import alone, merge_dead

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

logger = logging.getLogger(__name__)

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_LONG_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0)
_REQUEST_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_CONFIDENCES = tuple(step / 20 for step in range(1, 21))
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_JOB_ENDS = ("promoted", "kept", "failed")
_CAUSES = ("confidence", "accuracy")  # of rollbacks
REGISTRY_AGE = "saucier_registry_age_seconds"
_FAULTS = ("error", "storage", "unavailable", "queue_full")  # reasons that an alert asks for


class DeploymentMetrics(NamedTuple):
    """The metrics that every request to one deployment counts into."""

    images: "Counter"
    confidence: "Histogram"
    inference: "Histogram"
    batch_size: "Histogram"
    queued: "Gauge"
    decode: "Histogram"
    swap: "Histogram"
    hits: "Counter"
    misses: "Counter"
    evictions: "Counter"
    sessions: "Gauge"
    session_bytes: "Gauge"


class RouteMetrics:
    """The metrics that every request to one route counts into."""

    def __init__(self, requests: "Counter", seconds: "Histogram", in_progress: "Gauge", route: str) -> None:
        self._requests, self._route = requests, route
        self._seconds, self._in_progress = seconds.labels(route), in_progress.labels(route)
        self._by_status = {"2xx": requests.labels(route, "2xx")}

    def begin(self) -> float:
        """Count a request that begins; return when."""
        self._in_progress.inc()
        return time.perf_counter()

    def end(self, start: float, status: str) -> None:
        """Count a request that ends.

        Args:
            start: what `begin` returned.
            status: class of the answer's status, such as "2xx"; "none" if there was no answer.
        """
        self._in_progress.dec()
        self._seconds.observe(time.perf_counter() - start)
        if (counter := self._by_status.get(status)) is None:
            counter = self._by_status[status] = self._requests.labels(self._route, status)
        counter.inc()


class Metrics:
    """The metrics of one process.

    Made when BentoML makes its service, not on import: the folder that the processes share is known by then.
    """

    def __init__(self, registry: "CollectorRegistry | None" = None) -> None:
        import prometheus_client as prometheus
        from prometheus_client import values

        self._registry = registry or prometheus.REGISTRY
        kwargs: Any = {"registry": self._registry}
        by = ["deployment"]
        self.images = prometheus.Counter("saucier_predict_images", "Images classified.", by, **kwargs)
        self.confidence = prometheus.Histogram(
            "saucier_predict_confidence", "Confidence of the predicted class.", by, buckets=_CONFIDENCES, **kwargs
        )
        self.inference = prometheus.Histogram(
            "saucier_inference_seconds", "Duration of one batch in the network.", by, buckets=_SECONDS, **kwargs
        )
        self.batch_size = prometheus.Histogram(
            "saucier_batch_size", "Images that ran together.", by, buckets=_BATCHES, **kwargs
        )
        self.decode = prometheus.Histogram(
            "saucier_decode_seconds",
            "Time to decode the images of one `POST /predict`, with the wait for a thread.",
            by,
            buckets=_SECONDS,
            **kwargs,
        )
        latest: Any = "livemostrecent"  # all workers report the same soup; the last one to swap has the word
        self.version = prometheus.Gauge(
            "saucier_soup_version", "Soup version being served.", by, multiprocess_mode=latest, **kwargs
        )
        self.coefficient = prometheus.Gauge(
            "saucier_soup_coefficient",
            "Coefficients of the soup being served.",
            [*by, "ingredient"],
            multiprocess_mode=latest,
            **kwargs,
        )
        self.swap = prometheus.Histogram(
            "saucier_swap_seconds",
            "Time to build and check a soup's session.",
            by,
            buckets=_LONG_SECONDS,
            **kwargs,
        )
        self.swap_failures = prometheus.Counter("saucier_swap_failures", "Soups that did not load.", by, **kwargs)
        self.hits = prometheus.Counter("saucier_session_hits", "Requests that found their session ready.", by, **kwargs)
        self.misses = prometheus.Counter(
            "saucier_session_misses", "Requests that waited for their session to be built.", by, **kwargs
        )
        self.evictions = prometheus.Counter(
            "saucier_session_evictions", "Sessions closed to make room for others.", by, **kwargs
        )
        held: Any = "livesum"
        self.sessions = prometheus.Gauge(
            "saucier_sessions", "Sessions that all workers hold.", by, multiprocess_mode=held, **kwargs
        )
        self.session_bytes = prometheus.Gauge(
            "saucier_session_bytes",
            "About how many bytes of memory these sessions keep.",
            by,
            multiprocess_mode=held,
            **kwargs,
        )
        self.queued = prometheus.Gauge(
            "saucier_queued_images",
            "Images that wait for their batch, in all workers.",
            by,
            multiprocess_mode=held,
            **kwargs,
        )
        self.requests = prometheus.Counter(
            "saucier_requests",
            "Requests answered. `status` is `2xx`, `4xx` and so on, or `none` if the client got no answer.",
            ["route", "status"],
            **kwargs,
        )
        self.request_seconds = prometheus.Histogram(
            "saucier_request_seconds",
            "Time from the head of a request to the end of its answer, slow clients included.",
            ["route"],
            buckets=_REQUEST_SECONDS,
            **kwargs,
        )
        self.requests_in_progress = prometheus.Gauge(
            "saucier_requests_in_progress",
            "Requests that all workers are answering now.",
            ["route"],
            multiprocess_mode=held,
            **kwargs,
        )
        self._routes: dict[str, RouteMetrics] = {}
        self._ingredients: dict[str, frozenset[str]] = {}  # reported, by deployment
        self.ready = prometheus.Gauge(
            "saucier_ready_workers",
            "Workers that have run the current soup of `default`, the only value of the label here.",
            by,
            multiprocess_mode=held,
            **kwargs,
        )
        self.registry_age = prometheus.Gauge(
            REGISTRY_AGE,
            "Seconds since a worker last read the registry; one series for each worker, with a label `pid`.",
            by,
            multiprocess_mode="liveall",
            **kwargs,
        )
        self.active_jobs = prometheus.Gauge(
            "saucier_adapt_active_jobs",
            "Adaptations that wait or run, follow-ups included.",
            by,
            multiprocess_mode=latest,
            **kwargs,
        )
        self.jobs = prometheus.Counter(
            "saucier_adapt_jobs",
            "Adaptations that ended `promoted`, `kept` or `failed`; cancelled ones do not count.",
            [*by, "state"],
            **kwargs,
        )
        self.adapt = prometheus.Histogram(
            "saucier_adapt_seconds", "Duration of one adaptation.", by, buckets=_LONG_SECONDS, **kwargs
        )
        self.accuracy = prometheus.Gauge(
            "saucier_adapt_accuracy",
            "Cross-fitted accuracy in the last adaptation, of the `current` soup and of the `candidate`.",
            [*by, "which"],
            multiprocess_mode="mostrecent",
            **kwargs,
        )
        self.rollbacks = prometheus.Counter(
            "saucier_automatic_rollbacks",
            "Promotions that the watch rolled back, for `confidence` or `accuracy`.",
            [*by, "cause"],
            **kwargs,
        )
        self.rejected = prometheus.Counter(
            "saucier_rejected",
            "Requests refused; `deployment` is empty if the request found none.",
            [*by, "reason"],
            **kwargs,
        )
        self._is_shared = values.ValueClass is not values.MutexValue
        self._reserved: set[Path] = set()
        self._active: dict[str, int] = {}

    def of(self, deployment: str) -> "DeploymentMetrics":
        """Return what a request to `deployment` counts into; all series exist from now on."""
        self.swap_failures.labels(deployment)
        self._expect_events(deployment)
        return DeploymentMetrics(
            images=self.images.labels(deployment),
            confidence=self.confidence.labels(deployment),
            inference=self.inference.labels(deployment),
            batch_size=self.batch_size.labels(deployment),
            queued=self.queued.labels(deployment),
            decode=self.decode.labels(deployment),
            swap=self.swap.labels(deployment),
            hits=self.hits.labels(deployment),
            misses=self.misses.labels(deployment),
            evictions=self.evictions.labels(deployment),
            sessions=self.sessions.labels(deployment),
            session_bytes=self.session_bytes.labels(deployment),
        )

    def serve(self, deployment: str, version: int, coefficients: Mapping[str, float]) -> None:
        """Report the soup that is being served."""
        self.version.labels(deployment).set(version)
        for ingredient in self._ingredients.get(deployment, frozenset()) - coefficients.keys():  # of another base set
            self.coefficient.labels(deployment, ingredient).set(0)
        self._ingredients[deployment] = frozenset(coefficients)
        for ingredient, coefficient in coefficients.items():
            self.coefficient.labels(deployment, ingredient).set(coefficient)
        self._reserve()

    def saw_registry(self) -> None:
        """Note that this worker has read the registry just now; the gauge keeps when, `render` shows how long ago."""
        self.registry_age.labels("default").set(time.monotonic())

    def expect(self, active_jobs: Mapping[str, int]) -> None:
        """Report how many adaptations wait or run, by deployment."""
        if active_jobs == self._active:
            return
        for deployment in self._active.keys() | active_jobs.keys():
            self._expect_events(deployment)
            self.active_jobs.labels(deployment).set(active_jobs.get(deployment, 0))
        self._active = dict(active_jobs)

    def _expect_events(self, deployment: str) -> None:
        """Make the series exist that alerts watch: what appears with its first event has not grown, to Prometheus."""
        for state in _JOB_ENDS:
            self.jobs.labels(deployment, state)
        for cause in _CAUSES:
            self.rollbacks.labels(deployment, cause)
        for reason in _FAULTS:
            self.rejected.labels(deployment, reason)
            self.rejected.labels("", reason)

    def of_route(self, route: str) -> RouteMetrics:
        """Return what a request counts into; `route` must be one of ours, without what the client put into it."""
        if (found := self._routes.get(route)) is None:
            found = RouteMetrics(self.requests, self.request_seconds, self.requests_in_progress, route)
            self._routes[route] = found
        return found

    def expect_requests(self, routes: Iterable[str]) -> None:
        """Make the series of these routes exist: see `_expect_events`."""
        for route in routes:
            self.of_route(route)

    def reject(self, reason: str, deployment: str) -> None:
        """Count a refused request; `deployment` must be one that exists, or empty."""
        self.rejected.labels(deployment, reason).inc()

    def render(self, deployments: Collection[str] | None = None) -> bytes:
        """Return the metrics of all processes in the text format of Prometheus.

        Args:
            deployments: those that exist. Series of others are left out, so that deployments that come and go do not
                pile up in Prometheus. None if that is not known.
        """
        from prometheus_client import multiprocess

        if not self._is_shared:
            return _text(self._registry, deployments)
        source = multiprocess.MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        folder = Path(source._path)
        with alone(folder):
            try:
                merge_dead(folder)
            except OSError as error:  # for example no room; they are merged another time
                logger.warning("the metrics of processes that are gone cannot be merged: %s", error)
            return _text(source, deployments)

    def _reserve(self) -> None:
        """Give this process's metric files their blocks now: a mapped file on a full disk kills who writes to it."""
        if not self._is_shared or not hasattr(os, "posix_fallocate"):
            return
        from prometheus_client import multiprocess

        folder = Path(multiprocess.MultiProcessCollector(None)._path)  # type: ignore[no-untyped-call]
        for path in set(folder.glob("*.db")) - self._reserved:
            if path.stem.endswith(f"_{os.getpid()}"):
                try:
                    with path.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
                except OSError as error:  # tried again with the next soup
                    logger.warning("the metrics of this process have no room on the disk: %s", error)
                else:
                    self._reserved.add(path)


class _Shown:
    """The series of another collector, without those of deployments that are gone, and with ages as of now.

    An age that each worker would set itself stood still in one that hangs.
    """

    def __init__(self, source: "Collector", deployments: Collection[str] | None) -> None:
        self._source, self._deployments = source, None if deployments is None else {*deployments, ""}

    def collect(self) -> Iterator["Metric"]:
        """Yield the metrics."""
        for metric in self._source.collect():
            if self._deployments is not None:
                known = self._deployments
                metric.samples = [one for one in metric.samples if one.labels.get("deployment", "") in known]
            if metric.name == REGISTRY_AGE:
                now = time.monotonic()  # the same in all processes of a machine
                metric.samples = [one._replace(value=now - one.value) for one in metric.samples]
            yield metric


def _text(source: "Collector", deployments: Collection[str] | None) -> bytes:
    import prometheus_client as prometheus

    shown = prometheus.CollectorRegistry()
    shown.register(_Shown(source, deployments))
    return prometheus.generate_latest(shown)
