"""Faults that pass: the database or the store does not answer for a while."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.store.database import cause_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
STORE_SECONDS = 300.0  # how long a store may fail; without the database nothing can be done, so that has no limit
PASSING = (OperationalError, InterfaceError, PoolTimeout, OSError)


def retry(action: Callable[[], T], *, pause: Callable[[float], None]) -> T:
    """Return what an action returns; while a fault lasts that may pass, do it again after longer and longer pauses.

    Args:
        action: changes nothing, or may be done twice.
        pause: waits the seconds that it is given; may raise, which ends this.

    Raises:
        OSError: the store has failed for `STORE_SECONDS`.
    """
    seconds, deadline = FIRST_PAUSE_SECONDS, time.monotonic() + STORE_SECONDS
    while True:
        try:
            return action()
        except PASSING as error:
            if isinstance(error, OSError) and time.monotonic() + seconds > deadline:
                raise
            logger.warning("trying again in %g s: %s", seconds, cause_of(error))
        pause(seconds)
        seconds = min(2 * seconds, LONGEST_PAUSE_SECONDS)
