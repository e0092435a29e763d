"""One draw: the quick ladder with pictures without labels, and every variant on top of what it chose."""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field
from torch import Tensor

from adapt.documents.patch import Tensors
from adapt.networks.forward import served_logits
from adapt.networks.prepared import PreparedBase
from adapt.rungs.statistics import Statistics
from adapt.rungs.stream import Stream
from benchmarks.shifts.lines import Keyed
from benchmarks.streams.affines import train
from benchmarks.streams.robust import MedianBase, balanced, feature_shift, restated
from benchmarks.streams.start import Chosen, Pictures, climb
from benchmarks.streams.variants import GATED, MEDIANS, PICKED, SHIFTED, Variant
from training.data import ImageSet


class Record(Keyed):
    """What a draw found: accuracies on its unseen pictures, fractions."""

    base_digest: str
    shift: str
    n: int
    m: int
    draw: int
    n_test: int
    ladder: float = Field(description="of what the quick ladder chose with the stream")
    rungs: tuple[str, ...] = Field(description="of what it chose")
    accuracy: dict[str, float] = Field(description="by variant")
    is_taken: bool | None = Field(default=None, description="the rung was taken; null: not tried")

    @property
    def key(self) -> tuple[str, str, int, int, int, int]:
        """Which draw. Records of the same one are of different variants."""
        return self.base_digest, self.shift, self.n, self.m, self.draw, self.n_test

    def joined(self, later: "Record") -> "Record":
        """Return all variants of both."""
        taken = self.is_taken if later.is_taken is None else later.is_taken
        return later.model_copy(update={"accuracy": {**self.accuracy, **later.accuracy}, "is_taken": taken})

    def gain(self, variant: Variant) -> float:
        """Return what a variant adds to the ladder's accuracy."""
        return self.accuracy[variant.name] - self.ladder


def measure(
    prepared: PreparedBase,
    medians: MedianBase,
    pictures: Pictures,
    wanted: Sequence[Variant],
    *,
    shift: str,
    draw: int,
) -> Record:
    """Search, put each variant on what was found, and judge all on the unseen pictures.

    Args:
        prepared: the base set.
        medians: the same one with medians as its statistics.
        pictures: of the draw.
        wanted: variants.
        shift: name, for the record.
        draw: number of the draw, and seed.
    """
    found = climb(prepared, pictures, seed=draw)
    chosen = Chosen.of(prepared, found, pictures.labelled.labels)
    own = chosen.run(pictures.unseen.images).logits[0]
    accuracy = _trained(chosen.opened(pictures), pictures, wanted, seed=draw)
    ideas, taken = {variant.idea for variant in wanted}, None
    is_recalibrated = Statistics.name in found.choice.rungs  # else there are no statistics to take the place of
    if MEDIANS in ideas:
        logits = restated(chosen, pictures, medians, pictures.stream) if is_recalibrated else own
        accuracy[MEDIANS] = _accuracy(logits, pictures.unseen)
    if PICKED in ideas:
        stream = balanced(pictures.stream, chosen.run(pictures.stream).logits[0])
        logits = restated(chosen, pictures, prepared, stream) if is_recalibrated else own
        accuracy[PICKED] = _accuracy(logits, pictures.unseen)
    if SHIFTED in ideas:
        moved = feature_shift(chosen, pictures)
        accuracy |= {
            variant.name: _accuracy(own + variant.share * moved, pictures.unseen)
            for variant in wanted
            if variant.idea == SHIFTED
        }
    if GATED in ideas:
        soup = climb(prepared, pictures, seed=draw, with_stream=True).soup
        accuracy[GATED] = _accuracy(served_logits(prepared, soup, pictures.unseen.images), pictures.unseen)
        taken = soup.patch is not None and Stream.name in soup.patch.rungs
    return Record(
        base_digest=prepared.manifest.digest,
        shift=shift,
        n=len(pictures.labelled),
        m=len(pictures.stream),
        draw=draw,
        n_test=len(pictures.unseen),
        ladder=_accuracy(own, pictures.unseen),
        rungs=found.choice.rungs,
        accuracy=accuracy,
        is_taken=taken,
    )


def _trained(chosen: Chosen, pictures: Pictures, wanted: Sequence[Variant], *, seed: int) -> dict[str, float]:
    """Return the accuracies of the variants that train; those of one idea and rate share a training."""
    names: Mapping[tuple[str, float, int, float], str] = {
        (variant.idea, variant.lr, variant.steps, variant.share): variant.name for variant in wanted if variant.lr
    }
    found = {}
    for idea, lr in dict.fromkeys((idea, lr) for idea, lr, _, _ in names):
        own = [(steps, share) for other, rate, steps, share in names if (other, rate) == (idea, lr)]
        steps, shares = (sorted(set(values)) for values in zip(*own, strict=True))
        for step, share, tensors in train(chosen, pictures, idea, lr=lr, steps=steps, shares=shares, seed=seed):
            if (name := names.get((idea, lr, step, share))) is not None:
                logits = chosen.run(pictures.unseen.images, _with_statistics(chosen, pictures, tensors)).logits[0]
                found[name] = _accuracy(logits, pictures.unseen)
    return found


def _with_statistics(chosen: Chosen, pictures: Pictures, tensors: Tensors) -> Tensors:
    if not chosen.prepared.has_batchnorm:
        return tensors
    return {**tensors, **chosen.statistics(pictures, tensors)}


def _accuracy(logits: Tensor, unseen: ImageSet) -> float:
    return float((np.asarray(logits.argmax(dim=1)) == unseen.labels).mean())
