"""`python -m benchmarks.gate.spread`: how much wider the paired test spreads than `fold_dependence` says.

Scores of equally good soups are drawn and cross-fitted directly, without a search: thousands of draws in a minute. The
factors of `adapt.evidence.levels` were chosen by its tables.
"""

import sys
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy import special

from adapt.evidence.cross_fit import NUM_FOLDS
from adapt.evidence.levels import SPREAD, SPREAD_OF_ONE
from adapt.evidence.scores import TEMPERATURES, Floats, Ints, Scores
from adapt.evidence.significance import evidence, fold_dependence, paired_p
from benchmarks.gate.simulated import DISTANCE, NUM_CLASSES
from benchmarks.tables import table
from training.cli import Command, Result, run

LEVELS = (0.05, 0.025, 0.0083)
CASES = ((20, 20, 0.5), (20, 50, 0.5), (20, 100, 0.5), (20, 100, 0.9), (2, 50, 0.5))  # soups, images, correlation
FACTORS: dict[str, Callable[[float, int], float]] = {
    "fold_dependence": lambda dependence, n: dependence,
    f"times {SPREAD:g} + {SPREAD_OF_ONE:g} / n": lambda dependence, n: dependence * (SPREAD + SPREAD_OF_ONE / n),
    "1.5 (Nadeau & Bengio 2003)": lambda dependence, n: 1.5,
}


class Spread(Command):
    """Draw scores of equally good soups, and count how often the paired test is below its level.

    Example: python -m benchmarks.gate.spread --draws 500
    """

    name: ClassVar[str] = "spread"
    draws: int = Field(default=1500, ge=10, description="of each case")

    def execute(self) -> Result:
        """Draw and tabulate."""
        found = {f"{c} soups, n = {n}, correlation {rho}": self._case(c, n, rho) for c, n, rho in CASES}
        head = ["false promotions, %, at " + ", ".join(f"{100 * level:g} %" for level in LEVELS), *FACTORS]
        rows = [
            [case, *(" / ".join(f"{100 * share:.1f}" for share in shares[name]) for name in FACTORS)]
            for case, shares in found.items()
        ]
        return Result({"draws": self.draws, "levels": LEVELS, "cases": found}, "\n".join(table(head, rows)))

    def _case(self, num_soups: int, n: int, correlation: float) -> dict[str, list[float]]:
        generator = np.random.default_rng([self.seed, num_soups, n, int(10 * correlation)])
        below = {name: np.zeros(len(LEVELS)) for name in FACTORS}
        for _ in range(self.draws):
            scores, labels = draw_scores(num_soups, n, correlation, generator)
            folds = np.empty(n, dtype=np.int64)
            order = generator.permutation(n)
            folds[order[np.argsort(labels[order], kind="stable")]] = np.arange(n) % NUM_FOLDS
            if scores.losses.mean(axis=2).min(axis=1).argmin() == 0:
                continue  # the current soup is the best: nothing is promoted
            gains, dependence = cross_fitted_gains(scores, folds), fold_dependence(scores, folds, num_flips=200)
            for name, factor in FACTORS.items():
                p_value = paired_p(gains, dependence=factor(dependence, n))
                below[name] += [p_value < level for level in LEVELS]
        return {name: (counts / self.draws).tolist() for name, counts in below.items()}


def draw_scores(num_soups: int, n: int, correlation: float, generator: np.random.Generator) -> tuple[Scores, Ints]:
    """Return the scores of equally good soups on n images, and the labels; see `benchmarks.gate.simulated`."""
    labels = generator.integers(NUM_CLASSES, size=n)
    common = generator.standard_normal((n, NUM_CLASSES))
    own = generator.standard_normal((num_soups, n, NUM_CLASSES))
    x = DISTANCE * np.eye(NUM_CLASSES)[labels] + np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    logits: npt.NDArray[np.float64] = DISTANCE * x
    scaled = logits[:, None] / np.asarray(TEMPERATURES)[:, None, None]
    losses = special.logsumexp(scaled, axis=-1) - scaled[..., np.arange(n), labels]
    return Scores(losses.astype(np.float32), logits.argmax(axis=-1) == labels), labels


def cross_fitted_gains(scores: Scores, folds: Ints) -> Floats:
    """Return the evidence (n,) of the soup that each fold's other images choose, at its temperature."""
    gains = np.zeros(len(folds), dtype=np.float32)
    for fold in np.unique(folds):
        out = folds == fold
        means = scores.losses[:, :, ~out].mean(axis=2, dtype=np.float64)
        temperatures = means.argmin(axis=1)
        chosen = int(means.min(axis=1).argmin())
        excess = scores.losses[chosen, temperatures[chosen], out] - scores.losses[0, temperatures[0], out]
        gains[out] = evidence(excess, scores.correct[chosen, out], scores.correct[0, out])
    return gains


if __name__ == "__main__":
    sys.exit(run([Spread], prog="python -m benchmarks.gate.spread", description="How wide the paired test spreads."))
