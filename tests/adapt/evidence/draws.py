"""Two-class soups drawn at random."""

import math

import numpy as np

from adapt.evidence.scores import TEMPERATURES, Scores


def scores_of(margins: np.ndarray) -> Scores:
    """Two-class soups from their margins (C, n): right where positive."""
    scaled = -margins[:, None, :] / np.asarray(TEMPERATURES)[:, None]
    return Scores(np.logaddexp(0, scaled).astype(np.float32), margins > 0)


def draw(generator: np.random.Generator, num_soups: int, n: int, *, alike: float = 0.0) -> Scores:
    """Soups that are all right with probability .69; `alike` is the correlation of their margins."""
    shared, own = generator.standard_normal(n), generator.standard_normal((num_soups, n))
    return scores_of(3 * (0.5 + math.sqrt(alike) * shared + math.sqrt(1 - alike) * own))


def deal(generator: np.random.Generator, n: int) -> np.ndarray:
    """The fold of each of n images."""
    return generator.permutation(np.arange(n) % 5)
