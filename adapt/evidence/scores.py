"""Scores of soups on labelled images, and the choice among them. No torch.

Images may have weights, of mean 1, where some are to count more than others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Powers of sqrt(2): robust ingredients are under-confident (T < 1), over-fitted ones the opposite.
TEMPERATURES: tuple[float, ...] = tuple(2 ** (exponent / 2) for exponent in range(-3, 5))

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """The answers of C soups to n images.

    Attributes:
        losses: (C, T, n) cross-entropy at each of T temperatures; infinite for a soup that is not usable.
        correct: (C, n) whether the top class is the label.
    """

    losses: Floats
    correct: Bools

    def __post_init__(self) -> None:
        if self.losses.ndim != 3 or self.correct.shape != (self.losses.shape[0], self.losses.shape[2]):
            raise ValueError(f"expected (C, T, n) and (C, n), got {self.losses.shape} and {self.correct.shape}")

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Plain accuracy of each soup, (C,): fair for a soup that was not chosen on these images, only for those."""
        return np.asarray(self.correct.mean(axis=1), dtype=np.float64)

    def take(self, which: slice) -> "Scores":
        """Return the scores of some of the soups."""
        return Scores(self.losses[which], self.correct[which])

    @staticmethod
    def joined(parts: "Sequence[Scores]") -> "Scores":
        """Return the scores of the soups of several parts on the same images, in order."""
        return Scores(np.concatenate([part.losses for part in parts]), np.concatenate([part.correct for part in parts]))


class Choice(NamedTuple):
    """A soup and its temperature, as positions."""

    candidate: int
    temperature: int


def balanced_weights(labels: Ints) -> Floats:
    """Return weights (n,) of mean 1 under which all classes that occur count alike, however many images each has."""
    counts = np.bincount(labels)
    return (len(labels) / (np.count_nonzero(counts) * counts[labels])).astype(np.float32)


def part(weights: Floats | None, subset: Bools) -> Floats | None:
    """Return the weights of some of the images; None for equal ones."""
    return None if weights is None else weights[subset]


def temp_ce(losses: Floats, weights: Floats | None = None) -> tuple[npt.NDArray[np.float64], Ints]:
    """Return each soup's mean cross-entropy at its own best temperature, (C,), and that temperature's position, (C,).

    The temperature is part of the soup: without it, under-confident soups would lose to worse but bolder ones.

    Args:
        losses: (C, T, n).
        weights: (n,) of the images.
    """
    weighted = losses if weights is None else losses * weights
    means = weighted.mean(axis=2, dtype=np.float64)
    best = means.argmin(axis=1)
    return means[np.arange(len(means)), best], best


def choose(losses: Floats, eligible: Bools | None = None, weights: Floats | None = None) -> Choice:
    """Return the soup of least tempCE on these images (C, T, n); of equals the first, so put the current soup first.

    Args:
        losses: of the candidates.
        eligible: (C,) which of them may be chosen; None for all.
        weights: (n,) of the images.

    Raises:
        ValueError: no soup is usable.
    """
    values, temperatures = temp_ce(losses, weights)
    if eligible is not None:
        values = np.where(eligible, values, np.inf)
    candidate = int(values.argmin())
    if not np.isfinite(values[candidate]):
        raise ValueError("no candidate gives finite logits on the support images")
    return Choice(candidate, int(temperatures[candidate]))
