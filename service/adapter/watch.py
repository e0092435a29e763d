"""The watch at work: deployments whose confidence has collapsed go back; a thread of the adapter's process."""

import logging
import threading

from service.metrics import Metrics
from service.store.database import UNAVAILABLE, cause_of
from service.store.watches import Rollback, Watches

logger = logging.getLogger(__name__)


class WatchLoop:
    """Looks at what workers reported of watched deployments, until it is stopped. Jobs do not hold it up."""

    def __init__(self, watches: Watches, metrics: Metrics, *, seconds: float) -> None:
        self._watches, self._metrics, self._seconds = watches, metrics, seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def stop(self, *, timeout_seconds: float) -> None:
        """Stop."""
        self._stopping.set()
        self._thread.join(timeout_seconds)

    def look(self) -> None:
        """Judge every deployment that there is news of."""
        for deployment in self._watches.waiting():
            if (rollback := self._watches.judge(deployment)) is not None:
                tell(self._metrics, deployment, "confidence", rollback)

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            try:
                self.look()
            except UNAVAILABLE as error:
                logger.warning("the registry does not answer: %s", cause_of(error))
            except Exception:
                logger.exception("unexpected error, the watch goes on")


def tell(metrics: Metrics, deployment: str, cause: str, rollback: Rollback) -> None:
    """Count and log a rollback that was done."""
    metrics.rollbacks.labels(deployment, cause).inc()
    suspect = rollback.suspect
    logger.warning("%s: put back from version %d to %d: %s", deployment, *suspect[:2], rollback.reason)
