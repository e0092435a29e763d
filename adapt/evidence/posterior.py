"""How large the gain of a candidate probably is: for operators who accept a small, stated risk. No torch."""

from typing import NamedTuple

import numpy as np
from scipy import special

HARM = 0.02  # loss of accuracy, a fraction, that counts as harm unless told otherwise


class Component(NamedTuple):
    """A normal part of the prior of true gains."""

    weight: float
    mean: float
    deviation: float


# A guess in round numbers, made before it was held against draws (benchmarks/gate): some candidates are as good as the
# soup that is served, most gain several points, few lose.
PRIOR: tuple[Component, ...] = (
    Component(0.40, 0.0, 0.01),
    Component(0.15, -0.01, 0.03),
    Component(0.45, 0.06, 0.07),
)


class Posterior(NamedTuple):
    """Of the true gain in accuracy, a fraction."""

    mean: float
    harm: float
    chance_of_harm: float  # that the candidate loses more than `harm`


def posterior_of_gain(
    gain: float, error: float, *, harm: float = HARM, prior: tuple[Component, ...] = PRIOR
) -> Posterior:
    """Return the posterior of the true gain, given the gain seen on held-out images.

    A mixture of normals, each updated by a normal likelihood; its weights by how well each part foretold the gain seen.

    Args:
        gain: seen, a fraction.
        error: its standard error, above 0.
        harm: loss that counts as harm, a fraction.
        prior: of true gains.
    """
    weights, means, deviations = (np.asarray(part) for part in zip(*prior, strict=True))
    spread = np.sqrt(deviations**2 + error**2)
    chances = weights * np.exp(-0.5 * ((gain - means) / spread) ** 2) / spread  # normal densities, up to a factor
    chances = chances / chances.sum() if chances.sum() > 0 else weights / weights.sum()
    shrink = deviations**2 / spread**2
    centres = means + shrink * (gain - means)
    widths = deviations * np.sqrt(1 - shrink)
    return Posterior(
        mean=float(chances @ centres),
        harm=harm,
        chance_of_harm=float(chances @ special.ndtr((-harm - centres) / widths)),
    )
