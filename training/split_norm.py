"""Normalisation layers in pairs, for AdvProp: one for clean images, one for attacked ones, dropped at the end."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
MAIN, AUXILIARY = "main", "auxiliary"


class SplitNorm(nn.Module):
    """Two normalisation layers in the place of one; `uses_auxiliary` says which is in use."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.main = norm
        self.auxiliary = copy.deepcopy(norm)
        self.uses_auxiliary = False

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalised by the layer in use."""
        out: Tensor = self.auxiliary(x) if self.uses_auxiliary else self.main(x)
        return out


def split_norms(net: nn.Module) -> nn.Module:
    """Replace, in place, every normalisation layer by a pair that starts equal, and return the network.

    Raises:
        ValueError: it has none.
    """
    found = [(parent, name) for parent in net.modules() for name, child in parent.named_children() if _is_norm(child)]
    if not found:
        raise ValueError("advprop needs a network with normalisation layers, this one has none")
    for parent, name in found:
        setattr(parent, name, SplitNorm(getattr(parent, name)))
    return net


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS)


def merge_norms(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the network before `split_norms`, with the layers of clean images."""
    split = {key.replace(f".{AUXILIARY}.", f".{MAIN}.") for key in state_dict if f".{AUXILIARY}." in key}
    return {
        key.replace(f".{MAIN}.", ".") if key in split else key: tensor
        for key, tensor in state_dict.items()
        if f".{AUXILIARY}." not in key
    }


@contextmanager
def auxiliary_norms(net: nn.Module) -> Iterator[None]:
    """Use the layers of attacked images."""
    pairs = [module for module in net.modules() if isinstance(module, SplitNorm)]
    for pair in pairs:
        pair.uses_auxiliary = True
    try:
        yield
    finally:
        for pair in pairs:
            pair.uses_auxiliary = False
