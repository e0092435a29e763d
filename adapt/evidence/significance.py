"""How sure a difference between two soups is, paired on the images that neither of them was chosen on. No torch.

The folds' choices share most of their images, which makes the folds' results alike: that is measured and allowed for.
"""

import math

import numpy as np
from scipy import optimize, special  # `scipy.stats` has the same functions and takes half a second to import

from adapt.evidence.scores import Bools, Floats, Ints, Scores, temp_ce

TAIL = 0.05  # of the swaps, for `fold_dependence`: further out, 400 of them are too few
MIN_SPREAD = 0.05  # of the evidence; that of two soups which answer differently is 0.3 and more
LARGE = 1e6  # a cross-entropy in place of an infinite one: two unusable soups are equally good
POWER = 0.8  # chance to prove the gain seen with as many images as `labels_needed` says
MAX_NEEDED = 100  # times the images there are: a gain that would need more is too close to none for a number


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
    others: tuple[Floats, Bools] | None = None,
    weights: Floats | None = None,
    seed: int = 0,
    num_flips: int = 400,
) -> float:
    """Return by what factor, at least 1, `paired_p` has to be stricter than for independent images.

    One image helps to choose for every fold but its own, so a soup that is lucky on all images wins in every fold and
    is lucky in every fold. Where the current soup and its rivals are exchangeable, swapping the two on a random half of
    the images changes nothing; many repetitions, each with the whole cross-fit, show how the evidence then
    spreads. Its 95 % quantile counts, as it is not quite normal. The factor is near 1 for a single rival, 1.05 to 1.1
    for the 149 soups of a grid on one shift, and 1.15 if they were all equally good and unrelated.

    Soups clearly worse than the current one are left out: they are never chosen, but swapping would make them rivals.

    Args:
        scores: of all candidates on all n images.
        folds: (n,) fold of each image.
        current: position of the current soup.
        others: more rivals: losses (R, n) and hits (R, n) of the held-out answers of each rung that was tried.
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
    correct = scores.correct[finite]
    if others is not None:
        excess = np.concatenate([excess, np.minimum(others[0], LARGE) - losses[current]])
        correct = np.concatenate([correct, others[1]])
    gain = evidence(excess, correct, scores.correct[current]) * counts
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
    return max(1.0, float(special.ndtri(special.stdtr(n - 1, -extreme)) / special.ndtri(TAIL)))


def paired_p(gains: Floats, *, dependence: float = 1.0) -> float:
    """Return the one-sided p-value of `the mean gain is not positive`: Student's paired t-test.

    Never below 2^-n, the least that n gains, each as likely to be the opposite, can prove. Gains that hardly differ, as
    those of one network at two temperatures, count as if they spread by `MIN_SPREAD`: rounding proves nothing.

    Args:
        gains: (n,) of the held-out images, such as `CrossFit.evidence`.
        dependence: from `fold_dependence`; the normal score of a p-value below one half is divided by it.
    """
    n = len(gains)
    if n < 2 or not gains.any():
        return 1.0
    error = max(float(gains.std(ddof=1, dtype=np.float64)), MIN_SPREAD) / math.sqrt(n)
    p_value = float(special.stdtr(n - 1, -gains.mean(dtype=np.float64) / error))
    if p_value < 0.5:
        p_value = float(special.ndtr(special.ndtri(p_value) / dependence))
    return max(p_value, 2.0**-n)


def labels_needed(p_value: float, n: int, *, threshold: float) -> int | None:
    """Return how many images would prove the gain seen, four times in five, if it is the true one.

    The normal score of a p-value grows with the root of the number of images. None where no gain was seen, or one too
    small for a number.

    Args:
        p_value: of n images.
        n: number of images.
        threshold: p-value of the proof.
    """
    if not p_value < 0.5 or not 0 < threshold < 0.5:
        return None
    wanted = special.ndtri(POWER) - special.ndtri(threshold)
    needed = n * (wanted / special.ndtri(p_value)) ** 2
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
    z = float(special.ndtri(0.5 + level / 2)) * dependence
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
