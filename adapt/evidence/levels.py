"""How strict a test must be: for answers that choices have in common, and when one version is tested again and again.

No torch, and no scipy: the service imports this.
"""

from statistics import NormalDist

# By how much wider the paired t statistic of cross-fitted answers spreads than `fold_dependence` says: the temperatures
# of both soups are fitted to images that the folds share, and few images have heavy tails. See benchmarks/gate.
SPREAD, SPREAD_OF_ONE = 1.2, 2.0  # the factor is SPREAD + SPREAD_OF_ONE / n

FALSE_PROMOTIONS = 0.05  # chance of any false promotion while a version is current


def attempt_level(attempt: int, *, total: float = FALSE_PROMOTIONS) -> float:
    """Return the level of the k-th comparison with one and the same current version: total / (k (k + 1)).

    Labels are added, searched on, added again: each comparison is another chance to be wrong. The levels of all
    comparisons, however many, sum to `total`, so the chance of any false promotion is at most that.

    Args:
        attempt: k, from 1. It starts again with each version that becomes current.
        total: of all attempts, a probability.

    Raises:
        ValueError: `attempt` or `total` out of range.

    Source: alpha spending; the sequence as in Johari et al., "Peeking at A/B tests", KDD 2017, for a countable number
    of looks (a union bound: valid however the looks depend on one another).
    """
    if attempt < 1:
        raise ValueError(f"expected attempt >= 1, got {attempt}")
    if not 0 <= total <= 1:
        raise ValueError(f"expected a chance of false promotions from 0 to 1, got {total:g}")
    return total / (attempt * (attempt + 1))


def p_threshold(level: float, n: int) -> float:
    """Return the p-value below which a search promotes, so that it does so falsely with a chance of `level` at most.

    Args:
        level: chance of a false promotion, below one half.
        n: images that judge.
    """
    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(level) * (SPREAD + SPREAD_OF_ONE / n))
