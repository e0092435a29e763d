"""What the demo saw: the pictures, what happened, and how it is told."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures that no ingredient was trained or chosen on, parted in two.

    `support` and `test` are positions, disjoint, drawn evenly over the classes.
    """

    class_names: tuple[str, ...]
    classes: npt.NDArray[np.int64]  # (N,), of each picture
    files: list[bytes]  # JPEG
    support: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    scenes: npt.NDArray[np.uint8] | None = None  # (N, H, W, 3), what stood before the camera, where there was one

    def labels(self, positions: npt.NDArray[np.int64]) -> list[str]:
        """Return class names."""
        return [self.class_names[label] for label in self.classes[positions]]


@dataclass
class Story:
    """What happened."""

    before: float
    after: float
    predicted_before: list[str]  # of the test pictures, in order
    predicted_after: list[str]
    soup_before: dict[str, float]
    soup_after: dict[str, float]
    job: dict[str, Any]  # the job object of /adapt
    num_requests: int
    failures: list[str]
    num_failed: int
    answers: list[tuple[float, int]]  # second and soup version of every answer to the hammering clients
    posted: float  # on the clock of `answers`
    decided: float
    rolled_out: float
    seconds: float = 0.0

    @property
    def is_shown(self) -> bool:
        """What the demo claims: more pictures are right than before, and no request was lost."""
        return self.after > self.before and self.num_failed == 0

    @property
    def swap_ms(self) -> int | None:
        """From the decision to promote to the news that every worker serves it; None if nothing was promoted."""
        return round((self.rolled_out - self.decided) * 1e3) if self.job["state"] == "promoted" else None

    @property
    def line(self) -> dict[str, Any]:
        """The result in one object."""
        return {
            "demo": "ok" if self.is_shown else "failed",
            "state": self.job["state"],
            "before": round(self.before, 4),
            "after": round(self.after, 4),
            "n_support": self.job["support"]["n"],
            "n_test": len(self.predicted_before),
            "requests": self.num_requests,
            "failed": self.num_failed,
            "swap_ms": self.swap_ms,
            "seconds": round(self.seconds),
        }


def table(story: Story) -> str:
    """Return the story as a table."""
    accuracy, search = story.job["accuracy"], story.job["search"]
    rows = [
        f"{'':34}{'before':>9}{'after':>9}",
        f"{f'accuracy on {len(story.predicted_before)} unseen pictures':34}{story.before:9.3f}{story.after:9.3f}",
    ]
    if accuracy is not None:
        held_out = f"on {story.job['support']['n']} labelled ones, held out"
        rows.append(
            f"{held_out:34}{accuracy['current']:9.3f}{accuracy['candidate']:9.3f}   p = {accuracy['p_value']:.2g}"
        )
    for name, coefficient in story.soup_before.items():
        rows.append(f"{f'coefficient of {name}':34}{coefficient:9.2f}{story.soup_after[name]:9.2f}")
    if (patch := story.job["patch"]) is not None:
        images = f"{patch['recalibrated']} new"
        rows += [f"{'channel statistics of':34}{'training':>9}{images:>9}"] if patch["recalibrated"] else []
        rows += [f"{'last layer':34}{'mixed':>9}{'fitted':>9}"] if "head" in patch["rungs"] else []
        rows += [f"{'first layers':34}{'mixed':>9}{'trained':>9}"] if "early" in patch["rungs"] else []
    rows.append(f"search: {search['candidates']} soups in {search['seconds']:.1f} s; {story.job['state']}")
    swap = "" if story.swap_ms is None else f"; decision to last worker {story.swap_ms} ms"
    rows.append(f"load: {story.num_requests:,} requests, {story.num_failed} failed{swap}")
    return "\n".join([*rows, *(f"  failed: {failure}" for failure in story.failures[:5])])
