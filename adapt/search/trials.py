"""Rungs that are slow to fit: tried on a few parts of the images, and taken where what they answer is better."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adapt.evidence.scores import Bools, Floats, part
from adapt.evidence.significance import LARGE
from adapt.rungs.model import Answers, Model, Rung, judge, total
from adapt.rungs.pool import Library
from adapt.rungs.task import Part
from adapt.search.climb import Climb, Fold

HOPELESS = 2.0  # standard errors by which the first parts are behind where a slow rung is given up


class Trial:
    """Tries a slow rung: fits it once without each part of the images, and answers the part.

    The rung starts from the model that the cheap rungs choose without the part. Its answers are compared with that
    model's: both lack the same images. The model that answers a fold has not seen the fold. The decision for a fold
    has seen it indirectly: it rests on answers to the other folds, by models that were fitted on this one. The same
    holds for the choice of a variant. benchmarks/gate measures what that does to the evidence.
    """

    def __init__(self, rung: Rung, climb: Climb, library: Library, folds: Sequence[Fold]) -> None:
        self._rung, self._climb, self._folds = rung, climb, folds
        self._labels, self._weights = library.task.support.labels, library.task.weights
        self._below = _no_answers(len(self._labels))
        self.own = [_no_answers(len(self._labels)) for _ in range(rung.num_variants)]
        self.fitted: list[Sequence[Model]] = []  # without each fold

    def refusal(self) -> str | None:
        """Return why the rung cannot be fitted without one of the parts; None if it can be without each.

        Answers that no fit gave would be compared as if they were the rung's.
        """
        for folds in self._groups:
            some = _without(folds)
            if (why := self._rung.refuse(self._climb.select(some), some)) is not None:
                return f"without one of the parts that are held out in turn: {why}"
        return None

    def run(self) -> bool:
        """Fit without each part in turn; return False, and stop, once all variants are clearly behind."""
        asked = np.zeros(len(self._labels), dtype=np.bool_)
        for number, folds in enumerate(self._groups):
            some = _without(folds)
            below = self._climb.select(some)
            fitted = self._rung.fit(below, some)
            for fold in folds:
                self.fitted.append(fitted)
                self._answer(fold.held_out, below, fitted)
                asked |= fold.held_out
            if number and all(self._is_behind(own, asked) for own in self.own):
                return False
        return True

    def best(self, some: Bools) -> "Choice | None":
        """Return the variant that answers to some of the images ask for; None where they ask for none."""
        weights, below = part(self._weights, some), self._below.of(some)
        losses = [total(own.losses[some], weights) for own in self.own]
        variant = int(np.argmin(losses))
        if not self._rung.is_better(below, self.own[variant].of(some), weights):
            return None
        return Choice(self, variant, total(below.losses, weights) - losses[variant])

    def model(self, whole: Part, variant: int) -> Model | None:
        """Return the rung fitted on all images; None where its numbers are not finite."""
        found = self._rung.fit(self._climb.select(whole), whole)[variant]
        return found if all(np.isfinite(array).all() for array in found.tensors.values()) else None

    @property
    def _groups(self) -> list[list[Fold]]:
        """The folds that are held out together."""
        most = min(self._rung.num_parts or 1, len(self._folds))
        return [[self._folds[at] for at in group] for group in np.array_split(np.arange(len(self._folds)), most)]

    def _answer(self, out: Bools, below: Model, fitted: Sequence[Model]) -> None:
        for answers, model in zip((self._below, *self.own), (below, *fitted), strict=True):
            answers.losses[out], answers.right[out] = judge(model.logits(out), self._labels[out])

    def _is_behind(self, own: Answers, asked: Bools) -> bool:
        return _is_hopeless(self._below.losses[asked], own.losses[asked], part(self._weights, asked))


class Choice(NamedTuple):
    """A variant of a slow rung, and by how much cross-entropy it is ahead of what it was put on."""

    trial: Trial
    variant: int
    ahead: float


def best_of(trials: Sequence[Trial], some: Bools) -> Choice | None:
    """Return what answers to some of the images ask for; None where the cheap rungs' choice stays."""
    found = [choice for trial in trials if (choice := trial.best(some)) is not None]
    return max(found, key=lambda choice: choice.ahead, default=None)


def answered_by(choice: Choice | None, number: int, fold: Fold) -> Fold:
    """Return a fold with the model that a choice has fitted without it; as it is where nothing was chosen."""
    return fold if choice is None else fold._replace(model=choice.trial.fitted[number][choice.variant])


def _without(folds: Sequence[Fold]) -> Part:
    """Return the images outside of some folds, and the candidates that none of these folds has a part in."""
    return Part(
        np.logical_and.reduce([fold.some.images for fold in folds]),
        np.logical_and.reduce([fold.some.eligible for fold in folds]),
    )


def _no_answers(n: int) -> Answers:
    return Answers(np.empty(n, dtype=np.float32), np.empty(n, dtype=np.bool_))


def _is_hopeless(below: Floats, own: Floats, weights: Floats | None) -> bool:
    excess = np.minimum(own, LARGE).astype(np.float64) - np.minimum(below, LARGE)
    excess = excess if weights is None else excess * weights
    return bool(excess.mean() > HOPELESS * excess.std() / len(excess) ** 0.5)
