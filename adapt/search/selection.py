"""The choice among models, the same for all labelled images and without each fold: nested cross-validation.

A selection on some of the images climbs from rung to rung. Each rung is fitted without every fold of these images in
turn, answers the fold, and is taken where those held-out answers are better than the ones of the model below. So the
choice for a fold is made by the other folds alone, and what it answers for the fold is evidence.

Source: nested cross-validation, Varma & Simon, BMC Bioinformatics 7:91, 2006.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from adapt.evidence.cross_fit import CrossFit
from adapt.evidence.scores import TEMPERATURES, Bools, Floats, part
from adapt.evidence.significance import LARGE
from adapt.rungs.head import LEADS
from adapt.rungs.mixture import Mixture
from adapt.rungs.model import Answers, Model, Rung, judge, total
from adapt.rungs.pool import Library
from adapt.rungs.task import Part

MAX_TEMPERATURE = 1000.0  # of the current soup where it is judged; the least is the candidates' least
HOPELESS = 2.0  # standard errors by which the first folds are behind where a slow rung is given up

TOO_SLOW = "effort=quick leaves out what trains weights"

Step = tuple[Rung, int]  # a rung and its variant


@dataclass(frozen=True)
class Selected:
    """What a search chose.

    Attributes:
        model: fitted on all labelled images.
        fit: held-out answers of the selection and of the current soup; None where nothing can be held out.
        logits: (n, K) of the held-out answers, temperature applied; None likewise.
        tried: held-out answers of every rung that was tried.
        not_tried: why the others were not, by name of the rung.
        without: the model chosen without each fold, which answered the fold; none where nothing can be held out.
    """

    model: Model
    fit: CrossFit | None
    logits: Tensor | None
    tried: tuple[Answers, ...]
    not_tried: dict[str, str]
    without: tuple[Model, ...] = ()


class _Fold(NamedTuple):
    """A fold and what was selected without it."""

    held_out: Bools
    some: Part
    model: Model


def select(library: Library, rungs: Sequence[Rung], *, is_quick: bool = False) -> Selected:
    """Choose a model on all images, and without every fold; answer every fold with the choice made without it.

    Args:
        library: the candidates.
        rungs: in the order in which they are tried.
        is_quick: leave out those that are not nested; `not_tried` says so of each that could have been tried.

    Raises:
        ValueError: no candidate is usable.
    """
    task, pool = library.task, library.pool
    climb = _Climb(library, [rung for rung in rungs if rung.num_parts is None])
    whole = Part(np.ones(len(task.support), dtype=np.bool_), pool.eligible)
    model = climb.select(whole)
    not_tried = dict(climb.refused)
    if pool.eligible_without is None:
        not_tried |= dict.fromkeys((rung.name for rung in rungs), "nothing can be held out")
        return Selected(model, None, None, (), not_tried)
    folds = [_Fold(out, some, climb.select(some)) for out, some in climb.parts(whole)]
    tried, trials = climb.tried(whole), list[_Trial]()
    for rung in rungs:
        if rung.num_parts is None:
            continue
        why = rung.refuse(model, whole)
        if is_quick and why in (None, LEADS):  # a full search does not start from the current version
            why = TOO_SLOW
        trial = _Trial(rung, climb, library, folds)
        if (why := why or trial.refusal()) is not None:
            not_tried[rung.name] = why
        elif trial.run():
            tried += trial.own
            trials.append(trial)
    if (best := _best(trials, whole.images)) is not None:
        model = best.trial.model(whole, best.variant) or model
    folds = [_answered_by(_best(trials, ~fold.held_out), number, fold) for number, fold in enumerate(folds)]
    logits = torch.empty(len(task.support), len(task.support.class_names))
    chosen = np.empty(len(task.support), dtype=np.int64)
    for fold in folds:
        logits[torch.from_numpy(fold.held_out)] = fold.model.logits(fold.held_out).float()
        chosen[fold.held_out] = fold.model.candidate
    return Selected(
        model=model,
        fit=_cross_fit(library, folds, logits, chosen),
        logits=logits,
        tried=tuple(tried),
        not_tried=not_tried,
        without=tuple(fold.model for fold in folds),
    )


class _Climb:
    """Climbs the rungs that are cheap enough to be fitted without every two folds."""

    def __init__(self, library: Library, rungs: Sequence[Rung]) -> None:
        self._library, self._rungs = library, rungs
        self._mixture = Mixture(library)
        self._answers: dict[tuple[tuple[str, int], ...], dict[bytes, Answers]] = {}
        self.refused: dict[str, str] = {}

    def parts(self, some: Part) -> list[tuple[Bools, Part]]:
        """Return each fold of a part's images, and the part without it.

        A part that lacks a fold already keeps to the candidates which that fold has no part in.
        """
        without = self._library.pool.eligible_without
        assert without is not None, "there are folds to hold out"
        is_whole = bool(some.images.all())
        return [
            (out, Part(some.images & ~out, without[number] if is_whole else some.eligible))
            for number, out in enumerate(self._library.task.held_out_parts())
            if (some.images & out).any()
        ]

    def select(self, some: Part) -> Model:
        """Return the model that these images choose, fitted on them."""
        return self._model(self._path(some), some)

    def tried(self, some: Part) -> list[Answers]:
        """Return the held-out answers of all that was compared on a part; nothing where nothing was compared."""
        return [found[some.key] for found in self._answers.values() if some.key in found]

    def _path(self, some: Part) -> tuple[Step, ...]:
        path: tuple[Step, ...] = ()
        if self._library.pool.eligible_without is None or len(self.parts(some)) < 2:
            return path
        weights = part(self._library.task.weights, some.images)
        for rung in self._rungs:
            if (why := rung.refuse(self._model(path, some), some)) is not None:
                if some.images.all():
                    self.refused[rung.name] = why
                continue
            below = self._held_out(path, some)
            found = [self._held_out((*path, (rung, variant)), some) for variant in range(rung.num_variants)]
            best = int(np.argmin([total(answers.losses, weights) for answers in found]))
            if rung.is_better(below, found[best], weights):
                path = (*path, (rung, best))
        return path

    def _held_out(self, path: tuple[Step, ...], some: Part) -> Answers:
        """Answer a part's images, each fold by what a path leads to without it; (m,) in the order of the images."""
        kept = self._answers.setdefault(tuple((rung.name, variant) for rung, variant in path), {})
        if some.key not in kept:
            labels = self._library.task.support.labels
            losses, right = np.empty(len(labels), dtype=np.float32), np.empty(len(labels), dtype=np.bool_)
            for out, rest in self.parts(some):
                losses[out], right[out] = judge(self._model(path, rest).logits(out), labels[out])
            kept[some.key] = Answers(losses[some.images], right[some.images])
        return kept[some.key]

    def _model(self, path: tuple[Step, ...], some: Part) -> Model:
        """Return what a path leads to on a part."""
        model = self._mixture.fit(some)
        for rung, variant in path:
            model = rung.fit(model, some)[variant]
        return model


class _Trial:
    """Tries a slow rung: fits it once without each part of the images, and answers the part.

    What a rung is put on is what the cheap rungs choose without the part, and that is what its answers are compared
    with: both lack the same images. The model that answers a fold has not seen it. The decision for a fold, and the
    choice of a variant, have, indirectly: they rest on answers to the other folds by models that were fitted on the
    fold. benchmarks/gate measures what that does to the evidence.
    """

    def __init__(self, rung: Rung, climb: _Climb, library: Library, folds: Sequence[_Fold]) -> None:
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

    def best(self, some: Bools) -> "_Choice | None":
        """Return the variant that answers to some of the images ask for; None where they ask for none."""
        weights, below = part(self._weights, some), self._below.of(some)
        losses = [total(own.losses[some], weights) for own in self.own]
        variant = int(np.argmin(losses))
        if not self._rung.is_better(below, self.own[variant].of(some), weights):
            return None
        return _Choice(self, variant, total(below.losses, weights) - losses[variant])

    def model(self, whole: Part, variant: int) -> Model | None:
        """Return the rung fitted on all images; None where its numbers are not finite."""
        found = self._rung.fit(self._climb.select(whole), whole)[variant]
        return found if all(np.isfinite(array).all() for array in found.tensors.values()) else None

    @property
    def _groups(self) -> list[list[_Fold]]:
        """The folds that are held out together."""
        most = min(self._rung.num_parts or 1, len(self._folds))
        return [[self._folds[at] for at in group] for group in np.array_split(np.arange(len(self._folds)), most)]

    def _answer(self, out: Bools, below: Model, fitted: Sequence[Model]) -> None:
        for answers, model in zip((self._below, *self.own), (below, *fitted), strict=True):
            answers.losses[out], answers.right[out] = judge(model.logits(out), self._labels[out])

    def _is_behind(self, own: Answers, asked: Bools) -> bool:
        return _is_hopeless(self._below.losses[asked], own.losses[asked], part(self._weights, asked))


class _Choice(NamedTuple):
    """A variant of a slow rung, and by how much cross-entropy it is ahead of what it was put on."""

    trial: _Trial
    variant: int
    ahead: float


def _best(trials: Sequence[_Trial], some: Bools) -> _Choice | None:
    """Return what answers to some of the images ask for; None where the cheap rungs' choice stays."""
    found = [choice for trial in trials if (choice := trial.best(some)) is not None]
    return max(found, key=lambda choice: choice.ahead, default=None)


def _answered_by(choice: _Choice | None, number: int, fold: _Fold) -> _Fold:
    return fold if choice is None else fold._replace(model=choice.trial.fitted[number][choice.variant])


def _without(folds: Sequence[_Fold]) -> Part:
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


def _cross_fit(library: Library, folds: Sequence[_Fold], logits: Tensor, chosen: np.ndarray) -> CrossFit:
    task, standing = library.task, library.pool.standing
    before = np.empty(len(chosen), dtype=np.float32)
    for fold in folds:
        before[fold.held_out] = _current_losses(library, ~fold.held_out)[fold.held_out]
    after = judge(logits, task.support.labels)
    return CrossFit(
        chosen=chosen,
        current=library.pool.scores.correct[0],
        candidate=after.right,
        current_losses=before,
        candidate_losses=after.losses,
        judged=standing.judged,
        weights=task.weights,
    )


def _current_losses(library: Library, subset: Bools) -> Floats:
    """Return the current soup's losses (n,) at the temperature, however large, that is best on the subset.

    A fitted last layer can be as unsure as the labels call for; a temperature that could not would let it win by that
    alone.
    """
    standing, labels = library.pool.standing, library.task.support.labels
    logits, targets = standing.logits.double(), torch.from_numpy(labels)
    if not logits.isfinite().all():
        return np.full(len(targets), np.inf, dtype=np.float32)
    usable = subset & standing.judged
    seen = usable if usable.any() else subset
    index, weights = torch.from_numpy(seen), part(library.task.weights, seen)

    def losses(log_temperature: float) -> Tensor:
        return torch.nn.functional.cross_entropy(logits / np.exp(log_temperature), targets, reduction="none")

    best = optimize.minimize_scalar(
        lambda value: total(losses(value)[index].numpy(), weights),
        bounds=(np.log(TEMPERATURES[0]), np.log(MAX_TEMPERATURE)),
        method="bounded",
    )
    return losses(float(best.x)).float().numpy()
