"""Confidences of watched deployments, added up until the next heartbeat takes them to the registry."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from service.store.confidence import NOTHING, Tally
from service.store.registry import Pointer
from service.store.sums import Sums


class Confidences:
    """What one worker's watched deployments answered, by version. Lives on one event loop."""

    def __init__(self) -> None:
        self._watches: Mapping[str, str] = {}
        self._sums: dict[tuple[str, int], Tally] = {}

    def refresh(self, watches: Mapping[str, str]) -> None:
        """Add up for these watches, given by deployment, from now on."""
        self._watches = watches

    def offer(self, pointer: Pointer, confidences: npt.NDArray[np.float64]) -> None:
        """Add the confidences (n,) of the predicted classes of images that a version has answered."""
        if (watch := self._watches.get(pointer.name)) is not None:
            tally = Tally(len(confidences), float(confidences.sum()), float(confidences @ confidences))
            self._add((watch, pointer.version), tally)

    def take(self) -> Sums:
        """Return the sums, and start anew."""
        taken, self._sums = self._sums, {}
        return taken

    def give_back(self, sums: Sums) -> None:
        """Keep sums for the next time: the registry did not take them."""
        for key, tally in sums.items():
            self._add(key, tally)

    def _add(self, key: tuple[str, int], tally: Tally) -> None:
        self._sums[key] = self._sums.get(key, NOTHING).plus(tally)
