"""What the rungs of the ladder hand to one another."""

from typing import NamedTuple

from torch import Tensor

from adapt.documents.patch import Tensors
from adapt.evidence.score import CrossFit
from adapt.rungs.head import Head
from adapt.search.candidates import Bools


class Fit(NamedTuple):
    """What a choice fell on.

    Attributes:
        candidate: position in the pool.
        temperature: position in `TEMPERATURES`, of the candidate with its own last layer.
        penalty: position in `PENALTIES`; None where the last layer stays.
        head: the fitted layer, the temperature within; None where the last layer stays.
        early: trained first layers, scales and shifts, by state-dict key; None where they stay. The last layer stays
            then, and new statistics are among them.
    """

    candidate: int
    temperature: int
    penalty: int | None = None
    head: Head | None = None
    early: Tensors | None = None


class Climb(NamedTuple):
    """How far the ladder was climbed.

    Attributes:
        choice: on all images.
        fit: held-out answers; None where nothing can be held out.
        kind: (C,) the candidates that were chosen among.
    """

    choice: Fit
    fit: CrossFit | None
    kind: Bools


class Standpoint(NamedTuple):
    """A choice on a subset of the images, as it answers all of them.

    Attributes:
        features: (n, D), what the last layer is given.
        statistics: of the subset; None where the choice is not recalibrated.
        temperature: on the subset, of its own last layer.
        head: the last layer that answers: its own, the temperature within, or a fitted one.
    """

    features: Tensor
    statistics: Tensors | None
    temperature: float
    head: Head
