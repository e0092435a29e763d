"""Whether what a predictor serves may be out of date, by when it last reported to the registry and followed it."""

import math
import time
from typing import NamedTuple


class Limits(NamedTuple):
    """Seconds."""

    silent: float  # without a report, after which rollouts no longer wait for a predictor
    unread: float  # since the registry was last read, after which probes say that a predictor is not ready


class Freshness:
    """Remembers times, of `time.monotonic`. For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.reported_at = -math.inf
        self._returned_at = self._followed_at = -math.inf  # when it reported after a silence, and last followed
        self._read_at = time.monotonic()
        self._is_cut_off = False  # the registry could not be read, and the next report is still to come

    @property
    def is_silent(self) -> bool:
        """The registry takes this predictor for one that is gone."""
        return time.monotonic() - self.reported_at > self._limits.silent

    @property
    def is_stale(self) -> bool:
        """Rollouts may have ended without this predictor, so it must not serve; if it cannot read it serves on."""
        return not self._is_cut_off and (self.is_silent or self._followed_at <= self._returned_at)

    @property
    def is_unread(self) -> bool:
        """The registry could not be read for long: others should get the requests, if there are others."""
        return time.monotonic() - self._read_at > self._limits.unread

    def could_not_read(self) -> None:
        """The registry did not answer."""
        self._is_cut_off = True

    def read(self) -> None:
        """The registry was read."""
        self._read_at = time.monotonic()

    def followed(self, since: float) -> None:
        """The worker serves the state of the registry at that moment."""
        self._followed_at = since
        self._is_cut_off = self._is_cut_off and self.is_silent

    def reported(self, since: float) -> None:
        """The registry knows that this predictor lived at that moment."""
        if self.is_silent:
            self._returned_at = time.monotonic()
        self.reported_at = since
