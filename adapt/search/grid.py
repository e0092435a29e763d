"""Coefficient grids: the candidates of a search. Counted before they are built. Imports no torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.manifest import COEFFICIENT_SUM_TOLERANCE

MAX_CANDIDATES = 2000
MIN_INGREDIENTS, MAX_INGREDIENTS = 2, 16
GridKind = Literal["affine", "simplex"]
Grid = npt.NDArray[np.float64]  # (C, M), every row sums to 1

DEFAULT_STEP: dict[GridKind, float] = {"affine": 0.25, "simplex": 0.1}
BOUNDS: dict[GridKind, tuple[float, float]] = {"affine": (-0.25, 1.25), "simplex": (0.0, 1.0)}
ROUNDED = 1e-5  # a step may be this far from 1 divided by a whole number, relatively: 0.333333 is one third


class GridTooLarge(ValueError):
    """A grid of more than `MAX_CANDIDATES` soups. The message names a coarser step."""


@dataclass(frozen=True)
class Lattice:
    """All coefficient vectors of multiples of `step` within [low, high] that sum to 1.

    The step is 1 divided by a whole number, so that every ingredient alone is on the lattice.
    """

    step: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1 or abs(self.step * self.parts - 1) > ROUNDED:
            raise ValueError(
                f"expected a step of 1 divided by a whole number (1, 0.5, 0.25, 0.2, ...), got {self.step:g}"
            )
        if not self.low <= 0 < 1 <= self.high:
            raise ValueError(f"expected bounds low <= 0 and high >= 1, got [{self.low:g}, {self.high:g}]")

    @property
    def parts(self) -> int:
        """Number of steps in 1."""
        return max(1, round(1 / self.step))

    def is_small(self, num_ingredients: int) -> bool:
        """Whether it has few enough points to be built."""
        return self.count(num_ingredients) <= MAX_CANDIDATES

    @property
    def integer_bounds(self) -> tuple[int, int]:
        """Bounds in whole steps, rounded inwards."""
        return math.ceil(self.low * self.parts - 1e-9), math.floor(self.high * self.parts + 1e-9)

    def count(self, num_ingredients: int) -> int:
        """Return the number of points by inclusion and exclusion, without building one."""
        low, high = self.integer_bounds
        total, width = self.parts - num_ingredients * low, high - low + 1
        return sum(
            (-1) ** over * math.comb(num_ingredients, over) * math.comb(left + num_ingredients - 1, num_ingredients - 1)
            for over in range(num_ingredients + 1)
            if (left := total - over * width) >= 0
        )

    def points(self, num_ingredients: int) -> Grid:
        """Return all points, shape (C, M), in lexicographic order.

        Raises:
            GridTooLarge: there are more than `MAX_CANDIDATES`.
            ValueError: fewer than 2 or more than 16 ingredients.
        """
        if not MIN_INGREDIENTS <= num_ingredients <= MAX_INGREDIENTS:
            raise ValueError(
                f"expected {MIN_INGREDIENTS} to {MAX_INGREDIENTS} ingredients for a grid, got {num_ingredients}"
            )
        if (count := self.count(num_ingredients)) > MAX_CANDIDATES:
            raise GridTooLarge(
                f"{self} has {count} candidates for {num_ingredients} ingredients, more than {MAX_CANDIDATES}; "
                f"use strategy surrogate, or a coarser step, e.g. {self._coarser(num_ingredients).step:g}"
            )
        low, high = self.integer_bounds
        rows = list(_compositions(self.parts, num_ingredients, low, high))
        return np.asarray(rows, dtype=np.float64) / self.parts

    def _coarser(self, num_ingredients: int) -> "Lattice":
        steps = (Lattice(1 / parts, self.low, self.high) for parts in range(self.parts, 0, -1))
        return next(lattice for lattice in steps if lattice.count(num_ingredients) <= MAX_CANDIDATES)

    def __str__(self) -> str:
        low, high = self.integer_bounds
        return f"step {self.step:g} in [{low / self.parts:g}, {high / self.parts:g}]"


def _compositions(total: int, length: int, low: int, high: int) -> Iterator[tuple[int, ...]]:
    """Yield all integer tuples of a length and sum with entries in [low, high], lexicographically."""
    if length == 1:
        if low <= total <= high:
            yield (total,)
        return
    for first in range(max(low, total - (length - 1) * high), min(high, total - (length - 1) * low) + 1):
        for rest in _compositions(total - first, length - 1, low, high):
            yield (first, *rest)


def lattice(kind: GridKind, step: float | None = None) -> Lattice:
    """Return the `affine` (default step 0.25 in [-0.25, 1.25]) or the `simplex` lattice (default step 0.1)."""
    low, high = BOUNDS[kind]
    return Lattice(DEFAULT_STEP[kind] if step is None else step, low, high)


def affine(num_ingredients: int, step: float = 0.25, low: float = -0.25, high: float = 1.25) -> Grid:
    """Return the affine grid (C, M): 149 candidates for four ingredients by default."""
    return Lattice(step, low, high).points(num_ingredients)


def simplex(num_ingredients: int, step: float = 0.1) -> Grid:
    """Return the simplex grid (C, M), no coefficient below 0: 286 candidates for four ingredients by default."""
    return Lattice(step, 0.0, 1.0).points(num_ingredients)


def finest(kind: GridKind, num_ingredients: int) -> Lattice:
    """Return the default lattice of this kind, or with a large pool the finest coarser one that is small enough."""
    wanted = lattice(kind)
    return wanted if wanted.count(num_ingredients) <= MAX_CANDIDATES else wanted._coarser(num_ingredients)


def custom(rows: Sequence[Sequence[float]] | Grid, num_ingredients: int) -> Grid:
    """Return a caller's own candidates as a grid (C, M).

    Raises:
        ValueError: wrong shape, not finite, or a row that does not sum to 1.
        GridTooLarge: more than `MAX_CANDIDATES` rows.
    """
    if len(rows) > MAX_CANDIDATES:
        raise GridTooLarge(f"expected at most {MAX_CANDIDATES} candidates, got {len(rows)}")
    grid = np.asarray(rows, dtype=np.float64)
    if grid.ndim != 2 or not len(grid) or grid.shape[1] != num_ingredients:
        raise ValueError(f"expected candidates of shape (C, {num_ingredients}), got {grid.shape}")
    if not np.isfinite(grid).all():
        raise ValueError("expected finite coefficients")
    if len(bad := np.flatnonzero(abs(grid.sum(axis=1) - 1) > COEFFICIENT_SUM_TOLERANCE)):
        raise ValueError(f"expected coefficients that sum to 1, candidate {bad[0]} sums to {grid[bad[0]].sum():.9g}")
    return grid
