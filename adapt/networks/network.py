"""The networks of a base set, as a search uses them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode
from adapt.networks.last_layer import Head
from training.manifest import Manifest


class Cancelled(RuntimeError):
    """The caller asked a search to stop."""


class Run(NamedTuple):
    """The answers of soups to n images.

    Attributes:
        logits: (C, n, K) float32 on the CPU; NaN for a soup that is not usable.
        features: of each soup float32 (n, D) on the CPU, the inputs of the last layer; None if there is no such layer,
            or the soup is not usable.
        statistics: of each soup, by state-dict key; None where they were not recalibrated.
        image_forwards: images through the network.
    """

    logits: Tensor
    features: tuple[Tensor | None, ...]
    statistics: tuple[Tensors | None, ...]
    image_forwards: int


@runtime_checkable
class Network(Protocol):
    """All soups of a base set; `adapt.networks.prepared.PreparedBase` is one, simulations are others."""

    @property
    def manifest(self) -> Manifest:
        """The base set's manifest."""

    @property
    def has_batchnorm(self) -> bool:
        """Whether there are BatchNorm statistics to fold or to recalibrate."""

    @property
    def can_recalibrate(self) -> bool:
        """Whether statistics of training are known: those of BatchNorm, or moments in the base set."""

    @property
    def head_key(self) -> str | None:
        """The last layer's name in the state dict, if it is a linear layer on one vector per image, else None."""

    def canonical(self, bn_mode: BnMode) -> BnMode:
        """Return the mode; always "folded" for a network without BatchNorm, where both are the same."""

    def head(self, coefficients: Sequence[float], patch: Tensors | None = None) -> Head | None:
        """Return the last layer of a soup; None where it is not linear."""

    def usable(self, coefficients: npt.NDArray[np.float64], bn_mode: BnMode) -> npt.NDArray[np.bool_]:
        """Say for each soup (C, M) whether its running variances stay positive, (C,)."""

    def run(
        self,
        coefficients: npt.NDArray[np.float64],
        images: npt.NDArray[np.uint8],
        *,
        bn_mode: BnMode = "folded",
        patch: Tensors | None = None,
        recalibrate: bool = False,
        unlabelled: npt.NDArray[np.uint8] | None = None,
        progress: Callable[[float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Run:
        """Return logits, last layer's inputs and new statistics of every soup: see `adapt.networks.forward`."""


def check_stop(should_stop: Callable[[], bool] | None) -> None:
    """Raise Cancelled if the caller says so."""
    if should_stop is not None and should_stop():
        raise Cancelled("the search was stopped before it was done")
