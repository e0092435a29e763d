"""Accuracies of what was found, averaged over draws, domains and corruptions."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from benchmarks.shifts.domains.study import CORRUPTIONS, Record, family_of

MEAN = "mean"


class Estimate(NamedTuple):
    """A mean over draws, with its standard error; None of one draw."""

    mean: float
    error: float | None
    draws: int


class Values:
    """Accuracies by family (a folder of pictures, or all corruptions together), method, n and draw.

    Attributes:
        families: in order; corruptions last.
        averaged: those whose mean is reported: the folders, or the corruptions if there is no folder.
        methods: in order of first appearance.
        counts: of labelled pictures, ascending.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        """Sort what was found."""
        self._records = list(records)
        domains = list(dict.fromkeys(record.domain for record in self._records))
        self._members: dict[str, list[str]] = defaultdict(list)
        for domain in domains:
            self._members[family_of(domain)].append(domain)
        folders = [family for family in self._members if family != CORRUPTIONS]
        self.families = (*folders, *([CORRUPTIONS] if CORRUPTIONS in self._members else []))
        self.averaged = tuple(folders) or self.families
        self.methods = tuple(dict.fromkeys(record.method for record in self._records))
        self.counts = tuple(sorted({record.n for record in self._records}))
        self._accuracy = {record.key: record.found.accuracy for record in self._records}
        self._draws = sorted({record.draw for record in self._records})

    def members(self, family: str) -> list[str]:
        """Return the domains of a family."""
        return self._members[family]

    def by_draw(self, what: str, method: str, n: int) -> dict[int, float]:
        """Return accuracies by draw: of a domain, a family, or the mean of the averaged ones (`MEAN`).

        A draw counts if it has all domains that are averaged.
        """
        found = {}
        for draw in self._draws:
            value = self._at(what, method, n, draw)
            if value is not None:
                found[draw] = value
        return found

    def estimate(self, what: str, method: str, n: int) -> Estimate | None:
        """Return the mean over draws; None where nothing was measured."""
        return estimate(list(self.by_draw(what, method, n).values()))

    def difference(self, what: str, one: str, other: str, n: int) -> Estimate | None:
        """Return how far one method is above another, over the draws that both have."""
        ours, theirs = self.by_draw(what, one, n), self.by_draw(what, other, n)
        return estimate([ours[draw] - theirs[draw] for draw in ours if draw in theirs])

    def timed(self, method: str, n: int) -> list[Record]:
        """Return what a method found with n labelled pictures on a CPU: other times are not comparable."""
        return [record for record in self._records if (record.method, record.n, record.device) == (method, n, "cpu")]

    def num_elsewhere(self) -> int:
        """Return how many results were made on another device than a CPU."""
        return sum(record.device != "cpu" for record in self._records)

    def num_draws(self) -> int:
        """Return how many draws there are of anything."""
        return len(self._draws)

    def _at(self, what: str, method: str, n: int, draw: int) -> float | None:
        if what == MEAN:
            return _mean([self._at(family, method, n, draw) for family in self.averaged])
        if what in self._members:
            return _mean([self._accuracy.get((domain, n, draw, method)) for domain in self._members[what]])
        return self._accuracy.get((what, n, draw, method))


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean and standard error of values, one of each draw."""
    if not values:
        return None
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return Estimate(float(np.mean(values)), error, len(values))


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there and len(there) == len(values) else None


def contract(values: Values, n_test: int) -> dict[str, Any]:
    """Return what `--json` prints and `results.json` holds; a number that was not measured is left out."""
    names = [domain for family in values.families for domain in values.members(family)]
    names += [CORRUPTIONS] if CORRUPTIONS in values.families else []
    return {
        "mean": _means(values, MEAN),
        "shifts": {name: _means(values, name) for name in names},
        "standard_error": {name: _errors(values, name) for name in (MEAN, *names)},
        "seconds": _seconds(values),
        "averaged": list(values.averaged),
        "seeds": values.num_draws(),
        "n_test": n_test,
    }


def _means(values: Values, what: str) -> dict[str, dict[str, float]]:
    return _by_method(values, what, lambda found: found.mean)


def _errors(values: Values, what: str) -> dict[str, dict[str, float]]:
    return _by_method(values, what, lambda found: found.error)


def _by_method(values: Values, what: str, part: Callable[[Estimate], float | None]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for method, n in product(values.methods, values.counts):
        there = values.estimate(what, method, n)
        if there is not None and (number := part(there)) is not None:
            found[method][str(n)] = round(number, 6)
    return dict(found)


def _seconds(values: Values) -> dict[str, dict[str, float]]:
    return {
        method: {
            str(n): round(float(np.mean([record.found.cpu_seconds or 0 for record in there])), 3)
            for n in values.counts
            if (there := values.timed(method, n))
        }
        for method in values.methods
    }
