"""Prometheus metrics of the predictors and the adapter. All carry the label `deployment`."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

logger = logging.getLogger(__name__)

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_LONG_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0)
_CONFIDENCES = tuple(step / 20 for step in range(1, 21))
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class DeploymentMetrics(NamedTuple):
    """What every request to one deployment counts into."""

    images: "Counter"
    confidence: "Histogram"
    inference: "Histogram"
    batch_size: "Histogram"
    swap: "Histogram"
    hits: "Counter"
    misses: "Counter"
    evictions: "Counter"
    sessions: "Gauge"
    session_bytes: "Gauge"


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
        self.hits = prometheus.Counter("saucier_session_hits", "Requests whose session was there.", by, **kwargs)
        self.misses = prometheus.Counter(
            "saucier_session_misses", "Requests that waited for their session to be built.", by, **kwargs
        )
        self.evictions = prometheus.Counter(
            "saucier_session_evictions", "Sessions that made room for others.", by, **kwargs
        )
        held: Any = "livesum"
        self.sessions = prometheus.Gauge(
            "saucier_sessions", "Sessions held, of all workers.", by, multiprocess_mode=held, **kwargs
        )
        self.session_bytes = prometheus.Gauge(
            "saucier_session_bytes",
            "About how much memory those sessions keep.",
            by,
            multiprocess_mode=held,
            **kwargs,
        )
        self.jobs = prometheus.Counter("saucier_adapt_jobs", "Adaptations that ended.", [*by, "state"], **kwargs)
        self.adapt = prometheus.Histogram(
            "saucier_adapt_seconds", "Duration of one adaptation.", by, buckets=_LONG_SECONDS, **kwargs
        )
        self.accuracy = prometheus.Gauge(
            "saucier_adapt_accuracy",
            "Cross-fitted accuracy of the last adaptation.",
            [*by, "which"],
            multiprocess_mode="mostrecent",
            **kwargs,
        )
        self.rejected = prometheus.Counter("saucier_rejected", "Requests refused.", [*by, "reason"], **kwargs)
        self._is_shared = values.ValueClass is not values.MutexValue
        self._reserved: set[Path] = set()

    def of(self, deployment: str) -> "DeploymentMetrics":
        """Return what a request to `deployment` counts into; all series exist from now on."""
        self.swap_failures.labels(deployment)
        return DeploymentMetrics(
            images=self.images.labels(deployment),
            confidence=self.confidence.labels(deployment),
            inference=self.inference.labels(deployment),
            batch_size=self.batch_size.labels(deployment),
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
        for ingredient, coefficient in coefficients.items():
            self.coefficient.labels(deployment, ingredient).set(coefficient)
        self._reserve()

    def reject(self, reason: str, deployment: str) -> None:
        """Count a refused request; `deployment` must be one that exists, or empty."""
        self.rejected.labels(deployment, reason).inc()

    def render(self) -> bytes:
        """Return the metrics of all processes in the text format of Prometheus."""
        import prometheus_client as prometheus
        from prometheus_client import multiprocess

        if not self._is_shared:
            return prometheus.generate_latest(self._registry)
        for pid in self._dead_processes():
            multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
        merged = prometheus.CollectorRegistry()
        multiprocess.MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
        return prometheus.generate_latest(merged)

    def _files(self) -> list[Path]:
        from prometheus_client import multiprocess

        folder = multiprocess.MultiProcessCollector(None)._path  # type: ignore[no-untyped-call]
        return list(Path(folder).glob("*.db"))

    def _dead_processes(self) -> set[int]:
        """Processes that left gauges behind (killed workers)."""
        pids = {int(path.stem.rpartition("_")[2]) for path in self._files() if path.name.startswith("gauge_live")}
        return {pid for pid in pids if not _is_alive(pid)}

    def _reserve(self) -> None:
        """Give this process's metric files their blocks now: a mapped file on a full disk kills who writes to it."""
        if not self._is_shared or not hasattr(os, "posix_fallocate"):
            return
        for path in set(self._files()) - self._reserved:
            if path.stem.endswith(f"_{os.getpid()}"):
                self._reserved.add(path)
                try:
                    with path.open("r+b") as file:
                        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
                except OSError as error:
                    logger.warning("the metrics of this process have no room on the disk: %s", error)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
