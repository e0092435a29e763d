"""The BatchNorm layers of a network."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batchnorms(net: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers with running statistics, by name."""
    found = {name: layer for name, layer in net.named_modules() if isinstance(layer, _BatchNorm)}
    return {name: layer for name, layer in found.items() if layer.running_mean is not None}


def has_batchnorm(net: nn.Module) -> bool:
    """Say whether there are BatchNorm statistics to fold or to recalibrate."""
    return bool(batchnorms(net))
