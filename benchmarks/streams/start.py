"""The pictures of a draw, and the model that the quick ladder makes of them: what every idea is put on."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode, default_soup
from adapt.images.support import Support, check_disjoint
from adapt.networks.last_layer import Head
from adapt.networks.network import Run
from adapt.networks.prepared import PreparedBase
from adapt.rungs.head import LastLayer, fit_heads
from adapt.rungs.registry import LADDER, TRAINING
from adapt.rungs.stream import Stream
from adapt.rungs.training import Start
from adapt.search.config import SearchConfig
from adapt.search.search import Search, search
from benchmarks.shifts.sets import as_support, draw_positions, others
from training.data import ImageSet, balanced_indices

Pixels = npt.NDArray[np.uint8]

QUICK = tuple(name for name in LADDER if name not in TRAINING)

NUM_SOURCE = 500  # clean pictures that the mean features of training are estimated on


class Pictures(NamedTuple):
    """Pictures of a shift that share none, and clean ones that are none of these.

    Attributes:
        labelled: n of them.
        stream: uint8 (m, H, W, 3), nobody labelled these.
        unseen: those that accuracy is reported on.
        source: uint8 (s, H, W, 3), clean.
    """

    labelled: Support
    stream: Pixels
    unseen: ImageSet
    source: Pixels


def draw_pictures(data: ImageSet, clean: ImageSet, *, n: int, m: int, most: int, n_test: int, seed: int) -> Pictures:
    """Draw the pictures of a trial.

    Args:
        data: shifted pictures.
        clean: the same ones without the shift, in the same order.
        n: labelled ones.
        m: ones without labels; the same for every larger m.
        most: the greatest n and m together that is drawn for: unseen pictures are the same for all up to this.
        n_test: unseen ones.
        seed: of the draw.

    Raises:
        ValueError: too few pictures.
    """
    pool, test = draw_positions(data.labels, data.hashes, n_support=most, n_test=n_test, seed=seed)
    labelled = pool[balanced_indices(data.labels[pool], n, seed=seed)]
    stream = others(pool, labelled, most=m, seed=seed)
    if len(test) < n_test or len(stream) < m:
        raise ValueError(f"expected {most + n_test} different pictures, got {len(pool) + len(test)}")
    rest = np.setdiff1d(np.arange(len(data)), np.concatenate([pool, test]))
    source = np.random.default_rng(seed).permutation(rest)[:NUM_SOURCE]
    support, unseen = as_support(data.subset(labelled)), data.subset(test)
    check_disjoint(support, unseen.hashes)
    return Pictures(support, data.images[stream], unseen, clean.images[source])


def climb(prepared: PreparedBase, pictures: Pictures, *, seed: int, with_stream: bool = False) -> Search:
    """Search with the quick rungs, on labelled pictures and stream; if asked for with the rung `stream` as well."""
    config = SearchConfig(seed=seed)
    if with_stream:
        config = SearchConfig(seed=seed, effort="full", rungs=(*QUICK, Stream.name))
    current = default_soup(prepared.manifest)
    return search(prepared, pictures.labelled, config, current=current, unlabelled=pictures.stream)


@dataclass(frozen=True)
class Chosen:
    """What the ladder chose.

    Attributes:
        prepared: the base set.
        coefficients: M numbers.
        bn_mode: how BatchNorm is mixed.
        tensors: in the place of mixed ones.
        temperature: divides the logits.
        layer: the last layer in place.
        own: the soup's own last layer, divided by its temperature; None where that is in place.
        penalty: which of the strengths of the pull to it was chosen; None likewise.
    """

    prepared: PreparedBase
    coefficients: tuple[float, ...]
    bn_mode: BnMode
    tensors: Tensors
    temperature: float
    layer: Head
    own: Head | None = None
    penalty: int | None = None

    @classmethod
    def of(cls, prepared: PreparedBase, found: Search, labels: npt.NDArray[np.int64]) -> "Chosen":
        """Return what a search on images with these labels chose; ValueError if its last layer is not linear."""
        model = found.choice
        if model.layer is None:
            raise ValueError("expected a base set with a linear last layer")
        chosen = cls(prepared, model.coefficients, model.bn_mode, model.tensors, model.temperature, model.layer)
        below = model.below
        if LastLayer.name not in model.rungs or below is None or below.layer is None or below.features is None:
            return chosen
        own = below.layer.divided(below.temperature)
        heads = fit_heads(below.features, labels, own)
        far = [float((head.weight - model.layer.weight).abs().max()) for head in heads]
        return replace(chosen, own=own, penalty=int(np.argmin(far)))

    def run(self, images: Pixels, tensors: Tensors | None = None) -> Run:
        """Return what the network says about pictures, with these tensors beside its own."""
        patch = {**self.tensors, **(tensors or {})} or None
        row = np.asarray([self.coefficients])
        return self.prepared.run(row, images, bn_mode=self.bn_mode, patch=patch)

    def opened(self, pictures: Pictures) -> "Chosen":
        """Return it with BatchNorm in a layout in which scales and shifts stand by themselves.

        Where it was folded, the channel statistics are those of the pictures.
        """
        if not self.prepared.has_batchnorm or self.bn_mode == "raw":
            return self
        found = self.statistics(pictures, {})
        return replace(self, bn_mode="raw", tensors={**self.tensors, **found})

    def statistics(self, pictures: Pictures, tensors: Tensors) -> Tensors:
        """Return new BatchNorm statistics with these tensors in place, of labelled pictures and stream."""
        found = self.prepared.run(
            np.asarray([self.coefficients]),
            pictures.labelled.images,
            patch={**self.tensors, **tensors} if self.bn_mode == "raw" else None,
            recalibrate=True,
            unlabelled=pictures.stream,
        ).statistics[0]
        assert found is not None, "recalibration was asked for"
        return found

    def start(self) -> Start:
        """Return what training starts from."""
        return Start(self.coefficients, self.bn_mode, self.tensors or None, self.temperature)
