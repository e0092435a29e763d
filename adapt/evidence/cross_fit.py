"""Held-out answers of a search and of the current soup, and their comparison. No torch."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from adapt.evidence.scores import Bools, Floats, Ints, part
from adapt.evidence.significance import LARGE, evidence, labels_needed, paired_interval, paired_p

NUM_FOLDS = 5


@dataclass(frozen=True)
class CrossFit:
    """Held-out answers: the model that answered image i, its temperature included, was chosen without image i.

    Attributes:
        chosen: (n,) position of the candidate that answered.
        current: (n,) the current soup was right.
        candidate: (n,) the chosen one was right.
        current_losses: (n,) cross-entropy of the current soup at a temperature fitted to the other folds.
        candidate_losses: (n,) the same of the chosen one.
        judged: (n,) the images by which the two are compared: those for which the current soup, too, has an answer
            made without the image.
        weights: (n,) of the images, of mean 1; None for equal ones.
    """

    chosen: Ints
    current: Bools
    candidate: Bools
    current_losses: Floats
    candidate_losses: Floats
    judged: Bools
    weights: Floats | None = None

    @property
    def gains(self) -> Floats:
        """How much better the candidate does on each judged image, (m,); see `evidence`. Weights are applied."""
        after, before = np.minimum(self.candidate_losses, LARGE), np.minimum(self.current_losses, LARGE)
        found = evidence(after - before, self.candidate, self.current)
        return (found if self.weights is None else found * self.weights)[self.judged]

    def share(self, answers: Bools) -> float:
        """Return the weighted share of the judged images for which this (n,) is true."""
        return float(np.average(answers[self.judged], weights=part(self.weights, self.judged)))


class Comparison(NamedTuple):
    """The comparison of candidate and current soup by held-out answers. Accuracies are fractions."""

    current: float
    candidate: float
    interval: tuple[float, float]  # 95 %, of the gain
    p_value: float  # one-sided, of `candidate no better than current`
    labels_needed: int | None  # to prove the gain seen; None if proven, or too small to say
    error: float  # standard error of the gain in accuracy, the folds' dependence included
    fresh: int  # judged images that the current soup was not fitted on
    held_out: int  # judged images for which the current soup has an answer made without them


def compare_answers(fit: CrossFit, *, fresh: Bools, dependence: float, threshold: float) -> Comparison | None:
    """Return accuracies, the interval of their gain and the p-value; None where the current soup cannot be judged.

    The interval is about accuracy alone, and so wider than the p-value would have it.

    Args:
        fit: the held-out answers; with weights, accuracies are weighted too, and the interval is that of as many equal
            images as have the same noise.
        fresh: (n,) images that the current soup was not fitted on.
        dependence: from `fold_dependence`.
        threshold: p-value below which a gain is proven, for `labels_needed`.
    """
    n = int(fit.judged.sum())
    if n == 0:
        return None
    counts = part(fit.weights, fit.judged)
    equal = n if counts is None else float(counts.sum() ** 2 / (counts**2).sum())
    wins, losses = fit.share(fit.candidate & ~fit.current), fit.share(fit.current & ~fit.candidate)
    p_value = paired_p(fit.gains, dependence=dependence)
    gain = wins - losses
    return Comparison(
        current=fit.share(fit.current),
        candidate=fit.share(fit.candidate),
        interval=paired_interval(equal * wins, equal * losses, equal, dependence=dependence),
        p_value=p_value,
        labels_needed=None if p_value < threshold else labels_needed(p_value, n, threshold=threshold),
        error=dependence * float(np.sqrt(max(wins + losses - gain * gain, 1 / equal) / equal)),
        fresh=int((fit.judged & fresh).sum()),
        held_out=int((fit.judged & ~fresh).sum()),
    )
