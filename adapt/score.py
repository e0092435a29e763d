"""Which soup is best on the support images, how good it really is, and whether that is enough to promote it.

The same images choose a soup and judge it, so a plain accuracy of the chosen one is too high. Here every image is
judged under a choice that did not see it (cross-fitting), paired with the current soup on the same image. The folds'
choices share most of their images, which makes the folds' results alike: that is measured and allowed for. No torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from adapt.soup import AccuracySummary, Promote

# Powers of sqrt(2): robust ingredients are under-confident (T < 1), over-fitted ones the opposite.
TEMPERATURES: tuple[float, ...] = tuple(2 ** (exponent / 2) for exponent in range(-3, 5))
NUM_FOLDS = 5
MIN_IMAGES = 10  # below this, even five wins and no loss (p = 0.03) would be half of all images: no basis to act on
P_THRESHOLD = 0.05

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


def temp_ce(losses: Floats) -> tuple[npt.NDArray[np.float64], Ints]:
    """Return each soup's mean cross-entropy at its own best temperature, (C,), and that temperature's position, (C,).

    The temperature is part of the soup: without it, under-confident soups would lose to worse but bolder ones.

    Args:
        losses: (C, T, n).
    """
    means = losses.mean(axis=2, dtype=np.float64)
    best = means.argmin(axis=1)
    return means[np.arange(len(means)), best], best


def choose(losses: Floats, eligible: Bools | None = None) -> Choice:
    """Return the soup of least tempCE on these images (C, T, n); of equals the first, so put the current soup first.

    Args:
        losses: of the candidates.
        eligible: (C,) which of them may be chosen; None for all.

    Raises:
        ValueError: no soup is usable.
    """
    values, temperatures = temp_ce(losses)
    if eligible is not None:
        values = np.where(eligible, values, np.inf)
    candidate = int(values.argmin())
    if not np.isfinite(values[candidate]):
        raise ValueError("no candidate gives finite logits on the support images")
    return Choice(candidate, int(temperatures[candidate]))


class CrossFit(NamedTuple):
    """Held-out answers: position i was chosen without image i."""

    chosen: Ints  # (n,) position of the soup that judged each image
    current: Bools  # (n,) the current soup was right
    candidate: Bools  # (n,) the chosen soup was right

    @property
    def wins(self) -> int:
        """Images that only the candidate gets right."""
        return int((self.candidate & ~self.current).sum())

    @property
    def losses(self) -> int:
        """Images that only the current soup gets right."""
        return int((self.current & ~self.candidate).sum())


def cross_fit(scores: Scores, folds: Ints, current: int = 0, *, eligible: Bools | None = None) -> CrossFit:
    """Judge the search itself: for each fold, choose on the other folds and answer the fold's images with that choice.

    Args:
        scores: of all candidates on all n images.
        folds: (n,) fold of each image; at least two folds.
        current: position of the current soup, one of the candidates.
        eligible: (F, C) which candidates each fold, in ascending order, may choose: those that a search without its
            images would have looked at. None for all.
    """
    if len(np.unique(folds)) < 2:
        raise ValueError("cross-fitting needs at least two folds")
    chosen = np.empty(len(folds), dtype=np.int64)
    for number, fold in enumerate(np.unique(folds)):
        held_out = folds == fold
        among = None if eligible is None else eligible[number]
        chosen[held_out] = choose(scores.losses[:, :, ~held_out], among).candidate
    return CrossFit(chosen, scores.correct[current], scores.correct[chosen, np.arange(len(folds))])


def fold_dependence(scores: Scores, folds: Ints, current: int = 0, *, seed: int = 0, num_flips: int = 400) -> float:
    """Return by what factor, at least 1, the pooled McNemar score of `cross_fit` spreads wider than its folds suggest.

    One image helps to choose for every fold but its own, so a soup that is lucky on all images wins in every fold and
    is lucky in every fold. Where the current soup and its rivals are exchangeable, swapping the two on a random half of
    the images changes nothing; doing so many times, with the whole cross-fit repeated, shows the true spread. It is
    near 1 for a few much alike candidates and reached 1.25 for 149 unrelated ones.

    Soups clearly worse than the current one are left out: they are never chosen, but swapping would make them rivals.

    Args:
        scores: of all candidates on all n images.
        folds: (n,) fold of each image.
        current: position of the current soup.
        seed: of the swaps.
        num_flips: number of swaps.

    Source: sign flips as in Romano, Ann. Statist. 17, 1989; the candidates left out as in Hansen, J. Bus. Econ. Stat.
    23, 2005, sec. 2.1.
    """
    values, temperatures = temp_ce(scores.losses)
    n, finite = len(folds), np.isfinite(values)
    if not finite[current]:
        return 1.0
    losses = scores.losses[np.arange(len(values)), temperatures]
    excess = losses[finite] - losses[current]
    gain = scores.correct[finite].astype(np.int8) - scores.correct[current].astype(np.int8)
    clearly = np.sqrt(2 * np.log(np.log(max(n, 16)))) * excess.std(axis=1) / np.sqrt(n)
    rivals = excess.mean(axis=1) <= clearly
    excess, gain = excess[rivals], gain[rivals]
    signs = np.random.default_rng(seed).choice(np.asarray([-1, 1], dtype=np.float32), size=(num_flips, n))
    numbers = np.unique(folds, return_inverse=True)[1]
    sums = np.stack([signs[:, numbers == k] @ excess[:, numbers == k].T for k in range(numbers.max() + 1)], axis=1)
    chosen = (sums.sum(axis=1, keepdims=True) - sums).argmin(axis=2)  # (flips, folds): each fold's choice without it
    outcome = gain[chosen[:, numbers], np.arange(n)]
    score = (signs * outcome).sum(axis=1) / np.sqrt(np.maximum(np.abs(outcome).sum(axis=1), 1))
    return max(1.0, float(np.sqrt(np.mean(score**2))))


def mcnemar_p(wins: int, losses: int, *, dependence: float = 1.0) -> float:
    """Return the one-sided exact McNemar p-value of `the candidate is no better`.

    Under that hypothesis an image on which only one of the two is right is at most a fair coin: the p-value is the
    chance of `wins` or more heads in `wins + losses` throws. 1 where the candidate never wins.

    Args:
        wins: images only the candidate gets right.
        losses: images only the current soup gets right.
        dependence: from `fold_dependence`; the normal score of a p-value below one half is divided by it.

    Source: McNemar, Psychometrika 12, 1947; the exact, binomial form.
    """
    exact = float(stats.binom.sf(wins - 1, wins + losses, 0.5)) if wins else 1.0
    return exact if exact >= 0.5 or dependence == 1 else float(stats.norm.sf(stats.norm.isf(exact) / dependence))


def paired_interval(
    wins: int, losses: int, n: int, *, level: float = 0.95, dependence: float = 1.0
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


def summarise(fit: CrossFit, *, dependence: float = 1.0) -> AccuracySummary:
    """Return the accuracies, the interval of the gain and the p-value of a cross-fit (see `fold_dependence`)."""
    n = len(fit.current)
    return AccuracySummary(
        current=float(fit.current.mean()),
        candidate=float(fit.candidate.mean()),
        interval=paired_interval(fit.wins, fit.losses, n, dependence=dependence),
        p_value=mcnemar_p(fit.wins, fit.losses, dependence=dependence),
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
    evidence = "nothing could be held out" if accuracy is None else _evidence(accuracy)
    if promote == "always":
        return Decision("promoted", f"promote=always: promoted whatever the evidence ({evidence})")
    if promote == "never":
        return Decision("kept", f"promote=never: kept whatever the evidence ({evidence})")
    if same:
        return Decision("kept", "the current soup is the best of all candidates on these images")
    if accuracy is None or (n := sum(counts)) < MIN_IMAGES:
        return Decision("kept", f"too few images to judge a soup by: got {sum(counts)}, expected {MIN_IMAGES} or more")
    if len(counts) < 2:
        return Decision("kept", f"all {n} images are of one class, which says nothing about the others")
    if accuracy.p_value < p_threshold:
        return Decision("promoted", f"better on held-out images: {evidence}, below {p_threshold:g}")
    return Decision("kept", f"not shown to be better on held-out images: {evidence}, not below {p_threshold:g}")


def _evidence(accuracy: AccuracySummary) -> str:
    return f"accuracy {accuracy.candidate:.3f} against {accuracy.current:.3f}, p = {accuracy.p_value:.3g}"
