"""When the confidence of a soup has collapsed: sums over images, windows of them, and the test. Pure.

A version's answers are cut into blocks of a least number of images, and each block is compared with the last answers of
the version before. So a collapse after a long good time is noticed, too, within two blocks.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

from pydantic import Field

from training.documents import Frozen

# Chance that a version is ever put back although confidences are what they were, however long it is watched.
LEVEL = 0.001
MIN_IMAGES = 50  # of a block, at least: the mean of fewer is not normal enough, as confidences are skewed


class Tally(NamedTuple):
    """Confidences of the predicted classes of some images, as sums, from which mean and variance follow."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def plus(self, other: "Tally") -> "Tally":
        """Return the sums over the images of both."""
        return Tally(self.n + other.n, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """Mean confidence; there must be an image."""
        return self.total / self.n

    @property
    def variance(self) -> float:
        """Variance of the confidences; there must be two images."""
        return max(0.0, self.squares - self.n * self.mean**2) / (self.n - 1)


NOTHING = Tally()


class Collapse(NamedTuple):
    """A confidence that fell too far."""

    before: Tally
    now: Tally
    z: float  # of the test


class WatchState(Frozen):
    """The record of the version that a watched deployment serves.

    `event` is the number of the event that made it current: what was seen in an earlier spell of the same version does
    not count.
    """

    event: int
    version: int
    against: int | None = Field(description="the version that it replaced; null if it is not judged")
    before: Tally = NOTHING
    blocks: int = Field(default=0, description="how many were judged")
    last: Tally = NOTHING
    open: Tally = NOTHING

    @property
    def recent(self) -> Tally:
        """The last block, and the images since."""
        return self.last.plus(self.open)


def start(state: WatchState | None, *, event: int, version: int, against: int | None) -> WatchState:
    """Return what is known of a version that an event made current, from what was known of the one before."""
    is_before = state is not None and state.version == against
    return WatchState(
        event=event, version=version, against=against, before=state.recent if state and is_before else NOTHING
    )


def observe(
    state: WatchState, tallies: Mapping[int, Tally], *, min_images: int, drop: float
) -> tuple[WatchState, Collapse | None]:
    """Add what versions answered since, and judge the block if it is complete.

    Until a first block has been judged, late answers of the version before count for that one: workers change over
    one after the other, and report once a second. Other versions do not matter.

    Args:
        state: what is known.
        tallies: by version.
        min_images: of a block, and of the version before: with fewer of that one nothing is judged.
        drop: of the mean confidence, in (0, 1): a smaller fall is not a collapse.
    """
    before = state.before
    if state.against is not None and state.blocks == 0:
        before = before.plus(tallies.get(state.against, NOTHING))
    block = state.open.plus(tallies.get(state.version, NOTHING))
    update: dict[str, object] = {"before": before, "open": block}
    collapse = None
    if block.n >= min_images:
        update |= {"open": NOTHING, "last": block}
        if state.against is not None and before.n >= min_images:
            update["blocks"] = state.blocks + 1
            collapse = judge(before, block, drop=drop, level=level_of(state.blocks + 1))
    return state.model_copy(update=update), collapse


def judge(before: Tally, now: Tally, *, drop: float, level: float) -> Collapse | None:
    """Return the collapse, if the mean confidence fell by more than `drop` and not by chance: a one-sided z-test.

    The larger of the two variances stands for both. Confidences are skewed: few images that happen to be sure also
    happen to vary little, and with the variance of each (Welch's test) they would prove too much.
    """
    error = max(math.sqrt(max(before.variance, now.variance) * (1 / before.n + 1 / now.n)), 1e-9)
    z = (before.mean - now.mean) / error
    fell = before.mean - now.mean > drop and z > -NormalDist().inv_cdf(level)
    return Collapse(before, now, z) if fell else None


def level_of(block: int) -> float:
    """Return the level at which the k-th block is judged: LEVEL / (k (k + 1)), which sum to LEVEL over all blocks."""
    return LEVEL / (block * (block + 1))
