"""New channel statistics, estimated on images of the shift: no labels needed, one forward pass.

A shift moves the mean and spread of the activations away from what training left; estimating them on the shifted
images brings the activations back to where the weights expect them. Few images give noisy estimates, so the statistics
of training count as some images more. They count for little in the first layers, whose every image has many positions
and which see the shift most directly, and for more in the last ones.

BatchNorm keeps the statistics of training, and new ones take their place. A network without BatchNorm needs them
written down in its base set (training/moments.py); there the new ones become other weights and biases of the layers
that can move and scale their channels.

Source: Schneider et al. 2020 (arXiv:2006.16971), sec. 3, for BatchNorm with one prior strength in all layers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from adapt.documents.patch import Tensors
from adapt.networks.batchnorm import batchnorms
from adapt.networks.mixing import FlatModel
from training.moments import LayerMoments, Moments, RunningMoments, channel_moments, channels_first

# Images that the statistics of training count as, in the first and in the last layer: see docs/experiments/2026-11.md.
PRIOR_IMAGES = (1.0, 32.0)
EPS = 1e-5  # added to variances before they are divided; where both are tiny, a channel is left alone

Floats = npt.NDArray[np.float32]
Measure = Callable[[Tensor], Moments]  # (B, C, ...) -> of each channel


class Recalibrator:
    """Gives a network the weights of a soup with channel statistics of the images at hand. Raw layout only."""

    def __init__(
        self,
        model: FlatModel,
        *,
        moments: Sequence[LayerMoments] | None = None,
        prior_images: tuple[float, float] = PRIOR_IMAGES,
        measure: Measure = channel_moments,
    ) -> None:
        """Find the layers.

        Args:
            model: in the raw layout, BatchNorm layers and their statistics in place.
            moments: of each of the M ingredients; only for a network without BatchNorm.
            prior_images: how many images the statistics of training count as, in the first and in the last layer; the
                layers between lie on a geometric line.
            measure: finds mean and variance of a batch's channels.

        Raises:
            ValueError: neither BatchNorm with running statistics nor moments, or a prior that is not positive.
        """
        if min(prior_images) <= 0:
            raise ValueError(f"expected a positive number of prior images, got {prior_images}")
        self._model, self._moments, self._measure = model, moments, measure
        names = list(batchnorms(model.net)) if moments is None else list(moments[0])
        if not names:
            raise ValueError("the network has no BatchNorm statistics to recalibrate, and its base set no moments")
        self._layers = {name: model.net.get_submodule(name) for name in names}
        self._strengths = np.geomspace(*prior_images, num=len(names)).tolist()

    def run(
        self, coefficients: Sequence[float], batches: Sequence[Tensor], num_images: int, *, patch: Tensors | None = None
    ) -> Tensor | None:
        """Set weights and statistics of this soup. Returns the logits of the images where they are one batch.

        Every layer's statistics are (N prior + n batch) / (N + n), where n counts all images and the batch is
        normalised with this very mixture, so that deeper layers see what they will see later. Of several batches each
        is normalised with its own; the means and second moments are then averaged. The prior mixes the ingredients'
        statistics with the nearest coefficients on the simplex: outside of it variances may come out negative.

        Args:
            coefficients: M numbers.
            batches: the network's inputs (B, ...), at least one image.
            num_images: in all batches.
            patch: tensors in the place of mixed ones; its BatchNorm statistics are the prior then.
        """
        self._model.set(coefficients, patch)
        nearest = project_to_simplex(np.asarray(coefficients)).tolist()
        if patch is None:
            self._model.set_statistics(nearest)
        with torch.inference_mode(), self._estimating(nearest, num_images):
            logits = [self._model.net(batch) for batch in batches]
        return logits[0] if len(logits) == 1 else None

    def statistics(self) -> dict[str, Floats]:
        """Return a copy of the tensors now in the network that hold the statistics, float32 by state-dict key."""
        parts = ("running_mean", "running_var") if self._moments is None else ("weight", "bias")
        return {
            f"{name}.{part}": getattr(layer, part).detach().cpu().numpy().copy()
            for name, layer in self._layers.items()
            for part in parts
        }

    @contextmanager
    def _estimating(self, coefficients: Sequence[float], num_images: int) -> Iterator[None]:
        estimates = [
            self._estimate(name, coefficients, num_images / (strength + num_images))
            for name, strength in zip(self._layers, self._strengths, strict=True)
        ]
        handles = [estimate.attach(layer) for estimate, layer in zip(estimates, self._layers.values(), strict=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for estimate in estimates:
            estimate.finish()

    def _estimate(self, name: str, coefficients: Sequence[float], share: float) -> "_Statistics | _Affine":
        layer: Any = self._layers[name]
        if self._moments is None:
            return _Statistics(layer, share, self._measure)
        moments = _mixed([of[name] for of in self._moments], coefficients)
        return _Affine(layer, moments, share, self._measure)


def _mixed(moments: Sequence[Moments], coefficients: Sequence[float]) -> Moments:
    """Return the ingredients' moments mixed like weights."""
    numbers = torch.tensor(coefficients, dtype=torch.float32)
    return Moments(*(torch.einsum("m,mc->c", numbers, torch.stack(list(part))) for part in zip(*moments, strict=True)))


class _Blend:
    """Moments of training and of the images, together: (N prior + n batch) / (N + n)."""

    def __init__(self, prior: Moments, share: float, measure: Measure) -> None:
        self.prior, self._share, self._measure = prior, share, measure
        self._found = RunningMoments()

    def add(self, x: Tensor) -> Moments:
        """Return the blend with a batch (B, C, ...), and keep its moments for the total."""
        found = self._measure(x)
        self._found.add(found, len(x))
        return self._with(found)

    def total(self) -> Moments:
        """Return the blend with all batches."""
        return self._with(self._found.total())

    def _with(self, found: Moments) -> Moments:
        return Moments(*(torch.lerp(old, new, self._share) for old, new in zip(self.prior, found, strict=True)))


class _Statistics:
    """Running statistics of a BatchNorm layer: each batch is normalised with what it leads to."""

    def __init__(self, layer: _BatchNorm, share: float, measure: Measure) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        self._targets = Moments(layer.running_mean, layer.running_var)
        self._blend = _Blend(Moments(*(target.clone() for target in self._targets)), share, measure)

    def attach(self, layer: nn.Module) -> RemovableHandle:
        """Watch the layer."""

        def normalise(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._set(self._blend.add(inputs[0]))

        return layer.register_forward_pre_hook(normalise)

    def finish(self) -> None:
        """Give the layer what follows from all batches."""
        self._set(self._blend.total())

    def _set(self, moments: Moments) -> None:
        for target, value in zip(self._targets, moments, strict=True):
            target.copy_(value)


class _Affine:
    """Weight and bias of a layer: the channels of each batch are moved and scaled to look as they did in training."""

    def __init__(self, layer: nn.Module, prior: Moments, share: float, measure: Measure) -> None:
        self._layer = layer
        device = next(layer.parameters()).device
        self._blend = _Blend(Moments(*(part.to(device) for part in prior)), share, measure)

    def attach(self, layer: nn.Module) -> RemovableHandle:
        """Watch the layer."""

        def move(_: nn.Module, __: object, output: Tensor) -> Tensor:
            x = channels_first(layer, output)
            scale, shift = self._back(self._blend.add(x))
            shape = (1, -1, *[1] * (x.dim() - 2))
            return (x * scale.view(shape) + shift.view(shape)).view_as(output)

        return layer.register_forward_hook(move)

    def finish(self) -> None:
        """Give the layer what follows from all batches."""
        scale, shift = self._back(self._blend.total())
        weight, bias = self._layer.get_parameter("weight").data, self._layer.get_parameter("bias").data
        weight.mul_(scale.view(-1, *[1] * (weight.dim() - 1)))
        bias.mul_(scale).add_(shift)

    def _back(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Return scale and shift (C,) that take channels with these moments to those of training."""
        prior = self._blend.prior
        scale = ((prior.var + EPS) / (moments.var + EPS)).sqrt()
        return scale, prior.mean - moments.mean * scale


def project_to_simplex(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the nearest vector (M,) without negative entries that sums to 1.

    Source: Held, Wolfe, Crowder, Math. Programming 6, 1974; the form by sorting.
    """
    descending = np.sort(vector)[::-1]
    excess = np.cumsum(descending) - 1
    counts = np.arange(1, len(vector) + 1)
    kept = int(np.flatnonzero(descending * counts > excess)[-1])
    return np.asarray(np.maximum(vector - excess[kept] / (kept + 1), 0))
