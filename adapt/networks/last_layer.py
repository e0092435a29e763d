"""The linear last layer of a network, by itself."""

from typing import NamedTuple

from torch import Tensor


class Head(NamedTuple):
    """A linear last layer."""

    weight: Tensor  # (K, D)
    bias: Tensor  # (K,)

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits (n, K) of features (n, D)."""
        return features.double() @ self.weight.double().T + self.bias.double()

    def divided(self, temperature: float) -> "Head":
        """Return the layer whose logits are these divided by the temperature."""
        return Head(self.weight / temperature, self.bias / temperature)
