"""Which soup is best on the support images, how good it really is, and whether that is enough to promote it.

The same images choose a soup and judge it, so a plain accuracy of the chosen one is too high. Here every image is
judged under a choice that did not see it (cross-fitting), paired with the current soup on the same image. The folds'
choices share most of their images, which makes the folds' results alike: that is measured and allowed for. No torch.

Images may have weights, of mean 1, where some are to count more than others in all of this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from adapt.documents.soup import AccuracySummary, Promote

# Powers of sqrt(2): robust ingredients are under-confident (T < 1), over-fitted ones the opposite.
TEMPERATURES: tuple[float, ...] = tuple(2 ** (exponent / 2) for exponent in range(-3, 5))
NUM_FOLDS = 5
MIN_IMAGES = 10  # below this, no basis to act on: a fold would hold less than two images
MIN_OTHERS = NUM_FOLDS  # images outside the largest class: with fewer, there are folds that say nothing about the rest
# Twice as strict as the false promotions it allows: the test is also of cross-entropies, which can be better where the
# accuracy is not, and `fold_dependence` is a little low. Simulated (benchmarks/gate), one in twenty is the worst case.
P_THRESHOLD = 0.025
TAIL = 0.05  # of the swaps, for `fold_dependence`: further out, 400 of them are too few
LARGE = 1e6  # a cross-entropy in place of an infinite one: two unusable soups are equally good
POWER = 0.8  # chance to prove the gain seen with as many images as `labels_needed` says
MAX_NEEDED = 100  # times the images there are: a gain that would need more is too close to none for a number

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """What C soups say about n images.

    Attributes:
        losses: (C, T, n) cross-entropy at each of T temperatures; infinite for a soup that is not usable.
        correct: (C, n) whether the top class is the label.
    """

    losses: Floats
    correct: Bools

    def __post_init__(self) -> None:
        if self.losses.ndim != 3 or self.correct.shape != (self.losses.shape[0], self.losses.shape[2]):
            raise ValueError(f"expected (C, T, n) and (C, n), got {self.losses.shape} and {self.correct.shape}")

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Plain accuracy of each soup, (C,): fair for a soup that was not chosen on these images, only for those."""
        return np.asarray(self.correct.mean(axis=1), dtype=np.float64)

    def take(self, which: slice) -> "Scores":
        """Return the scores of some of the soups."""
        return Scores(self.losses[which], self.correct[which])

    @staticmethod
    def joined(parts: "Sequence[Scores]") -> "Scores":
        """Return the scores of the soups of several parts on the same images, in order."""
        return Scores(np.concatenate([part.losses for part in parts]), np.concatenate([part.correct for part in parts]))


class Choice(NamedTuple):
    """A soup and its temperature, as positions."""

    candidate: int
    temperature: int


def balanced_weights(labels: Ints) -> Floats:
    """Return weights (n,) of mean 1 under which all classes that occur count alike, however many images each has."""
    counts = np.bincount(labels)
    return (len(labels) / (np.count_nonzero(counts) * counts[labels])).astype(np.float32)


def part(weights: Floats | None, subset: Bools) -> Floats | None:
    """Return the weights of some of the images; None for equal ones."""
    return None if weights is None else weights[subset]


def temp_ce(losses: Floats, weights: Floats | None = None) -> tuple[npt.NDArray[np.float64], Ints]:
    """Return each soup's mean cross-entropy at its own best temperature, (C,), and that temperature's position, (C,).

    The temperature is part of the soup: without it, under-confident soups would lose to worse but bolder ones.

    Args:
        losses: (C, T, n).
        weights: (n,) of the images.
    """
    weighted = losses if weights is None else losses * weights
    means = weighted.mean(axis=2, dtype=np.float64)
    best = means.argmin(axis=1)
    return means[np.arange(len(means)), best], best


def choose(losses: Floats, eligible: Bools | None = None, weights: Floats | None = None) -> Choice:
    """Return the soup of least tempCE on these images (C, T, n); of equals the first, so put the current soup first.

    Args:
        losses: of the candidates.
        eligible: (C,) which of them may be chosen; None for all.
        weights: (n,) of the images.

    Raises:
        ValueError: no soup is usable.
    """
    values, temperatures = temp_ce(losses, weights)
    if eligible is not None:
        values = np.where(eligible, values, np.inf)
    candidate = int(values.argmin())
    if not np.isfinite(values[candidate]):
        raise ValueError("no candidate gives finite logits on the support images")
    return Choice(candidate, int(temperatures[candidate]))


@dataclass(frozen=True)
class CrossFit:
    """Held-out answers: whatever answered image i, its temperature included, was chosen without image i.

    Attributes:
        chosen: (n,) position of what answered.
        current: (n,) the current soup was right.
        candidate: (n,) the chosen one was right.
        current_losses: (n,) cross-entropy of the current soup at a temperature fitted to the other folds.
        candidate_losses: (n,) the same of the chosen one.
        weights: (n,) of the images, of mean 1; None for equal ones.
    """

    chosen: Ints
    current: Bools
    candidate: Bools
    current_losses: Floats
    candidate_losses: Floats
    weights: Floats | None = None

    @property
    def evidence(self) -> Floats:
        """How much better the candidate does on each image, (n,); see `evidence`. Weights are applied."""
        after, before = np.minimum(self.candidate_losses, LARGE), np.minimum(self.current_losses, LARGE)
        found = evidence(after - before, self.candidate, self.current)
        return found if self.weights is None else found * self.weights

    @property
    def loss(self) -> float:
        """Mean cross-entropy of the chosen one."""
        return float(np.average(self.candidate_losses.astype(np.float64), weights=self.weights))

    def share(self, answers: Bools) -> float:
        """Return the weighted share of the images for which this (n,) is true."""
        return float(np.average(answers, weights=self.weights))


def cross_fit(
    scores: Scores,
    folds: Ints,
    current: int = 0,
    *,
    eligible: Bools | None = None,
    weights: Floats | None = None,
) -> CrossFit:
    """Judge the search itself: for each fold, choose on the other folds and answer the fold's images with that choice.

    Args:
        scores: of all candidates on all n images.
        folds: (n,) fold of each image; at least two folds.
        current: position of the current soup, one of the candidates.
        eligible: (F, C) which candidates each fold, in ascending order, may choose: those that a search without its
            images would have looked at. None for all.
        weights: (n,) of the images.
    """
    if len(np.unique(folds)) < 2:
        raise ValueError("cross-fitting needs at least two folds")
    chosen, right = np.empty(len(folds), dtype=np.int64), np.empty(len(folds), dtype=np.bool_)
    before, after = np.empty((2, len(folds)), dtype=np.float32)
    for number, fold in enumerate(np.unique(folds)):
        held_out = folds == fold
        seen, among = scores.losses[:, :, ~held_out], None if eligible is None else eligible[number]
        counts = part(weights, ~held_out)
        candidate, temperature = choose(seen, among, counts)
        chosen[held_out] = candidate
        own = int(temp_ce(seen[[current]], counts)[1][0])
        before[held_out] = scores.losses[current, own, held_out]
        after[held_out] = scores.losses[candidate, temperature, held_out]
        right[held_out] = scores.correct[candidate, held_out]
    return CrossFit(chosen, scores.correct[current], right, before, after, weights)


def evidence(excess: Floats, candidate: Bools, current: Bools) -> Floats:
    """Return by how much a candidate does better than the current soup on each image.

    One for an answer put right (minus one for one put wrong), plus the cross-entropy saved, at most one nat either way.
    Right and wrong alone say nothing about most images, as both soups agree on them, and the cross-entropy alone may
    get better without an answer changing. Without the bound a few images would outweigh all others.

    Args:
        excess: the candidate's cross-entropy less that of the current soup.
        candidate: whether it is right.
        current: whether the current soup is right; all of shapes that broadcast.
    """
    answers = candidate.astype(np.float32) - current.astype(np.float32)
    return np.asarray(answers + np.clip(-excess, -1, 1), dtype=np.float32)


def fold_dependence(
    scores: Scores,
    folds: Ints,
    current: int = 0,
    *,
    weights: Floats | None = None,
    seed: int = 0,
    num_flips: int = 400,
) -> float:
    """Return by what factor, at least 1, `paired_p` has to be stricter than for independent images.

    One image helps to choose for every fold but its own, so a soup that is lucky on all images wins in every fold and
    is lucky in every fold. Where the current soup and its rivals are exchangeable, swapping the two on a random half of
    the images changes nothing; doing so many times, with the whole cross-fit repeated, shows how the evidence then
    spreads. Its 95 % quantile counts, as it is not quite normal. The factor is near 1 for a single rival, 1.05 to 1.1
    for the 149 soups of a grid on one shift, and 1.15 if they were all equally good and unrelated.

    Soups clearly worse than the current one are left out: they are never chosen, but swapping would make them rivals.

    Args:
        scores: of all candidates on all n images.
        folds: (n,) fold of each image.
        current: position of the current soup.
        weights: (n,) of the images.
        seed: of the swaps.
        num_flips: number of swaps.

    Source: sign flips as in Romano, Ann. Statist. 17, 1989; the candidates left out as in Hansen, J. Bus. Econ. Stat.
    23, 2005, sec. 2.1.
    """
    counts = np.ones(len(folds), dtype=np.float32) if weights is None else weights
    values, temperatures = temp_ce(scores.losses, counts)
    n, finite = len(folds), np.isfinite(values)
    if not finite[current]:
        return 1.0
    losses = scores.losses[np.arange(len(values)), temperatures]
    excess = losses[finite] - losses[current]
    gain = evidence(excess, scores.correct[finite], scores.correct[current]) * counts
    excess = excess * counts
    clearly = np.sqrt(2 * np.log(np.log(max(n, 16)))) * excess.std(axis=1) / np.sqrt(n)
    rivals = excess.mean(axis=1) <= clearly
    excess, gain = excess[rivals], gain[rivals]
    signs = np.random.default_rng(seed).choice(np.asarray([-1, 1], dtype=np.float32), size=(num_flips, n))
    numbers = np.unique(folds, return_inverse=True)[1]
    sums = np.stack([signs[:, numbers == k] @ excess[:, numbers == k].T for k in range(numbers.max() + 1)], axis=1)
    chosen = (sums.sum(axis=1, keepdims=True) - sums).argmin(axis=2)  # (flips, folds): each fold's choice without it
    outcome = gain[chosen[:, numbers], np.arange(n)]
    swapped = signs * outcome
    errors = np.maximum(swapped.std(axis=1, ddof=1), 1e-9) / np.sqrt(n)
    extreme = np.quantile(swapped.mean(axis=1) / errors, 1 - TAIL)
    return max(1.0, float(stats.norm.isf(stats.t.sf(extreme, n - 1)) / stats.norm.isf(TAIL)))


def paired_p(gains: Floats, *, dependence: float = 1.0) -> float:
    """Return the one-sided p-value of `the mean gain is not positive`: Student's paired t-test.

    Never below 2^-n, the least that n gains, each as likely to be the opposite, can prove.

    Args:
        gains: (n,) of the held-out images, such as `CrossFit.evidence`.
        dependence: from `fold_dependence`; the normal score of a p-value below one half is divided by it.
    """
    n = len(gains)
    if n < 2 or not gains.any():
        return 1.0
    error = max(float(gains.std(ddof=1, dtype=np.float64)), 1e-9) / math.sqrt(n)
    p_value = float(stats.t.sf(gains.mean(dtype=np.float64) / error, n - 1))
    if p_value < 0.5:
        p_value = float(stats.norm.sf(stats.norm.isf(p_value) / dependence))
    return max(p_value, 2.0**-n)


def labels_needed(p_value: float, n: int, *, p_threshold: float = P_THRESHOLD) -> int | None:
    """Return how many images would prove the gain seen, four times in five, if it is the true one.

    The normal score of a p-value grows with the root of the number of images. None where no gain was seen, or one too
    small for a number.

    Args:
        p_value: of n images.
        n: number of images.
        p_threshold: level of the proof.
    """
    if not p_value < 0.5 or not 0 < p_threshold < 0.5:
        return None
    wanted = stats.norm.isf(p_threshold) + stats.norm.ppf(POWER)
    needed = n * (wanted / stats.norm.isf(p_value)) ** 2
    return math.ceil(needed) if needed <= MAX_NEEDED * n else None


def paired_interval(
    wins: float, losses: float, n: float, *, level: float = 0.95, dependence: float = 1.0
) -> tuple[float, float]:
    """Return Tango's score interval of the paired gain (wins - losses) / n.

    It inverts the score test, so unlike a Wald interval it keeps its level at small n, stays within [-1, 1] and has
    width even where the two soups never differ.

    Args:
        wins: images only the candidate gets right.
        losses: images only the current soup gets right.
        n: all images, at least 1.
        level: confidence level of the two-sided interval.
        dependence: from `fold_dependence`; widens the interval as more noise would.

    Source: Tango, Statistics in Medicine 17, 1998, pp. 891-908, eqs. 9-12.
    """
    z = float(stats.norm.ppf(0.5 + level / 2)) * dependence
    gain = (wins - losses) / n

    def score(delta: float) -> float:
        linear = -wins - losses + (2 * n - wins + losses) * delta
        root = max(0.0, linear * linear + 8 * n * losses * delta * (1 - delta)) ** 0.5
        nuisance = max(0.0, (root - linear) / (4 * n))
        variance = n * (2 * nuisance + delta * (1 - delta))
        difference = wins - losses - n * delta
        return 0.0 if difference == 0 else difference / max(variance, 1e-12) ** 0.5

    def bound(edge: float, target: float) -> float:
        if abs(gain - edge) < 1e-12 or abs(score(edge)) < abs(target):
            return edge
        return float(optimize.brentq(lambda delta: score(delta) - target, *sorted((gain, edge)), xtol=1e-10))

    return bound(-1.0, z), bound(1.0, -z)


def summarise(fit: CrossFit, *, dependence: float = 1.0, p_threshold: float = P_THRESHOLD) -> AccuracySummary:
    """Return the accuracies, the interval of their gain and the p-value of a cross-fit.

    The interval is about accuracy alone, and so wider than the p-value would have it.

    Args:
        fit: the held-out answers; with weights, accuracies are weighted too, and the interval is that of as many equal
            images as have the same noise.
        dependence: from `fold_dependence`.
        p_threshold: level of the proof that `labels_needed` is about.
    """
    n = len(fit.current)
    equal = n if fit.weights is None else float(fit.weights.sum() ** 2 / (fit.weights**2).sum())
    wins, losses = fit.share(fit.candidate & ~fit.current), fit.share(fit.current & ~fit.candidate)
    p_value = paired_p(fit.evidence, dependence=dependence)
    return AccuracySummary(
        current=fit.share(fit.current),
        candidate=fit.share(fit.candidate),
        interval=paired_interval(equal * wins, equal * losses, equal, dependence=dependence),
        p_value=p_value,
        labels_needed=None if p_value < p_threshold else labels_needed(p_value, n, p_threshold=p_threshold),
    )


class Decision(NamedTuple):
    """Promote or keep, and why."""

    state: Literal["promoted", "kept"]
    reason: str


def decide(
    accuracy: AccuracySummary | None,
    *,
    promote: Promote,
    same: bool,
    counts: Sequence[int],
    p_threshold: float = P_THRESHOLD,
) -> Decision:
    """Decide whether the candidate replaces the current soup.

    Args:
        accuracy: cross-fitted; None where nothing could be held out.
        promote: "always" and "never" overrule the evidence, "auto" follows it.
        same: the candidate is the current soup.
        counts: images of each class that has any.
        p_threshold: "auto" promotes below this p-value.
    """
    seen = "nothing could be held out" if accuracy is None else _seen(accuracy)
    if promote == "always":
        return Decision("promoted", f"promote=always: promoted whatever the evidence ({seen})")
    if promote == "never":
        return Decision("kept", f"promote=never: kept whatever the evidence ({seen})")
    objection = too_little(counts)
    if accuracy is None or objection is not None:
        return Decision("kept", objection or "nothing could be held out to judge a soup by")
    if same:
        return Decision("kept", "the current soup is the best of all candidates on these images")
    if accuracy.p_value < p_threshold:
        return Decision("promoted", f"better on held-out images: {seen}, below {p_threshold:g}")
    needed = accuracy.labels_needed
    more = "" if needed is None else f"; about {needed:,} labelled images would show a gain of this size"
    return Decision("kept", f"not shown to be better on held-out images: {seen}, not below {p_threshold:g}{more}")


def too_little(counts: Sequence[int]) -> str | None:
    """Return why so many images of each class that has any prove nothing, None if they may."""
    n = sum(counts)
    others = n - max(counts, default=0)
    if n < MIN_IMAGES:
        return f"too few images to judge a soup by: got {n}, expected {MIN_IMAGES} or more"
    if others == 0:
        return f"all {n} images are of one class, which says nothing about the others"
    if others < MIN_OTHERS:
        return (
            f"{n - others} of {n} images are of one class: {others} of the others say too little about those, expected "
            f"{MIN_OTHERS} or more"
        )
    return None


def _seen(accuracy: AccuracySummary) -> str:
    return f"accuracy {accuracy.candidate:.3f} against {accuracy.current:.3f}, p = {accuracy.p_value:.3g}"
