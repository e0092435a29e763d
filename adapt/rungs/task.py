"""The task of a search: the images, the version to beat, the network, and who wants to know how far it is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adapt.documents.soup import BnMode, Soup
from adapt.evidence.draws import Draw
from adapt.evidence.scores import Bools, Floats, Ints
from adapt.images.support import Support
from adapt.networks.network import Network

Progress = Callable[[float, str], None]
ShouldStop = Callable[[], bool]


class Part(NamedTuple):
    """A part of the labelled images, and the candidates that a search on that part alone would have looked at."""

    images: Bools  # (n,)
    eligible: Bools  # (C,)

    @property
    def key(self) -> bytes:
        """A key that tells the part from others."""
        return self.images.tobytes() + self.eligible.tobytes()


@dataclass(frozen=True)
class Task:
    """The inputs of every rung.

    Attributes:
        network: the base set's.
        support: the labelled images, n of them.
        unlabelled: uint8 (m, H, W, 3), more images, a fair draw of those to be served; None for none.
        current: the soup to beat.
        bn_mode: how candidates mix BatchNorm that is not recalibrated.
        recalibrate: whether soups with recalibrated statistics are candidates too.
        folds: (n,) None where nothing can be held out.
        weights: (n,) of the images; None for equal ones.
        seed: of every training.
        report: told the fraction done and what is being done.
        should_stop: asked before each soup and each step of a training.
        draw: how the labelled images were drawn.
    """

    network: Network
    support: Support
    unlabelled: npt.NDArray[np.uint8] | None
    current: Soup
    bn_mode: BnMode
    recalibrate: bool
    folds: Ints | None
    weights: Floats | None
    seed: int
    report: Progress
    should_stop: ShouldStop | None
    draw: Draw = "any"

    @property
    def num_ingredients(self) -> int:
        """M."""
        return len(self.network.manifest.ingredients)

    @property
    def num_unlabelled(self) -> int:
        """Images without a label."""
        return 0 if self.unlabelled is None else len(self.unlabelled)

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Whether candidates are recalibrated: both kinds, or the one there is."""
        return (False, True) if self.recalibrate else (False,)

    def held_out_parts(self) -> list[Bools]:
        """Return the images (n,) of every fold; none where nothing can be held out."""
        return [] if self.folds is None else [self.folds == fold for fold in np.unique(self.folds)]

    def subsets(self) -> list[Bools]:
        """Return the images of each choice: without every fold in turn, then all."""
        return [*(~held_out for held_out in self.held_out_parts()), np.ones(len(self.support), dtype=np.bool_)]

    def part(self, low: float, high: float) -> "Task":
        """Return the task with its reports from 0 to 1 shown as from `low` to `high`."""
        return replace(self, report=lambda done, message: self.report(low + (high - low) * done, message))
