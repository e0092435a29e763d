"""Confidences of watched deployments, added up until the next heartbeat takes them to the registry."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.store.confidence import NOTHING, Tally
from service.store.moves import Pointer
from service.store.sums import Sums


class Batch(NamedTuple):
    """Sums that are handed over together."""

    number: int  # from 1
    sums: Sums


class Confidences:
    """Confidences of one worker's watched deployments, by version. Lives on one event loop."""

    def __init__(self) -> None:
        self._watches: Mapping[str, str] = {}
        self._sums: dict[tuple[str, int], Tally] = {}
        self._batch = Batch(0, {})

    def refresh(self, watches: Mapping[str, str]) -> None:
        """Add up for these watches, given by deployment, from now on."""
        self._watches = watches

    def offer(self, pointer: Pointer, confidences: npt.NDArray[np.float64]) -> None:
        """Add the confidences (n,) of the predicted classes of images that a version has answered."""
        if (watch := self._watches.get(pointer.name)) is not None:
            tally = Tally(len(confidences), float(confidences.sum()), float(confidences @ confidences))
            key = (watch, pointer.version)
            self._sums[key] = self._sums.get(key, NOTHING).plus(tally)

    def take(self) -> Batch:
        """Return what to hand over: again what was not confirmed, as it was, since the registry may have it already."""
        if not self._batch.sums:
            self._batch, self._sums = Batch(self._batch.number + 1, self._sums), {}
        return self._batch

    def confirm(self) -> None:
        """Forget the batch that was taken: the registry has it."""
        self._batch = Batch(self._batch.number, {})
