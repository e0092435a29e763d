"""While the adapter works on something: that is reported, it has a time limit, and it cannot hang for ever."""

import logging
import os
import threading
import time
from collections.abc import Callable

from service.store.database import UNAVAILABLE, cause_of

logger = logging.getLogger(__name__)

STOP_SECONDS = 60.0  # how long a search may take to stop, before its process is ended


class Heartbeat:
    """Reports in the background how far a piece of work is, and says when it should stop.

    Work that goes on regardless is hung: then the process ends, and the supervisor starts another one.

    Args:
        beat: reports the fraction done and what is being done; False if the work is not wanted any more.
        give_up: called before the process ends for work that is over its time.
        seconds: between two reports.
        limit_seconds: that the work may take.
        gives_way: asked with each report; True if other work should come first.
    """

    def __init__(
        self,
        beat: Callable[[float, str], bool],
        give_up: Callable[[], None],
        *,
        seconds: float,
        limit_seconds: float,
        gives_way: Callable[[], bool] = lambda: False,
    ) -> None:
        self._beat, self._give_up, self._seconds, self._gives_way = beat, give_up, seconds, gives_way
        self._deadline = time.monotonic() + limit_seconds
        self._latest = (0.0, "")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.is_lost = False  # nobody wants the work any more
        self.is_second = False  # other work comes first

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def is_late(self) -> bool:
        """The work takes longer than it may."""
        return time.monotonic() > self._deadline

    @property
    def should_stop(self) -> bool:
        """The work is to end now."""
        return self.is_lost or self.is_late or self.is_second

    def report(self, fraction: float, message: str) -> None:
        """Say how far the work is; the worker on the job calls it."""
        self._latest = (fraction, message)

    def _run(self) -> None:
        told_at = None
        while not self._done.wait(self._seconds):
            self._tell(lambda: setattr(self, "is_lost", not self._beat(*self._latest)))
            self._tell(lambda: setattr(self, "is_second", self.is_second or self._gives_way()))
            if not self.should_stop:
                told_at = None
                continue
            told_at = told_at or time.monotonic()
            if time.monotonic() - told_at > STOP_SECONDS:
                logger.error("a search did not stop within %g s: the adapter starts again", STOP_SECONDS)
                if self.is_late and not self.is_lost:
                    self._tell(self._give_up)
                os._exit(1)

    def _tell(self, action: Callable[[], object]) -> None:
        """Call a function that needs the registry; if it raises, the heartbeat goes on."""
        try:
            action()
        except UNAVAILABLE as error:
            logger.warning("the registry does not answer: %s", cause_of(error))
        except Exception:
            logger.exception("unexpected error, the heartbeat goes on")
