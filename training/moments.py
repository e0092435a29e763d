"""Means and variances of a network's channels on the images it was trained for: the reference of a shift.

BatchNorm keeps such statistics by itself. A network without it has layers that move and scale each channel just as
well, only nobody wrote down how these channels usually look. Written down, they let `adapt` recalibrate LayerNorm
networks as it does BatchNorm networks, from images without labels.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from timm.layers.norm import GroupNorm, GroupNorm1, LayerNorm, LayerNorm2d, LayerNorm2dFp32, LayerNormFp32
from torch import Tensor, nn

from training.images import to_input
from training.models import Classifier, batch_norms

NUM_IMAGES = 2000  # at most, that moments are measured on
BATCH = 200
# A layer whose weights are more than this stays: what moves it becomes part of a soup's patch, which is to be small.
MAX_WEIGHTS = 2**16

# Exact types: subclasses may have an activation within, after which nothing can be moved.
_CHANNELS_LAST = (nn.LayerNorm, LayerNorm, LayerNormFp32)
_CHANNELS_FIRST = (LayerNorm2d, LayerNorm2dFp32, nn.GroupNorm, GroupNorm, GroupNorm1)


class Moments(NamedTuple):
    """Mean and variance (C,), float32, of the channels of a layer's output, over images and positions."""

    mean: Tensor
    var: Tensor


LayerMoments = Mapping[str, Moments]  # by the layer's name


def movable_layers(net: nn.Module, *, max_weights: float = MAX_WEIGHTS) -> dict[str, nn.Module]:
    """Return the layers of a network without BatchNorm that can move and scale each channel of their output, by name.

    These are its normalisation layers, and the convolutions before the first of them, which see the images before
    anything is normalised. Only layers with weight and bias, and at most `max_weights` weights, in the order the
    network names them, from input to output. Empty for a network with BatchNorm, which has its own statistics, and for
    one without any normalisation, which has none to restore.
    """
    modules = dict(net.named_modules())
    if batch_norms(net):
        return {}
    found: dict[str, nn.Module] = {}
    is_normalised = False
    for name, module in modules.items():
        is_norm = type(module) in (*_CHANNELS_LAST, *_CHANNELS_FIRST)
        is_normalised = is_normalised or is_norm
        if (is_norm or (not is_normalised and type(module) is nn.Conv2d)) and _is_small(module, max_weights):
            found[name] = module
    return found if is_normalised else {}


def _is_small(layer: nn.Module, max_weights: float) -> bool:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    return isinstance(weight, Tensor) and isinstance(bias, Tensor) and weight.numel() <= max_weights


def channels_first(layer: nn.Module, output: Tensor) -> Tensor:
    """Return a view of a layer's output with its C channels in dimension 1: (B, C, ...), or (N, C)."""
    return output.flatten(0, -2) if type(layer) in _CHANNELS_LAST else output


def channel_moments(x: Tensor) -> Moments:
    """Return mean and variance of each channel (dimension 1).

    The training kernel of BatchNorm finds them ten times faster than `var_mean` does on channels-last tensors, though
    it also normalises the input.
    """
    mean, var = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    count = x.numel() // x.shape[1]
    if count < 2:  # where the kernel refuses: one image, one position
        return Moments(x.flatten(), var)
    torch.nn.functional.batch_norm(x, mean, var, training=True, momentum=1.0)
    return Moments(mean, var * ((count - 1) / count))


class RunningMoments:
    """Moments over several batches."""

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor] | None = None
        self._weight = 0.0

    def add(self, found: Moments, weight: float) -> None:
        """Add a batch that counts this much, such as its number of images."""
        mean, var = found.mean.double(), found.var.double()
        sums = (mean * weight, (var + mean**2) * weight)
        self._sums = sums if self._sums is None else (self._sums[0] + sums[0], self._sums[1] + sums[1])
        self._weight += weight

    def total(self) -> Moments:
        """Return the moments of all batches; ValueError if there was none."""
        if self._sums is None:
            raise ValueError("expected at least one batch, got none")
        mean, second = (part / self._weight for part in self._sums)
        return Moments(mean.float(), (second - mean**2).clamp_(min=0).float())


@torch.no_grad()
def measure_moments(
    classifier: Classifier, images: npt.NDArray[np.uint8], *, device: str = "cpu"
) -> dict[str, Moments]:
    """Return the moments of every movable layer; empty for a network with BatchNorm.

    Args:
        classifier: in eval mode.
        images: uint8 (n, H, W, 3), n >= 1, of the kind the network was trained on.
        device: torch device.
    """
    classifier.to(device)
    found = {name: RunningMoments() for name in movable_layers(classifier.net)}
    if not found:
        return {}
    with _watching(classifier.net, found):
        for start in range(0, len(images), BATCH):
            classifier(torch.from_numpy(to_input(images[start : start + BATCH])).to(device))
    return {name: Moments(*(part.cpu() for part in running.total())) for name, running in found.items()}


@contextmanager
def _watching(net: nn.Module, found: Mapping[str, RunningMoments]) -> Iterator[None]:
    def watch(layer: nn.Module, running: RunningMoments) -> torch.utils.hooks.RemovableHandle:
        def see(_: nn.Module, __: object, output: Tensor) -> None:
            running.add(channel_moments(channels_first(layer, output)), len(output))

        return layer.register_forward_hook(see)

    handles = [watch(net.get_submodule(name), running) for name, running in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
