"""BatchNorm statistics estimated anew on images of the shift: no labels needed, one forward pass.

A shift moves the mean and spread of the activations away from what the statistics of training say; estimating them on
the shifted images brings the activations back to where the weights expect them. Few images give noisy estimates, so
the statistics of training count as some images more. They count for little in the first layers, whose every image has
many positions and which see the shift most directly, and for more in the last ones.

Source: Schneider et al. 2020 (arXiv:2006.16971), sec. 3, for one prior strength in all layers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adapt.mixing import FlatModel

# Images that the statistics of training count as, in the first and in the last layer: see EXPERIMENTS.md.
PRIOR_IMAGES = (1.0, 32.0)

Floats = npt.NDArray[np.float32]


class Recalibrator:
    """Gives a network the weights of a soup with BatchNorm statistics of the images at hand. Raw layout only."""

    def __init__(self, model: FlatModel, *, prior_images: tuple[float, float] = PRIOR_IMAGES) -> None:
        """Find the layers.

        Args:
            model: in the raw layout, BatchNorm layers and their statistics in place.
            prior_images: how many images the statistics of training count as, in the first and in the last layer; the
                layers between lie on a geometric line.

        Raises:
            ValueError: no BatchNorm with running statistics, or a prior that is not positive.
        """
        if min(prior_images) <= 0:
            raise ValueError(f"expected a positive number of prior images, got {prior_images}")
        self._layers = {
            name: module
            for name, module in model.net.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }
        if not self._layers:
            raise ValueError("the network has no BatchNorm statistics to recalibrate")
        self._model = model
        self._strengths = np.geomspace(*prior_images, num=len(self._layers)).tolist()

    def run(self, coefficients: Sequence[float], batches: Sequence[Tensor]) -> Tensor | None:
        """Set weights and statistics of this soup. Returns the logits of the images where they are one batch.

        Every layer's statistics are (N prior + n batch) / (N + n), where n counts all images and the batch is
        normalised with this very mixture, so that deeper layers see what they will see later. Of several batches each
        is normalised with its own; the means and second moments are then averaged. The prior mixes the ingredients'
        statistics with the nearest coefficients on the simplex: outside of it variances may come out negative.

        Args:
            coefficients: M numbers.
            batches: the network's inputs (B, ...), at least one image.
        """
        self._model.set(coefficients)
        self._model.set_statistics(project_to_simplex(np.asarray(coefficients)).tolist())
        num_images = sum(len(batch) for batch in batches)
        with torch.inference_mode(), self._estimating(num_images):
            logits = [self._model.net(batch) for batch in batches]
        return logits[0] if len(logits) == 1 else None

    def statistics(self) -> dict[str, Floats]:
        """Return a copy of the statistics now in the network, float32 by state-dict key."""
        found = {}
        for name, layer in self._layers.items():
            for part in ("running_mean", "running_var"):
                found[f"{name}.{part}"] = getattr(layer, part).cpu().numpy().copy()
        return found

    @contextmanager
    def _estimating(self, num_images: int) -> Iterator[None]:
        estimates = [
            _Estimate(layer, strength, num_images)
            for layer, strength in zip(self._layers.values(), self._strengths, strict=True)
        ]
        handles = [
            layer.register_forward_pre_hook(estimate)
            for layer, estimate in zip(self._layers.values(), estimates, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for estimate in estimates:
            estimate.finish()


class _Estimate:
    """A forward pre-hook of one layer: normalises each batch with its own mixture and gathers the moments of all."""

    def __init__(self, layer: _BatchNorm, strength: float, num_images: int) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        self._mean, self._var = layer.running_mean, layer.running_var
        self._prior = (self._mean.clone(), self._var.clone())
        self._share, self._num_images = num_images / (strength + num_images), num_images
        self._first = torch.zeros_like(self._mean, dtype=torch.float64)
        self._second = torch.zeros_like(self._first)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        mean, var = _moments(x)
        self._blend(mean, var)
        weight = len(x) / self._num_images
        self._first.add_(mean.double(), alpha=weight)
        self._second.add_(var.double() + mean.double() ** 2, alpha=weight)

    def finish(self) -> None:
        self._blend(self._first.float(), (self._second - self._first**2).clamp_(min=0).float())

    def _blend(self, mean: Tensor, var: Tensor) -> None:
        for target, prior, found in zip((self._mean, self._var), self._prior, (mean, var), strict=True):
            target.copy_(torch.lerp(prior, found, self._share))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel (dim 1).

    The training kernel of BatchNorm finds them ten times faster than `var_mean` does on channels-last tensors, though
    it also normalises the input.
    """
    mean, var = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    count = x.numel() // x.shape[1]
    if count < 2:  # where the kernel refuses: one image, one position
        return x.flatten(), var
    torch.nn.functional.batch_norm(x, mean, var, training=True, momentum=1.0)
    return mean, var * ((count - 1) / count)


def project_to_simplex(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the nearest vector (M,) without negative entries that sums to 1.

    Source: Held, Wolfe, Crowder, Math. Programming 6, 1974; the form by sorting.
    """
    descending = np.sort(vector)[::-1]
    excess = np.cumsum(descending) - 1
    counts = np.arange(1, len(vector) + 1)
    kept = int(np.flatnonzero(descending * counts > excess)[-1])
    return np.asarray(np.maximum(vector - excess[kept] / (kept + 1), 0))
