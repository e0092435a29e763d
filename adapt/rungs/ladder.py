"""The choice among candidates, and the next rung: their last layer as it is, or fitted again on the labelled images.

Every choice here is made from a subset of the labelled images: all of them for the answer, all but one fold for each
image that judges it. So what judges an image has never seen its label, whichever rungs were taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize
from torch import Tensor

from adapt.evidence.score import TEMPERATURES, CrossFit, Floats, choose, part, temp_ce
from adapt.networks.forward import score_logits
from adapt.rungs.choice import Climb, Fit, Standpoint
from adapt.rungs.head import PENALTIES, Head, fit_heads
from adapt.search.candidates import Bools, Ints, Library, Pool, Rerun, Task

MIN_HEAD_IMAGES = 50  # below, a wrong choice of the penalty costs more than a fitted layer gains
DOUBT = 1.0  # standard errors by which recalibrated candidates may be behind on held-out images
MAX_TEMPERATURE = 1000.0  # of the current soup where it is judged; the least is the candidates' least


@dataclass(frozen=True)
class Ladder:
    """Chooses from a pool, with any of the labelled images left out.

    Attributes:
        task: the images, their folds and weights.
        pool: the candidates; the current soup is at position 0.
        library: what their last layers are and are given, and their answers with other statistics.
        with_head: whether a last layer may be fitted again.
    """

    task: Task
    pool: Pool
    library: Library
    with_head: bool
    _heads: dict[tuple[int, bytes], list[Head]] = field(default_factory=dict, init=False, repr=False)
    _reruns: dict[tuple[int, bytes], Rerun] = field(default_factory=dict, init=False, repr=False)

    @property
    def labels(self) -> Ints:
        """Class indices of the images, (n,)."""
        return self.task.support.labels

    @property
    def folds(self) -> Ints | None:
        """Fold of each image, (n,); None where nothing can be held out."""
        return self.task.folds

    @property
    def weights(self) -> Floats | None:
        """Of the images, (n,); None for equal ones."""
        return self.task.weights

    def climb(self) -> Climb:
        """Return the choice on all images, and the held-out answers.

        Candidates with their BatchNorm as it is and recalibrated ones are two kinds. Statistics of the very images
        that score them flatter the latter, so held-out log-losses decide on the kind.

        Raises:
            ValueError: no candidate is usable.
        """
        everything = np.ones(len(self.labels), dtype=np.bool_)
        if self.folds is None:
            plain = ~self.pool.recalibrated
            return Climb(self.fit(everything, self.pool.eligible & plain), None, plain)
        kinds = [~self.pool.recalibrated]
        if (self.pool.eligible & self.pool.recalibrated).any():
            kinds.append(self.pool.recalibrated)
        best = kinds[0]
        if len(kinds) > 1:
            best = kinds[int(self._is_recalibration_borne_out(*(self.cross_fit(k, with_head=False) for k in kinds)))]
        return Climb(self.fit(everything, self.pool.eligible & best), self.cross_fit(best), best)

    def _is_recalibration_borne_out(self, plain: CrossFit, anew: CrossFit) -> bool:
        """Say whether held-out images are on the side of the recalibrated, or not clearly on the other.

        Their statistics lack a fold's images there, which few images feel: the doubt is theirs.
        """
        excess = anew.candidate_losses.astype(np.float64) - plain.candidate_losses
        if not np.isfinite(excess).all():
            return bool(np.isfinite(anew.candidate_losses).all())
        excess = excess if self.weights is None else excess * self.weights
        return bool(excess.mean() <= DOUBT * excess.std() / len(excess) ** 0.5)

    def fit(self, subset: Bools, eligible: Bools, *, with_head: bool = True) -> Fit:
        """Choose on a subset of the images (n,), among the eligible candidates (C,), with or without the last rung.

        Raises:
            ValueError: no candidate is usable.
        """
        candidate, temperature = choose(self.pool.scores.losses[:, :, subset], eligible, part(self.weights, subset))
        plain = Fit(candidate, temperature)
        if not with_head or not self.with_head or not self.has_enough(subset):
            return plain
        if (features := self.library.features(candidate)) is None:
            return plain
        penalty = self._best_penalty(candidate, features, subset)
        if penalty is None:
            return plain
        return Fit(candidate, temperature, penalty, self._fitted(candidate, features, subset)[penalty])

    def cross_fit(self, kind: Bools, *, with_head: bool = True) -> CrossFit:
        """Answer every image with the choice made without its fold, among the candidates (C,) of a kind.

        A recalibrated choice answers with statistics in which the fold has no part either.
        """
        assert self.folds is not None, "there are folds to hold out"
        n, scores = len(self.labels), self.pool.scores
        chosen, right = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.bool_)
        before, after = np.empty((2, n), dtype=np.float32)
        for held_out, found in self.fits(kind, with_head=with_head):
            chosen[held_out] = found.candidate
            before[held_out] = self._current_losses(~held_out)[held_out]
            after[held_out], right[held_out] = self._answers(found, held_out)
        return CrossFit(chosen, scores.correct[0], right, before, after, self.weights)

    def fits(self, kind: Bools, *, with_head: bool = True) -> Iterator[tuple[Bools, Fit]]:
        """Yield the images (n,) of every fold, and the choice that is made without them."""
        assert self.folds is not None, "there are folds to hold out"
        for number, fold in enumerate(np.unique(self.folds)):
            held_out = self.folds == fold
            yield held_out, self.fit(~held_out, self.among(kind, number), with_head=with_head)

    def among(self, kind: Bools, fold: int | None = None) -> Bools:
        """Return the candidates (C,) of a kind that may be chosen without a fold, or on all images.

        All of them where the search went on with the other kind: it looked at these whatever the labels say.
        """
        without = self.pool.eligible_without
        eligible = (self.pool.eligible if fold is None or without is None else without[fold]) & kind
        return eligible if eligible.any() else kind

    def standpoint(self, found: Fit, subset: Bools) -> Standpoint | None:
        """Return how a choice on a subset of the images answers; None where it has no linear last layer."""
        own = self.library.head(found.candidate)
        if own is None:
            return None
        statistics, temperature, head = None, TEMPERATURES[found.temperature], found.head
        features = self.library.features(found.candidate)
        if self.pool.recalibrated[found.candidate]:
            statistics = self.pool.statistics[found.candidate]
            if not subset.all():
                run, temperature = self._rerun(found.candidate, ~subset)
                features, statistics = run.features, run.statistics
                head = self._head_anew(found, run, temperature, subset)
        if features is None:
            return None
        return Standpoint(features, statistics, temperature, own.divided(temperature) if head is None else head)

    def _current_losses(self, subset: Bools) -> Floats:
        """Return the current soup's losses (n,) at the temperature, however large, that is best on the subset.

        A fitted last layer can be as unsure as the labels call for; a temperature that could not would let it win by
        that alone.
        """
        logits, targets = self.pool.current_logits.double(), torch.from_numpy(self.labels)
        if not logits.isfinite().all():
            return np.full(len(targets), np.inf, dtype=np.float32)
        index = torch.from_numpy(subset)

        def losses(log_temperature: float) -> Tensor:
            return torch.nn.functional.cross_entropy(logits / np.exp(log_temperature), targets, reduction="none")

        best = optimize.minimize_scalar(
            lambda value: self._sum(losses(value)[index].numpy(), subset),
            bounds=(np.log(TEMPERATURES[0]), np.log(MAX_TEMPERATURE)),
            method="bounded",
        )
        return losses(float(best.x)).float().numpy()

    def _answers(self, found: Fit, held_out: Bools) -> tuple[Floats, Bools]:
        """Return losses and hits of a choice on the images it was made without."""
        labels, index = self.labels[held_out], torch.from_numpy(held_out)
        if self.pool.recalibrated[found.candidate]:
            return self._answers_anew(found, held_out)
        if found.head is None:
            scores = self.pool.scores
            return scores.losses[found.candidate, found.temperature, held_out], scores.correct[
                found.candidate, held_out
            ]
        features = self.library.features(found.candidate)
        assert features is not None, "a head was fitted to these features"
        return judged(found.head(features[index]), labels)

    def _answers_anew(self, found: Fit, held_out: Bools) -> tuple[Floats, Bools]:
        run, temperature = self._rerun(found.candidate, held_out)
        index, labels = torch.from_numpy(held_out), self.labels[held_out]
        head = self._head_anew(found, run, temperature, ~held_out)
        if head is None:
            return judged(run.logits[index] / temperature, labels)
        assert run.features is not None, "a head was fitted to this candidate's features"
        return judged(head(run.features[index]), labels)

    def _rerun(self, candidate: int, held_out: Bools) -> tuple[Rerun, float]:
        """Return a recalibrated candidate without a fold in its statistics, and its temperature on the other images."""
        key = (candidate, held_out.tobytes())
        if key not in self._reruns:
            self._reruns[key] = self.library.rerun(candidate, ~held_out)
        run = self._reruns[key]
        scores = score_logits(run.logits[torch.from_numpy(~held_out)][None], self.labels[~held_out])
        return run, TEMPERATURES[int(temp_ce(scores.losses, part(self.weights, ~held_out))[1][0])]

    def _head_anew(self, found: Fit, run: Rerun, temperature: float, subset: Bools) -> Head | None:
        """Return the last layer fitted on a subset to what the rerun gives it; None where the choice was its own."""
        if found.penalty is None:
            return None
        own = self.library.head(found.candidate)
        assert own is not None
        assert run.features is not None, "a head was fitted to this candidate's features"
        features, counts = run.features[torch.from_numpy(subset)], part(self.weights, subset)
        return fit_heads(features, self.labels[subset], own.divided(temperature), weights=counts)[found.penalty]

    def has_enough(self, subset: Bools) -> bool:
        """Say whether a subset has images enough to fit to; a class without any would be fitted away."""
        if subset.sum() < MIN_HEAD_IMAGES:
            return False
        return len(np.unique(self.labels[subset])) == len(self.task.support.class_names)

    def _best_penalty(self, candidate: int, features: Tensor, subset: Bools) -> int | None:
        """Return the penalty of least cross-validated cross-entropy on the subset, None if no fit is better."""
        if self.folds is None:
            return None
        own, fitted = 0.0, np.zeros(len(PENALTIES))
        for fold in np.unique(self.folds[subset]):
            held_out, seen = subset & (self.folds == fold), subset & (self.folds != fold)
            if not seen.any():
                return None
            temperature = self._temperature(candidate, seen)
            own += self._sum(self.pool.scores.losses[candidate, temperature, held_out], held_out)
            for penalty, head in enumerate(self._fitted(candidate, features, seen)):
                losses, _ = judged(head(features[torch.from_numpy(held_out)]), self.labels[held_out])
                fitted[penalty] += self._sum(losses, held_out)
        best = int(fitted.argmin())
        return best if fitted[best] < own else None

    def _temperature(self, candidate: int, subset: Bools) -> int:
        losses = self.pool.scores.losses[[candidate]][:, :, subset]
        return int(temp_ce(losses, part(self.weights, subset))[1][0])

    def _sum(self, losses: npt.NDArray[np.floating[Any]], images: Bools) -> float:
        """Return the weighted sum of the losses of these images."""
        counts = part(self.weights, images)
        return float((losses if counts is None else losses * counts).sum(dtype=np.float64))

    def _fitted(self, candidate: int, features: Tensor, subset: Bools) -> list[Head]:
        """Return the layer for each penalty; leaving out two folds is the same in either order, so fits are kept."""
        key = (candidate, subset.tobytes())
        if key not in self._heads:
            own = self.library.head(candidate)
            assert own is not None, "features are given where there is a last layer"
            temperature = TEMPERATURES[self._temperature(candidate, subset)]
            index = torch.from_numpy(subset)
            self._heads[key] = fit_heads(
                features[index], self.labels[subset], own.divided(temperature), weights=part(self.weights, subset)
            )
        return self._heads[key]


def judged(logits: Tensor, labels: Ints) -> tuple[Floats, Bools]:
    """Return losses and hits of logits (n, K); an image whose logits are not finite is lost."""
    targets = torch.from_numpy(labels)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").float()
    finite = logits.isfinite().all(dim=1)
    return losses.masked_fill(~finite, torch.inf).numpy(), ((logits.argmax(dim=1) == targets) & finite).numpy()
