"""Hyper-parameters of the rivals: what was tried on a few shifts, and the best on those of other families."""

import json
import logging
import math
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from benchmarks.shifts.context import Context
from benchmarks.shifts.finetuning import Schedule
from benchmarks.shifts.sources import family_of
from training.documents import Frozen

logger = logging.getLogger(__name__)

FILE = Path(__file__).with_name("tuned.json")
FALLBACK = "cifar10-small"  # the base set whose choices stand in for those of one that was never tuned

Learned = Literal["support", "unseen"]


class Recalibration(Frozen):
    """BatchNorm statistics of an ingredient."""

    prior_images: float = Field(gt=0, description="pictures that the statistics of training count as, in every layer")


class Refit(Frozen):
    """A last layer fitted again."""

    min_images: int = Field(ge=0, description="with fewer labelled pictures the layer stays")


class FineTuning(Frozen):
    """Training of all weights."""

    schedule: Schedule


class Surgery(Frozen):
    """Training of one part."""

    part: float = Field(ge=0, le=1, description="where it lies: 0 the first, 1 the last")
    schedule: Schedule


class Tent(Frozen):
    """Entropy minimisation."""

    learns_on: Learned
    lr: float
    epochs: int


Options = Recalibration | Refit | FineTuning | Surgery | Tent
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

    def best(self, method: str, n: int, family: str) -> Trial:
        """Return the setting of greatest mean accuracy on shifts of other families, at the nearest n that was tried."""
        trials = self.methods[method]
        nearest = min({trial.n for trial in trials}, key=lambda tried: (abs(math.log(tried / n)), tried))
        return max((trial for trial in trials if trial.n == nearest), key=lambda trial: _elsewhere(trial, family))


def _elsewhere(trial: Trial, family: str) -> float:
    accuracies = [accuracy for shift, accuracy in trial.accuracy.items() if family_of(shift) != family]
    if not accuracies:
        raise ValueError(f"no shift of another family than {family} was tried")
    return float(np.mean(accuracies))


def chosen(context: Context, method: str, kind: type[Chosen]) -> Chosen:
    """Return the hyper-parameters of a method for the number of pictures at hand."""
    trials = trials_for(context.prepared.manifest.name)
    return kind.model_validate(trials.best(method, len(context.support), context.family).options)


@cache
def trials_for(base_set: str) -> Trials:
    """Return what was tried for a base set, or for another if it was never tuned."""
    known = read_trials()
    if base_set not in known:
        logger.info("%s was never tuned: rivals take the hyper-parameters of %s", base_set, FALLBACK)
    return known.get(base_set, known[FALLBACK])


def read_trials() -> dict[str, Trials]:
    """Return what was tried, by base set."""
    if not FILE.exists():
        return {}
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: Trials.model_validate(trials) for name, trials in found.items()}


def write_trials(base_set: str, trials: Trials) -> None:
    """Enter what was tried for a base set."""
    known = {**read_trials(), base_set: trials}
    found = {name: known[name].model_dump(mode="json") for name in sorted(known)}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    trials_for.cache_clear()
