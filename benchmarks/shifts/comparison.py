"""Paired differences between methods, and how sure they are: by n, over the suite and over families of shifts."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.shifts.bootstrap import Cell, Difference, Resampler
from benchmarks.shifts.results import Accuracies, Results
from benchmarks.shifts.sets import FOLDER_SETS
from benchmarks.shifts.sources import family_of

APART = 10_000_000  # pictures of two sets have numbers further apart than this
SUITE = "all shifts"

Floats = npt.NDArray[np.float64]


class Comparison:
    """One method against others on the same draws.

    Attributes:
        ours: the method.
        families: of the shifts, each once.
    """

    def __init__(self, results: Results, accuracies: Accuracies, ours: str) -> None:
        """Read what was answered right; resampling is left until it is asked for."""
        self.ours = ours
        self._results, self._accuracies = results, accuracies
        settings = results.settings
        self.families = tuple(dict.fromkeys(family_of(shift) for shift in settings.shifts))
        self._resamplers: dict[tuple[tuple[str, int], ...], Resampler] = {}
        self._found: dict[tuple[str, int], dict[str, Difference]] = {}

    def against(self, other: str, n: int) -> dict[str, Difference]:
        """Return how far ours is above another method: over all shifts (`SUITE`), and by family.

        Empty where the other was not run. Only draws that both were given count. Of a method chosen in hindsight it is
        not kept which pictures were right: then there are no samples.
        """
        if (other, n) not in self._found:
            self._found[other, n] = self._compare(other, n)
        return self._found[other, n]

    def _compare(self, other: str, n: int) -> dict[str, Difference]:
        settings = self._results.settings
        one, two = self._results.records(self.ours, n), self._results.records(other, n)
        keys = tuple(key for key in one if key in two)
        if not keys:
            return self._plain(other, n)
        differences = []
        for key in keys:
            right = [found[key].right(settings.n_test) for found in (one, two)]
            if right[0] is None or right[1] is None:
                return self._plain(other, n)
            differences.append(right[0].astype(np.float64) - right[1])
        resampler = self._resampler(keys)
        by_family = resampler.compare(differences, [family_of(shift) for shift, _ in keys])
        return {**by_family, **resampler.compare(differences, [SUITE] * len(keys))}

    def _plain(self, other: str, n: int) -> dict[str, Difference]:
        settings = self._results.settings
        j = settings.n.index(n)
        gaps = self._accuracies[self.ours][:, j] - self._accuracies[other][:, j]
        groups = np.asarray([family_of(shift) for shift in settings.shifts])
        rows: dict[str, Floats] = {SUITE: gaps}
        rows |= {family: gaps[groups == family] for family in self.families}
        return {
            group: Difference(float(np.nanmean(values)), np.empty(0))
            for group, values in rows.items()
            if not np.isnan(values).all()
        }

    def _resampler(self, keys: tuple[tuple[str, int], ...]) -> Resampler:
        if keys not in self._resamplers:
            rows = self._results.landscapes.records
            self._resamplers[keys] = Resampler.of(
                [Cell(shift, seed, _numbered(shift, rows[shift, seed].pictures)) for shift, seed in keys]
            )
        return self._resamplers[keys]


def _numbered(shift: str, pictures: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return numbers that no picture of another set has; all computed shifts are of one set."""
    number = 1 + list(FOLDER_SETS).index(shift) if shift in FOLDER_SETS else 0
    return np.asarray(pictures, dtype=np.int64) + APART * number
