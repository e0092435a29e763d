"""The hyper-parameters of the rivals: what was tried on a few shifts, and the best on those of other families."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import Field

from benchmarks.shifts.context import Context
from benchmarks.shifts.grids import SAME, is_large, middle
from benchmarks.shifts.sources import family_of
from training.documents import Frozen

logger = logging.getLogger(__name__)

FILE = Path(__file__).with_name("tuned.json")
FALLBACK = "cifar10-small"  # whose choices stand in for those of a base set of small pictures that was never tuned

Chosen = TypeVar("Chosen", bound=Frozen)


class Trial(Frozen):
    """One setting of a method with n labelled pictures, and its accuracy by shift."""

    n: int
    options: dict[str, Any]
    accuracy: dict[str, float]


class Trials(Frozen):
    """All that was tried for one base set."""

    command: str
    n_test: int
    methods: dict[str, tuple[Trial, ...]]
    families: dict[str, str] = Field(
        default={}, description="of shifts, where they are not those of the suite: a domain is a family of its own"
    )

    def best(self, method: str, n: int, family: str) -> Trial:
        """Return the setting of greatest mean accuracy on other families, at the nearest n that was tried there.

        Families count alike, however many shifts of each were tried.

        Raises:
            ValueError: nothing was tried on another family.
        """
        elsewhere = {
            position: mean
            for position, trial in enumerate(self.methods[method])
            if (mean := self._elsewhere(trial, family)) is not None
        }
        if not elsewhere:
            raise ValueError(f"{method}: no shift of another family than {family} was tried")
        trials = {position: self.methods[method][position] for position in elsewhere}
        nearest = min({trial.n for trial in trials.values()}, key=lambda tried: (abs(math.log(tried / n)), tried))
        there = [position for position, trial in trials.items() if trial.n == nearest]
        return trials[max(there, key=lambda position: elsewhere[position])]

    def family(self, shift: str) -> str:
        """Return the family of a shift."""
        return self.families.get(shift) or family_of(shift)

    def _elsewhere(self, trial: Trial, family: str) -> float | None:
        found: Mapping[str, list[float]] = defaultdict(list)
        for shift, accuracy in trial.accuracy.items():
            if self.family(shift) != family:
                found[self.family(shift)].append(accuracy)
        return float(np.mean([np.mean(values) for values in found.values()])) if found else None


def chosen(context: Context, method: str, kind: type[Chosen]) -> Chosen:
    """Return the hyper-parameters of a method for the number of pictures at hand.

    They are those given by hand; else the best on other families of shifts; where the method was never tuned for such a
    base set, the middle of what would be tried.
    """
    if (given := context.given.get(method)) is not None:
        return kind.model_validate(given.model_dump())
    manifest, n = context.prepared.manifest, len(context.support)
    trials = trials_for(manifest.name, large=is_large(manifest))
    tried = trials is not None and next((name for name in (method, SAME.get(method)) if name in trials.methods), None)
    if not trials or not tried:
        return kind.model_validate(middle(method, n).model_dump())
    return kind.model_validate(trials.best(tried, n, context.family).options)


@cache
def trials_for(base_set: str, *, large: bool = False) -> Trials | None:
    """Return what was tried for a base set; if it was never tuned, for another of small pictures, or None if large."""
    known = read_trials()
    if base_set not in known:
        instead = "the middle of what is tried" if large else f"the hyper-parameters of {FALLBACK}"
        logger.info("%s was never tuned: rivals take %s", base_set, instead)
    return known.get(base_set, None if large else known[FALLBACK])


def read_trials() -> dict[str, Trials]:
    """Return what was tried, by base set."""
    if not FILE.exists():
        return {}
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: Trials.model_validate(trials) for name, trials in found.items()}


def write_trials(base_set: str, trials: Trials) -> None:
    """Enter what was tried for a base set."""
    known = {**read_trials(), base_set: trials}
    found = {name: known[name].model_dump(mode="json", exclude_defaults=True) for name in sorted(known)}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    trials_for.cache_clear()
