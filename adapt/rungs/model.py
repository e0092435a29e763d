"""A model that a rung has fitted, and the interface of rungs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode
from adapt.evidence.scores import Bools, Doubles, Floats, Ints
from adapt.networks.last_layer import Head
from adapt.rungs.task import Part


class Seen(NamedTuple):
    """The answers of a network to images, and the inputs of its last layer."""

    logits: Tensor  # (m, K), not divided by the temperature
    features: Tensor | None  # (m, D); None where the last layer is not linear


@dataclass(frozen=True, eq=False)
class Model:
    """A network made from a part of the labelled images, and its answers to all n of them.

    Attributes:
        candidate: position of its coefficients in the pool; 0 is the current soup.
        coefficients: M mixing numbers.
        bn_mode: how BatchNorm is mixed.
        temperature: divides the network's logits.
        answer: returns the network's logits (m, K) for some of the images (n,), not divided by the temperature.
        features: (n, D), the inputs of the last layer; None if it is not linear.
        layer: the last layer in place, before the temperature; None where it is not linear.
        tensors: what takes the place of mixed tensors.
        stream: returns what it says of the images without labels; None where nothing was kept to say it.
        frequencies: (K,) of the classes, which were added to its last layer; None for none.
        recalibrated: images that its channel statistics were estimated on; 0 for those of training.
        rungs: names of the rungs that made its tensors.
        below: the model that its last rung was put on.
    """

    candidate: int
    coefficients: tuple[float, ...]
    bn_mode: BnMode
    temperature: float
    answer: Callable[[Bools], Tensor] = field(repr=False)
    features: Tensor | None = field(repr=False)
    layer: Head | None = field(repr=False)
    stream: Callable[[], Seen] | None = field(default=None, repr=False)
    frequencies: Doubles | None = field(default=None, repr=False)
    tensors: Tensors = field(default_factory=dict, repr=False)
    recalibrated: int = 0
    rungs: tuple[str, ...] = ()
    below: "Model | None" = field(default=None, repr=False)

    def logits(self, images: Bools) -> Tensor:
        """Return logits (m, K) for some of the images (n,), divided by the temperature."""
        return self.answer(images) / self.temperature


class Answers(NamedTuple):
    """Answers to images by models made without them."""

    losses: Floats  # (n,) cross-entropy; infinite for logits that are not finite
    right: Bools  # (n,)

    def of(self, some: Bools) -> "Answers":
        """Return the answers to some (n,) of the images."""
        return Answers(self.losses[some], self.right[some])


@runtime_checkable
class Rung(Protocol):
    """A way to fit a model to labelled images. It gets a part of the images at a time and must not look at others.

    Attributes:
        name: as in the `rungs` of a search.
        num_variants: settings that `fit` tries; held-out answers choose among them.
        num_parts: None where `fit` is cheap enough to be repeated without every two folds. Else the most parts of the
            images that are held out in turn; with fewer than there are folds, some folds are held out together. Then
            the decision for a fold rests on the answers to the other folds by models that were fitted on the fold, too.
    """

    name: str
    num_variants: int
    num_parts: int | None

    def refuse(self, below: Model, part: Part) -> str | None:
        """Return why the rung is not tried on these images; None if it is."""

    def fit(self, below: Model, part: Part) -> Sequence[Model]:
        """Return a model for each variant, fitted on the part; the model below where that cannot be done.

        Called for parts of the images that `refuse` was asked about.
        """

    def is_better(self, below: Answers, own: Answers, weights: Floats | None) -> bool:
        """Say whether held-out answers are better with the rung; all arrays are of the same images."""


def judge(logits: Tensor, labels: Ints) -> Answers:
    """Return losses and hits of logits (n, K); an image whose logits are not finite is lost."""
    targets = torch.from_numpy(labels)
    losses = torch.logsumexp(logits, dim=1) - logits.gather(1, targets.view(-1, 1)).squeeze(1)
    finite = logits.isfinite().all(dim=1)
    right = (logits.argmax(dim=1) == targets) & finite
    return Answers(losses.float().masked_fill(~finite, torch.inf).numpy(), right.numpy())


def total(losses: Floats | Doubles, weights: Floats | None) -> float:
    """Return the weighted sum of losses (n,)."""
    return float((losses if weights is None else losses * weights).sum(dtype=np.float64))
