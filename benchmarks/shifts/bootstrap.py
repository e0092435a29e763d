"""How sure a paired difference is, over unseen pictures and draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SAMPLES = 2000
SEED = 0

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Difference(NamedTuple):
    """A mean paired difference.

    Attributes:
        mean: over shifts, draws and pictures.
        samples: means of the bootstrap samples.
    """

    mean: float
    samples: Floats

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of 95 %."""
        low, high = np.quantile(self.samples, (0.025, 0.975))
        return float(low), float(high)

    @property
    def p_value(self) -> float:
        """The two-sided p-value of `no difference`."""
        tails = (self.samples <= 0).sum(), (self.samples >= 0).sum()
        return float(min(1.0, 2 * (1 + min(tails)) / (1 + len(self.samples))))

    def p_not_below(self, margin: float) -> float:
        """Return the one-sided p-value of `at least margin`: small if the difference is clearly below it."""
        return float((1 + (self.samples >= margin).sum()) / (1 + len(self.samples)))


class Cell(NamedTuple):
    """The unseen pictures of one shift and draw."""

    shift: str
    draw: int
    pictures: Ints  # (t,) the same number is the same clean picture, in whatever shift and draw


@dataclass(frozen=True)
class Resampler:
    """Bootstrap samples over pictures and draws, the same for every comparison.

    A clean picture comes with all of its shifted versions, a draw with all of its shifts, as both are shared. The
    shifts themselves are not resampled: what is said holds for these.

    Attributes:
        cells: the shifts and draws there are.
        counts: (samples, pictures) how often a picture is in a sample.
        draws: (samples, cells) how often a cell's draw is in a sample.
        positions: of each cell, where its pictures are in `counts`.
    """

    cells: Sequence[Cell]
    counts: npt.NDArray[np.float32]
    draws: npt.NDArray[np.float32]
    positions: Sequence[Ints]

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> "Resampler":
        """Draw the samples."""
        generator = np.random.default_rng(SEED)
        known = np.unique(np.concatenate([cell.pictures for cell in cells]))
        counts = generator.multinomial(len(known), np.full(len(known), 1 / len(known)), size=SAMPLES)
        names = sorted({cell.draw for cell in cells})
        times = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=SAMPLES)
        draws = times[:, [names.index(cell.draw) for cell in cells]]
        positions = [np.searchsorted(known, cell.pictures) for cell in cells]
        return cls(cells, counts.astype(np.float32), draws.astype(np.float32), positions)

    def compare(self, differences: Sequence[Floats], groups: Sequence[str]) -> dict[str, Difference]:
        """Return the mean difference of each group of cells.

        Args:
            differences: of each cell (t,), one answer right less the other's.
            groups: of each cell.
        """
        shape = self.counts.shape[1], len(self.cells)
        values, there = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        for cell, (where, difference) in enumerate(zip(self.positions, differences, strict=True)):
            values[where, cell], there[where, cell] = difference, 1
        means = (self.counts @ values) / np.maximum(self.counts @ there, 1)
        plain = np.asarray([difference.mean() for difference in differences])
        found = {}
        for group in dict.fromkeys(groups):
            members = np.flatnonzero(np.asarray(groups) == group)
            weights = self.draws[:, members]
            # A sample may lack every draw of a group whose draws are fewer; then it counts them all alike.
            weights = np.where(weights.any(axis=1, keepdims=True), weights, 1)
            samples = (weights * means[:, members]).sum(axis=1) / weights.sum(axis=1)
            found[group] = Difference(float(plain[members].mean()), samples.astype(np.float64))
        return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number.

    Source: Holm, Scand. J. Statist. 6, 1979.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = highest
    return adjusted
