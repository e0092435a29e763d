"""What is tried: ideas and their settings."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

SHIFTED, MEDIANS, PICKED = "feature shift", "channel medians", "balanced pick"
GATED = "the rung, gated"  # `adapt.rungs.stream`, where held-out labels ask for it
LABELS = "labels"  # of ideas that also learn from the labelled pictures
SHARES = (0.5, 1.0)
STEPS = (16, 32)
# Learning rates: of SGD with momentum for EATA, of Adam for the others.
RATES = {
    "eata": (5e-3, 2e-2),
    f"eata + {LABELS}": (5e-3,),
    "roid": (1e-3, 3e-3),
    f"roid + {LABELS}": (1e-3,),
    LABELS: (1e-3,),
}


class Variant(NamedTuple):
    """An idea in one setting.

    Attributes:
        idea: its name.
        lr: learning rate; 0 for what does not train.
        steps: of training; 0 likewise.
        share: of the way from what the ladder chose; 1 for what has no way between.
    """

    idea: str
    lr: float = 0.0
    steps: int = 0
    share: float = 1.0

    @property
    def name(self) -> str:
        """How records call it."""
        return f"{self.idea}: {self.setting}" if self.setting else self.idea

    @property
    def setting(self) -> str:
        """What tells it from others of the idea; empty where there is one setting only."""
        if self.lr:
            return f"lr {self.lr:g}, {self.steps} steps, share {self.share:g}"
        return f"share {self.share:g}" if self.idea == SHIFTED else ""


TRAINED = tuple(
    Variant(idea, lr, steps, share)
    for idea, rates in RATES.items()
    for lr, steps, share in product(rates, STEPS, SHARES)
)
TUNED = (*TRAINED, *(Variant(SHIFTED, share=share) for share in SHARES))  # ideas with several settings
VARIANTS = (*TUNED, Variant(MEDIANS), Variant(PICKED), Variant(GATED))
IDEAS = tuple(dict.fromkeys(variant.idea for variant in VARIANTS))


def of_idea(idea: str) -> Sequence[Variant]:
    """Return all settings of an idea."""
    return [variant for variant in VARIANTS if variant.idea == idea]
