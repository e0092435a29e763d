"""How strict a test must be: for answers that choices have in common, and when one version is tested again and again.

No torch, and no scipy: the service imports this.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

# By how much wider the paired t statistic of cross-fitted answers spreads than `fold_dependence` says: the temperatures
# of both soups are fitted to images that the folds share, and few images have heavy tails. See benchmarks/gate.
SPREAD, SPREAD_OF_ONE = 1.2, 2.0  # the factor is SPREAD + SPREAD_OF_ONE / n

FALSE_PROMOTIONS = 0.05  # chance of any false promotion while a version is current

MAX_CORRELATION = 0.99  # of two attempts: closer ones would need finer nodes
LOWEST, NODES = -8.0, 256  # of the integration over the statistic of an attempt

Doubles = npt.NDArray[np.float64]
_normal = NormalDist()


def attempt_chance(attempt: int, *, total: float = FALSE_PROMOTIONS) -> float:
    """Return the chance of a false promotion that the k-th comparison with one version adds: total / (k (k + 1)).

    Labels are added, searched on, added again: each comparison is another chance to be wrong. All of them together,
    however many, add up to `total`.

    Args:
        attempt: k, from 1. It starts again with each version that becomes current.
        total: of all attempts, a probability.

    Raises:
        ValueError: `attempt` or `total` out of range.
    """
    if attempt < 1:
        raise ValueError(f"expected attempt >= 1, got {attempt}")
    if not 0 <= total <= 1:
        raise ValueError(f"expected a chance of false promotions from 0 to 1, got {total:g}")
    return total / (attempt * (attempt + 1))


def attempt_level(attempt: int, sizes: Sequence[int] = (), *, total: float = FALSE_PROMOTIONS) -> float:
    """Return the p-value below which the k-th comparison may promote, so that it adds no more than its chance.

    Attempts on images of which most were there before agree with one another: where the earlier ones did not promote,
    this one seldom does by luck. So its level may be higher than its chance, by how much says the joint normal law of
    the statistics of all attempts, were their candidate the same. Candidates change, and then attempts agree less;
    benchmarks/gate simulates what that does. Attempts whose images are not among the later ones count as unrelated.

    Args:
        attempt: k, from 1.
        sizes: numbers of images of the latest attempts, this one last; each attempt's images are among those of the
            next. 0 stands for an attempt of which that is not known. None are needed: all are unrelated then.
        total: chance of any false promotion in all attempts.

    Raises:
        ValueError: `attempt` or `total` out of range; more sizes than attempts; a size below 0.

    Source: alpha spending, Lan & DeMets, Biometrika 70:659, 1983; the recursion of Armitage, McPherson & Rowe 1969.
    """
    if len(sizes) > attempt or any(size < 0 for size in sizes):
        raise ValueError(f"expected at most {attempt} sizes of 0 or more images, got {list(sizes)}")
    related: list[int] = []
    for size in sizes:
        related = [*related, size] if size else []
    chances = [attempt_chance(k, total=total) for k in range(attempt - max(len(related), 1) + 1, attempt + 1)]
    return _last_level(chances, [math.sqrt(min(pair) / max(pair)) for pair in pairwise(related)])


def _last_level(chances: Sequence[float], correlations: Sequence[float]) -> float:
    """Return the level of the last of several related attempts.

    Args:
        chances: of a first promotion at each of k attempts, by luck.
        correlations: of the normal statistics of each attempt and the next, k - 1.
    """
    level = chances[0]
    if not 0 < level < 1:
        return level
    nodes, weights = _nodes(_normal.inv_cdf(1 - level))
    density = _density(nodes)  # of the statistic where no attempt has promoted so far
    for chance, correlation in zip(chances[1:], correlations, strict=True):
        r = min(correlation, MAX_CORRELATION)
        rest = math.sqrt(1 - r * r)

        def excess(bound: float, here: Doubles = weights * density, mean: Doubles = r * nodes) -> float:
            return float(here @ _above((bound - mean) / rest)) - chance  # noqa: B023 (called in this turn alone)

        # No attempt is less strict than the one before it.
        bound = _root(excess, low=_normal.inv_cdf(1 - level), high=-LOWEST)
        level = 1 - _normal.cdf(bound)
        places, next_weights = _nodes(bound)
        steps = _density((places[:, None] - r * nodes[None]) / rest) / rest
        density, nodes, weights = steps @ (weights * density), places, next_weights
    return level


def _nodes(bound: float) -> tuple[Doubles, Doubles]:
    """Return nodes and weights of an integration up to a bound."""
    nodes, weights = _gauss()
    half = (bound - LOWEST) / 2
    return LOWEST + half * (nodes + 1), half * weights


@cache
def _gauss() -> tuple[Doubles, Doubles]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return nodes, weights


def _density(x: Doubles) -> Doubles:
    return np.asarray(np.exp(-x * x / 2) / math.sqrt(2 * math.pi))


def _above(x: Doubles) -> Doubles:
    return np.asarray([math.erfc(value) for value in (x / math.sqrt(2)).tolist()]) / 2


def _root(function: Callable[[float], float], *, low: float, high: float) -> float:
    """Return where a falling function is 0, or `low` where it is negative already there."""
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return low


def p_threshold(level: float, n: int) -> float:
    """Return the p-value below which a search promotes, so that it does so falsely with a chance of `level` at most.

    Args:
        level: chance of a false promotion, from 0 to one half.
        n: images that judge.
    """
    return 0.0 if level <= 0 else _normal.cdf(_normal.inv_cdf(level) * (SPREAD + SPREAD_OF_ONE / n))
