"""First layers, scales and shifts trained on the labelled images, from the model below with its own last layer.

Class frequencies are added to that layer where they were to the one below: labels that are a fair draw have them.

New channel statistics undo what a shift does to each channel alone. A shift of how pixels and channels relate, as
inverted colours, needs other filters, and the first layers see the shift most directly. They are small, so that a patch
can hold them; the layers behind them keep what they know of the classes.

Source: Lee et al. 2022 (arXiv:2210.11466), first layers for shifts of the input; Ben Zaken et al. 2022
(arXiv:2106.10199), biases alone.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from adapt.evidence.cross_fit import NUM_FOLDS
from adapt.evidence.scores import Floats, part
from adapt.rungs.frequencies import Frequencies
from adapt.rungs.head import refuse_current, refuse_labels
from adapt.rungs.model import Answers, Model, total
from adapt.rungs.pool import Library
from adapt.rungs.statistics import Statistics
from adapt.rungs.task import Part
from adapt.rungs.trained import start_of, trainable, trained_model
from adapt.rungs.training import Plan, train

MIN_IMAGES = 80  # below, what is learned is not worth what is lost: see docs/experiments/2026-11.md
# Of the network's weights in matrices and filters, the share that is trained, from the input on; and their most, unless
# the first filters alone are more: those of a vision transformer's patches are, and without them nothing is early.
SHARE, MAX_WEIGHTS = 0.1, 2**16
LEARNING_RATE = 1e-3
BATCH = 64
STEPS = 0.8  # the power of the number of images: 40 steps for 100, 251 for 1,000


class FirstLayers:
    """Trains the first layers of the model below; see `adapt.rungs.training`.

    One training takes as long as the rest of a search. So it is not repeated without every two folds: see
    `adapt.rungs.model.Rung.num_parts`.
    """

    name = "early"
    num_variants = 1
    num_parts: int | None = NUM_FOLDS

    def __init__(self, library: Library) -> None:
        self._library, self._task = library, library.task
        self._statistics, self._frequencies = Statistics(library), Frequencies(library)
        self._num_trained = 0

    def refuse(self, below: Model, some: Part) -> str | None:
        """Say so where images are few or lack a class, or where no tensor of the network stands by itself."""
        if (network := trainable(self._task)) is None or network.head_key is None:
            return "the network has no linear last layer"
        why = refuse_labels(self._task, some, least=MIN_IMAGES) or refuse_current(self._library, below)
        if why is not None:
            return why
        if self._start(below, some) is None:
            return "BatchNorm is folded into the weights that would be trained"
        return None

    def fit(self, below: Model, some: Part) -> Sequence[Model]:
        """Return the model below with trained first layers."""
        start = self._start(below, some)
        if start is None or refuse_current(self._library, below) is not None:
            return [below]
        task, images, network = self._task, some.images, trainable(self._task)
        assert network is not None, "refused otherwise"
        teacher = below if below.candidate == start.candidate else start
        done, step = self._num_trained, 1 / len(task.subsets())
        trained = train(
            network,
            start_of(start),
            early_plan(network.model(start.bn_mode).net, f"{network.head_key}", int(images.sum())),
            task.support.images[images],
            task.support.labels[images],
            prior=teacher.logits(images).softmax(dim=1),
            unlabelled=task.unlabelled,
            weights=part(task.weights, images),
            seed=task.seed,
            progress=lambda share: task.report(
                min(1.0, step * (done + share)), f"training first layers on {images.sum()} images"
            ),
            should_stop=task.should_stop,
        )
        self._num_trained += 1
        self._library.image_forwards += trained.image_forwards
        return [trained_model(self._library, start, {**start.tensors, **trained.tensors}, self.name, int(images.sum()))]

    def is_better(self, below: Answers, own: Answers, weights: Floats | None) -> bool:
        """Say whether held-out images have a lower cross-entropy, and no fewer right answers."""
        counts = np.ones(len(own.right), dtype=np.float32) if weights is None else weights
        if total(own.losses, weights) >= total(below.losses, weights):
            return False
        return float(counts @ own.right) >= float(counts @ below.right)

    def _start(self, below: Model, some: Part) -> Model | None:
        """Return the model to train: the one below with its own last layer; a recalibrated one where that is folded."""
        start = below
        while start.below is not None:
            start = start.below
        if not self._is_open(below):
            if self._statistics.refuse(below, some) is not None:
                return None
            start = self._statistics.fit(below, some)[0]
        return start if below.frequencies is None else self._frequencies.fit(start, some)[0]

    def _is_open(self, model: Model) -> bool:
        """Say whether the network is in a layout in which every tensor stands by itself."""
        return not self._task.network.has_batchnorm or model.bn_mode == "raw"


def early_plan(net: nn.Module, head_key: str, num_images: int) -> Plan:
    """Return how the first layers of a network are trained on `num_images` images."""
    return Plan(early_keys(net, head_key), LEARNING_RATE, math.ceil(num_images**STEPS), BATCH)


def early_keys(net: nn.Module, head_key: str) -> list[str]:
    """Return the names of what is trained: the first filters, and all vectors; nothing of the last layer.

    Filters are kernels and matrices; vectors are scales, shifts and tokens of any number of dimensions.
    Embeddings of positions and tables of attention biases are neither, and stay.

    Args:
        net: its parameters are named in the order in which images pass them, as is usual.
        head_key: name of the last layer.
    """
    filters = {name: p.numel() for name, p in net.named_parameters() if _is_filter(net, name, p)}
    most = max(MAX_WEIGHTS, next(iter(filters.values()), 0))
    room, found = min(int(SHARE * sum(filters.values())), most), []
    for name, parameter in net.named_parameters():
        if name.startswith(f"{head_key}."):
            continue
        if name in filters:
            if parameter.numel() > room:
                room = 0  # what lies behind the first that does not fit is not early
                continue
            room -= parameter.numel()
            found.append(name)
        elif sum(size > 1 for size in parameter.shape) <= 1:
            found.append(name)
    return found


def _is_filter(net: nn.Module, name: str, parameter: Tensor) -> bool:
    """Say if a parameter is a kernel or a matrix that the input of its layer is multiplied with."""
    layer, _, own_name = name.rpartition(".")
    is_embedding = isinstance(net.get_submodule(layer), nn.Embedding)
    return parameter.dim() > 1 and "weight" in own_name and not is_embedding
