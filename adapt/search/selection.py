"""The choice among models, the same for all labelled images and without each fold: nested cross-validation.

A selection on some of the images climbs from rung to rung. Each rung is fitted without every fold of these images in
turn, answers the fold, and is taken where those held-out answers are better than the ones of the model below. So the
choice for a fold is made by the other folds alone, and its answers to the fold are evidence.

Source: nested cross-validation, Varma & Simon, BMC Bioinformatics 7:91, 2006.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from adapt.evidence.cross_fit import CrossFit
from adapt.evidence.scores import TEMPERATURES, Bools, Floats, part
from adapt.rungs.head import LEADS
from adapt.rungs.model import Answers, Model, Rung, judge, total
from adapt.rungs.pool import Library
from adapt.rungs.task import Part
from adapt.search.climb import Climb, Fold
from adapt.search.trials import Trial, answered_by, best_of

MAX_TEMPERATURE = 1000.0  # of the current soup where it is judged; the least is the candidates' least

TOO_SLOW = "effort=quick leaves out what trains weights"


@dataclass(frozen=True)
class Selected:
    """The choice of a search.

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
    climb = Climb(library, [rung for rung in rungs if rung.num_parts is None])
    whole = Part(np.ones(len(task.support), dtype=np.bool_), pool.eligible)
    model = climb.select(whole)
    not_tried = dict(climb.refused)
    if pool.eligible_without is None:
        not_tried |= dict.fromkeys((rung.name for rung in rungs), "nothing can be held out")
        return Selected(model, None, None, (), not_tried)
    folds = [Fold(out, some, climb.select(some)) for out, some in climb.parts(whole)]
    tried, trials = climb.tried(whole), list[Trial]()
    for rung in rungs:
        if rung.num_parts is None:
            continue
        why = rung.refuse(model, whole)
        if is_quick and why in (None, LEADS):  # a full search does not start from the current version
            why = TOO_SLOW
        trial = Trial(rung, climb, library, folds)
        if (why := why or trial.refusal()) is not None:
            not_tried[rung.name] = why
        elif trial.run():
            tried += trial.own
            trials.append(trial)
    if (best := best_of(trials, whole.images)) is not None:
        model = best.trial.model(whole, best.variant) or model
    folds = [answered_by(best_of(trials, ~fold.held_out), number, fold) for number, fold in enumerate(folds)]
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


def _cross_fit(library: Library, folds: Sequence[Fold], logits: Tensor, chosen: np.ndarray) -> CrossFit:
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
