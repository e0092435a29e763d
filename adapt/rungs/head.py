"""The last layer, fitted again on a few labelled images: logistic regression drawn to the soup's own layer."""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize
from threadpoolctl import ThreadpoolController
from torch import Tensor

# Strengths of the pull to the soup's own layer, strong first. None of them depends on the number of images: the pull
# is a prior, which more images outweigh.
PENALTIES = (300.0, 100.0, 30.0, 10.0)
MAX_STEPS = 60  # of L-BFGS; it starts at the solution for the next stronger pull

Ints = npt.NDArray[np.int64]


class Head(NamedTuple):
    """A linear last layer, float64."""

    weight: Tensor  # (K, D)
    bias: Tensor  # (K,)

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits (n, K) of features (n, D)."""
        return features.double() @ self.weight.T + self.bias

    def divided(self, temperature: float) -> "Head":
        """Return the layer whose logits are these divided by the temperature."""
        return Head(self.weight / temperature, self.bias / temperature)


def fit_heads(
    features: Tensor, labels: Ints, own: Head, *, weights: npt.NDArray[np.float32] | None = None
) -> list[Head]:
    """Return the last layer fitted to labelled images, for each of `PENALTIES`.

    Minimises  sum_i CE(y_i, W x_i + b) + penalty (r^2 ||W - W_own||^2 + ||b - b_own||^2),  with the features centred
    and r the root mean square of their entries: then a penalty means the same for every network. Convex; L-BFGS.

    Args:
        features: (n, D), what the last layer is given.
        labels: (n,) class indices.
        own: the soup's own layer, its logits divided by its temperature.
        weights: (n,) by which each image's cross-entropy counts; None for 1.
    """
    x = features.double()
    centre = x.mean(dim=0)
    x = x - centre
    scale = float(x.square().mean().sqrt().clamp(min=1e-12))
    x = x / scale
    targets = torch.from_numpy(labels)
    one_hot = torch.nn.functional.one_hot(targets, len(own.bias)).double()
    counts = torch.ones(len(x)).double() if weights is None else torch.from_numpy(weights).double()
    start = x @ (own.weight.T * scale) + own.bias + own.weight @ centre  # the own layer's logits
    shape = own.weight.shape

    def objective(flat: npt.NDArray[np.float64], penalty: float) -> tuple[float, npt.NDArray[np.float64]]:
        change = torch.from_numpy(flat)
        weight, bias = change[: shape.numel()].view(shape), change[shape.numel() :]
        logits = start + x @ weight.T + bias
        log_probabilities = logits.log_softmax(dim=1)
        error = (log_probabilities.exp() - one_hot) * counts[:, None]
        loss = -(log_probabilities * one_hot).sum(dim=1) @ counts + penalty * change.square().sum()
        gradient = torch.cat([(error.T @ x).flatten(), error.sum(dim=0)]) + 2 * penalty * change
        return float(loss), gradient.numpy()

    found, heads = np.zeros(shape.numel() + shape[0]), []
    for penalty in PENALTIES:
        # The optimiser's BLAS threads and torch's would wait for one another at each of many small steps: on two cores
        # that took twenty times as long as one BLAS thread.
        with _pools().limit(limits=1, user_api="blas"):
            fitted = optimize.minimize(
                objective, found, args=(penalty,), jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS}
            )
        found = fitted.x
        change = torch.from_numpy(found.copy())
        weight = own.weight + change[: shape.numel()].view(shape) / scale
        heads.append(Head(weight, own.bias + change[shape.numel() :] - (weight - own.weight) @ centre))
    return heads


@cache
def _pools() -> ThreadpoolController:
    """Return the thread pools of the libraries loaded; looking for them takes a while."""
    return ThreadpoolController()
