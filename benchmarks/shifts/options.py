"""Hyper-parameters of the rivals: one document for each kind."""

from typing import Any, Literal

from pydantic import Field

from benchmarks.shifts.finetuning import Schedule
from training.documents import Frozen

Learned = Literal["support", "unseen"]


class Recalibration(Frozen):
    """BatchNorm statistics of an ingredient."""

    prior_images: float = Field(gt=0, description="pictures that the statistics of training count as, in every layer")


class Refit(Frozen):
    """A last layer fitted again."""

    min_images: int = Field(ge=0, description="with fewer labelled pictures the layer stays")


class Probing(Frozen):
    """A last layer fitted from nothing."""

    penalty: float = Field(gt=0, description="of half the squared weights, beside the mean cross-entropy")


class FineTuning(Frozen):
    """Training of all weights."""

    schedule: Schedule


class Surgery(Frozen):
    """Training of one part."""

    part: float = Field(ge=0, le=1, description="where it lies: 0 the first, 1 the last")
    schedule: Schedule


class Tent(Frozen):
    """Entropy minimisation."""

    learns_on: Learned
    lr: float
    epochs: int


class Eata(Frozen):
    """Entropy minimisation on answers that are sure and unlike earlier ones."""

    lr: float = Field(gt=0)
    similarity: float = Field(gt=0, description="cosine to the mean answer from which on an answer is redundant")
    anchor: float = Field(ge=0, description="weight of the penalty that keeps important parameters")


class Sar(Frozen):
    """Sharpness-aware entropy minimisation."""

    lr: float = Field(gt=0)


class Roid(Frozen):
    """Weighted soft likelihood ratios, weights pulled back, answers corrected by class frequencies."""

    lr: float = Field(gt=0)


class T3a(Frozen):
    """Prototypes of classes."""

    most: int | None = Field(description="surest pictures of a class that its prototype is made of; null for all")


Options = Recalibration | Refit | Probing | FineTuning | Surgery | Tent | Eata | Sar | Roid | T3a


def spelled(options: dict[str, Any]) -> str:
    """Return options as text: those of a schedule like the others."""
    flat = dict(options)
    schedule = flat.pop("schedule", {})
    shown = {**flat, **{name: value for name, value in schedule.items() if name in ("lr", "steps")}}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
