"""Promote or keep, and why. No torch."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from adapt.evidence.cross_fit import NUM_FOLDS, Comparison
from adapt.evidence.policies import Promote
from adapt.evidence.posterior import Posterior

MIN_IMAGES = 10  # below this, no basis to act on: a fold would hold less than two images
MIN_OTHERS = NUM_FOLDS  # images outside the largest class: with fewer, there are folds that say nothing about the rest
HARM_CHANCE = 0.05  # `likely` promotes where the chance of harm is below this


class Decision(NamedTuple):
    """Promote or keep, and why."""

    state: Literal["promoted", "kept"]
    reason: str


def decide(
    comparison: Comparison | None,
    *,
    promote: Promote,
    same: bool,
    counts: Sequence[int],
    threshold: float,
    posterior: Posterior | None = None,
) -> Decision:
    """Decide whether the candidate replaces the current soup.

    Args:
        comparison: of held-out answers; None where nothing could be held out, or the current soup not be judged.
        promote: "always" and "never" overrule the evidence, "auto" follows the test, "likely" the posterior.
        same: the candidate is the current soup.
        counts: judged images of each class that has any.
        threshold: "auto" promotes below this p-value.
        posterior: of the gain, for "likely".
    """
    seen = "nothing could be held out" if comparison is None else _seen(comparison)
    if promote == "always":
        return Decision("promoted", f"promote=always: promoted whatever the evidence ({seen})")
    if promote == "never":
        return Decision("kept", f"promote=never: kept whatever the evidence ({seen})")
    objection = too_little(counts)
    if comparison is None or objection is not None:
        return Decision("kept", objection or "nothing could be held out to judge a soup by")
    if same:
        return Decision("kept", "the current soup is the best of all candidates on these images")
    if comparison.p_value < threshold:
        return Decision("promoted", f"better on held-out images: {seen}, below {threshold:.3g}")
    if promote == "likely" and posterior is not None:
        return _likely(posterior, seen)
    needed = comparison.labels_needed
    more = "" if needed is None else f"; about {needed:,} labelled images would show a gain of this size"
    return Decision("kept", f"not shown to be better on held-out images: {seen}, not below {threshold:.3g}{more}")


def _likely(posterior: Posterior, seen: str) -> Decision:
    said = (
        f"expected gain {100 * posterior.mean:+.1f} points, chance {posterior.chance_of_harm:.3f} of losing more than "
        f"{100 * posterior.harm:g} points"
    )
    if posterior.mean > 0 and posterior.chance_of_harm < HARM_CHANCE:
        return Decision("promoted", f"promote=likely: probably better, not proven: {said} ({seen})")
    return Decision("kept", f"promote=likely: too uncertain: {said} ({seen})")


def too_little(counts: Sequence[int]) -> str | None:
    """Return why images in these numbers, by class, prove nothing; None if they may prove something."""
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


def _seen(comparison: Comparison) -> str:
    return f"accuracy {comparison.candidate:.3f} against {comparison.current:.3f}, p = {comparison.p_value:.3g}"
