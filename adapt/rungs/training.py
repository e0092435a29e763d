"""Gradient steps from a soup on the labelled images.

A few labels say little. So the answers of the rung below may stand beside them as a prior that counts as some images
more: its probabilities are mixed into the targets.

Source: Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), probabilities as targets.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, pad

from adapt.documents.patch import STATISTICS, Floats, Tensors
from adapt.documents.soup import BnMode
from adapt.networks.batchnorm import batchnorms
from adapt.networks.forward import recalibration_batch
from adapt.networks.network import check_stop
from adapt.networks.prepared import PreparedBase
from training.devices import exact_floats

PRIOR_IMAGES = 150.0  # images that the answers of the rung below count as
WARM_UP = 0.1  # share of the steps in which the learning rate rises
MOVED = 8  # images are moved by up to this part of a side
FORWARDS = 3  # of a step, in forwards: a backward pass counts as two

Pixels = npt.NDArray[np.uint8]


class Start(NamedTuple):
    """The start of a training.

    Attributes:
        coefficients: M numbers.
        bn_mode: how BatchNorm is mixed: raw, or any if there is no BatchNorm.
        patch: tensors in the place of mixed ones.
        temperature: divides the logits.
    """

    coefficients: Sequence[float]
    bn_mode: BnMode
    patch: Tensors | None
    temperature: float


class Plan(NamedTuple):
    """A plan: the trained tensors, the rate, the steps.

    Attributes:
        keys: names of the parameters.
        learning_rate: the highest; it rises over the first steps and falls along a cosine.
        steps: of AdamW.
        batch: images of a step at most; fewer if there are fewer.
        weight_decay: its share of the learning rate.
        mirrored: mirror half of the images left to right.
    """

    keys: Sequence[str]
    learning_rate: float
    steps: int
    batch: int
    weight_decay: float = 0.0
    mirrored: bool = False


class Trained(NamedTuple):
    """A network after training.

    Attributes:
        tensors: what was trained, float32 by state-dict key; with BatchNorm its statistics too.
        image_forwards: images through the network.
    """

    tensors: dict[str, Floats]
    image_forwards: int


def train(
    prepared: PreparedBase,
    start: Start,
    plan: Plan,
    images: Pixels,
    labels: npt.NDArray[np.int64],
    *,
    prior: Tensor | None = None,
    unlabelled: Pixels | None = None,
    weights: Floats | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Trained:
    """Lower the cross-entropy to labels and prior, on images moved a little at random.

    The prior keeps the network near to what it was. BatchNorm normalises each batch with the batch's statistics, and is
    given those of all images at the end.

    Args:
        prepared: the base set; its network has a linear last layer.
        start: the network to train.
        plan: what is trained, how fast and how long.
        images: uint8 (n, H, W, 3).
        labels: (n,) class indices.
        prior: probabilities (n, K) that the rung below gives; None for labels alone.
        unlabelled: uint8 (m, H, W, 3), for the statistics only.
        weights: (n,) of the images; None for equal ones.
        seed: of order and moves.
        progress: called with the fraction done.
        should_stop: asked before each step.

    Raises:
        Cancelled: `should_stop` said so.
    """
    net = network_of(prepared, start)
    n, generator = len(images), torch.Generator().manual_seed(seed)
    targets = one_hot(torch.from_numpy(labels), len(prepared.manifest.class_names)).float()
    if prior is not None:
        targets = torch.lerp(targets, prior.float(), PRIOR_IMAGES / (PRIOR_IMAGES + n))
    counts = torch.ones(n) if weights is None else torch.from_numpy(weights)
    optimiser = torch.optim.AdamW(
        [net.get_parameter(key).requires_grad_(True) for key in plan.keys], weight_decay=plan.weight_decay
    )
    seen = 0
    with exact_floats(), batch_statistics(net):
        for step, batch in zip(range(plan.steps), endless(n, plan.batch, generator), strict=False):
            check_stop(should_stop)
            optimiser.param_groups[0]["lr"] = plan.learning_rate * _rate((step + 0.5) / plan.steps)
            x = moved(prepared.inputs(images[batch.numpy()]), generator, mirrored=plan.mirrored)
            losses = cross_entropy(net(x) / start.temperature, targets[batch].to(x.device), reduction="none")
            optimiser.zero_grad(set_to_none=True)
            (losses * counts[batch].to(x.device)).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seen += len(batch)
            if progress is not None:
                progress((step + 1) / plan.steps)
    statistics, forwards = estimate_statistics(prepared, net, pooled(images, unlabelled), should_stop=should_stop)
    trained = {key: net.get_parameter(key).detach().cpu().contiguous().numpy() for key in plan.keys}
    return Trained({**trained, **statistics}, FORWARDS * seen + forwards)


def network_of(prepared: PreparedBase, start: Start) -> nn.Module:
    """Return a copy of the network to train, in eval mode, without gradients."""
    model = prepared.model(start.bn_mode)
    model.set(start.coefficients, start.patch)
    return copy.deepcopy(model.net)


def pooled(images: Pixels, unlabelled: Pixels | None) -> Pixels:
    """Return the images that statistics are estimated on, uint8 (n + m, H, W, 3)."""
    return images if unlabelled is None else np.concatenate([images, unlabelled])


def _rate(done: float) -> float:
    """Return the share of the highest learning rate after this share of the steps."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def endless(n: int, most: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield positions in batches of nearly equal size, `most` at most; every one of n occurs once in each round."""
    while True:
        yield from torch.randperm(n, generator=generator).tensor_split(-(-n // most))


def moved(x: Tensor, generator: torch.Generator, *, mirrored: bool) -> Tensor:
    """Return images (B, 3, H, W) each moved a little at random, what comes in at a border being a mirror image.

    Mirroring the images themselves is for those whose classes allow it: a mirrored digit is wrong.
    """
    height, width = x.shape[2:]
    down, right = max(1, height // MOVED), max(1, width // MOVED)
    wide = pad(x, (right, right, down, down), mode="reflect")
    top, left = (torch.randint(2 * most + 1, (len(x), 1), generator=generator) for most in (down, right))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    if mirrored:
        columns = torch.where(torch.rand(len(x), 1, generator=generator) < 0.5, columns.flip(1), columns)
    place = (torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :])
    found = wide.permute(0, 2, 3, 1)[tuple(index.to(x.device) for index in place)]  # (B, H, W, 3): channels last
    return found.permute(0, 3, 1, 2)


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise with the batch at hand, and leave its running statistics alone."""
    layers = batchnorms(net).values()
    for layer in layers:
        layer.training, layer.track_running_stats = True, False
    try:
        yield
    finally:
        for layer in layers:
            layer.training, layer.track_running_stats = False, True


@torch.no_grad()
def estimate_statistics(
    prepared: PreparedBase, net: nn.Module, pool: Pixels, *, should_stop: Callable[[], bool] | None = None
) -> tuple[dict[str, Floats], int]:
    """Give BatchNorm the statistics of these images, the mean over batches as large as memory allows.

    Those of training have no part: they belong to other filters.

    Returns:
        The statistics by state-dict key, and the number of images through the network: none without BatchNorm.
    """
    layers = batchnorms(net)
    if not layers:
        return {}, 0
    for layer in layers.values():
        layer.reset_running_stats()
        layer.training, layer.momentum = True, None  # None: the mean over all batches
    with exact_floats():
        for part in np.array_split(pool, -(-len(pool) // recalibration_batch(pool))):
            check_stop(should_stop)
            net(prepared.inputs(part))
    net.eval()
    keys = [f"{name}{part}" for name in layers for part in STATISTICS]
    return {key: net.get_buffer(key).cpu().numpy().copy() for key in keys}, len(pool)
