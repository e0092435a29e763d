"""The first layers, and every scale and shift, trained on the labelled images; the rest of the network stays.

New channel statistics undo what a shift does to each channel alone. What it does to how pixels and channels relate, as
when colours are inverted, takes other filters, and the first layers see the shift most directly. They are small, so
that a patch can hold them; the layers behind them keep what they know of the classes.

A few labels say little. So the answers of the rung below stand beside them as a prior that counts as some images more:
its probabilities are mixed into the targets.

Source: Lee et al. 2022 (arXiv:2210.11466), first layers for shifts of the input; Ben Zaken et al. 2022
(arXiv:2106.10199), biases alone; Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), probabilities as targets.
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

# Of the network's weights in matrices and filters, the share that is trained, from the input on; and their most, unless
# the first filters alone are more: those of a vision transformer's patches are, and without them nothing is early.
SHARE, MAX_WEIGHTS = 0.1, 2**16
LEARNING_RATE = 1e-3  # the highest; it rises over the first steps and falls along a cosine
STEPS = 0.8  # the power of the number of images: 40 steps for 100, 251 for 1,000
PRIOR_IMAGES = 150.0  # images that the answers of the rung below count as
BATCH = 64  # images per step; fewer where there are fewer
WARM_UP = 0.1  # share of the steps in which the learning rate rises
MOVED = 8  # images are moved by up to this part of a side
FORWARDS = 3  # of a step, in forwards: a backward pass counts as two

Pixels = npt.NDArray[np.uint8]


class Start(NamedTuple):
    """What training starts from.

    Attributes:
        coefficients: M numbers.
        bn_mode: how BatchNorm is mixed: raw, or any where there is none.
        patch: tensors in the place of mixed ones.
        temperature: divides the logits.
    """

    coefficients: Sequence[float]
    bn_mode: BnMode
    patch: Tensors | None
    temperature: float


class Trained(NamedTuple):
    """A network with other first layers, scales and shifts.

    Attributes:
        tensors: what was trained, float32 by state-dict key; with BatchNorm its statistics too.
        image_forwards: images through the network.
    """

    tensors: dict[str, Floats]
    image_forwards: int


def early_keys(net: nn.Module, head_key: str) -> list[str]:
    """Return the names of what is trained: the first filters, and all vectors; nothing of the last layer.

    Filters are kernels and matrices; vectors are scales, shifts and tokens, whatever their number of dimensions.
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


def train_early(
    prepared: PreparedBase,
    start: Start,
    images: Pixels,
    labels: npt.NDArray[np.int64],
    prior: Tensor,
    *,
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
        images: uint8 (n, H, W, 3).
        labels: (n,) class indices.
        prior: probabilities (n, K) that the rung below gives.
        unlabelled: uint8 (m, H, W, 3), for the statistics only.
        weights: (n,) of the images; None for equal ones.
        seed: of order and moves.
        progress: called with the fraction done.
        should_stop: asked before each step.

    Raises:
        Cancelled: `should_stop` said so.
    """
    assert prepared.head_key is not None, "the last layer is linear"
    model = prepared.model(start.bn_mode)
    model.set(start.coefficients, start.patch)
    net = copy.deepcopy(model.net)
    keys = early_keys(net, prepared.head_key)
    n, generator = len(images), torch.Generator().manual_seed(seed)
    share = PRIOR_IMAGES / (PRIOR_IMAGES + n)
    targets = torch.lerp(one_hot(torch.from_numpy(labels), prior.shape[1]).float(), prior.float(), share)
    counts = torch.ones(n) if weights is None else torch.from_numpy(weights)
    optimiser = torch.optim.Adam([net.get_parameter(key).requires_grad_(True) for key in keys])
    num_steps, seen = math.ceil(n**STEPS), 0
    with exact_floats(), _batch_statistics(net):
        for step, batch in zip(range(num_steps), _endless(n, generator), strict=False):
            check_stop(should_stop)
            optimiser.param_groups[0]["lr"] = LEARNING_RATE * _rate((step + 0.5) / num_steps)
            x = _moved(prepared.inputs(images[batch.numpy()]), generator)
            losses = cross_entropy(net(x) / start.temperature, targets[batch].to(x.device), reduction="none")
            optimiser.zero_grad(set_to_none=True)
            (losses * counts[batch].to(x.device)).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seen += len(batch)
            if progress is not None:
                progress((step + 1) / num_steps)
    pool = images if unlabelled is None else np.concatenate([images, unlabelled])
    statistics = _estimate_statistics(prepared, net, pool)
    state_dict = net.state_dict()
    tensors = {key: state_dict[key].detach().cpu().contiguous().numpy() for key in (*keys, *statistics)}
    return Trained(tensors, FORWARDS * seen + (len(pool) if statistics else 0))


def _rate(done: float) -> float:
    """Return the share of the highest learning rate after this share of the steps."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _endless(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield positions batch by batch, in batches of nearly equal size; every one of n occurs once in each round."""
    while True:
        yield from torch.randperm(n, generator=generator).tensor_split(-(-n // BATCH))


def _moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, 3, H, W) each moved a little at random, what comes in at a border being a mirror image.

    Images are not mirrored, because a mirrored digit is wrong.
    """
    height, width = x.shape[2:]
    down, right = max(1, height // MOVED), max(1, width // MOVED)
    wide = pad(x, (right, right, down, down), mode="reflect")
    top, left = (torch.randint(2 * most + 1, (len(x), 1), generator=generator) for most in (down, right))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    place = (torch.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :])
    moved = wide.permute(0, 2, 3, 1)[tuple(index.to(x.device) for index in place)]  # (B, H, W, 3): channels last
    return moved.permute(0, 3, 1, 2)


@contextmanager
def _batch_statistics(net: nn.Module) -> Iterator[None]:
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
def _estimate_statistics(prepared: PreparedBase, net: nn.Module, pool: Pixels) -> list[str]:
    """Give BatchNorm the statistics of these images, the mean over batches as large as memory allows; return the keys.

    Those of training have no part: they belong to other filters.
    """
    layers = batchnorms(net)
    if not layers:
        return []
    for layer in layers.values():
        layer.reset_running_stats()
        layer.training, layer.momentum = True, None  # None: the mean over all batches
    with exact_floats():
        for part in np.array_split(pool, -(-len(pool) // recalibration_batch(pool))):
            net(prepared.inputs(part))
    net.eval()
    return [f"{name}{part}" for name in layers for part in STATISTICS]
