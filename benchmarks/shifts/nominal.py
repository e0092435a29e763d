"""The ingredient that a user without this project would have: trained against nothing."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adapt.networks.forward import run_soups
from adapt.networks.last_layer import Head
from adapt.networks.prepared import PreparedBase
from benchmarks.shifts.finetuning import EVALUATED
from training.manifest import Manifest

NO_HEAD = "expected a network whose last layer is linear: probes and prototypes need its inputs"


def nominal_of(manifest: Manifest) -> int:
    """Return the position of the first ingredient that was trained against no threat model; 0 if there is none."""
    trained_against = [ingredient.threat_model for ingredient in manifest.ingredients]
    return trained_against.index(None) if None in trained_against else 0


def nominal_head(prepared: PreparedBase) -> Head:
    """Return the last layer of the nominal ingredient.

    Raises:
        ValueError: it is not linear.
    """
    head = prepared.head(_row(prepared)[0].tolist())
    if head is None:
        raise ValueError(NO_HEAD)
    return head


def nominal_features(prepared: PreparedBase, images: npt.NDArray[np.uint8]) -> Tensor:
    """Return what the last layer of the nominal ingredient is given for images uint8 (n, H, W, 3): float32 (n, D).

    Raises:
        ValueError: it is not linear.
    """
    features = run_soups(prepared, _row(prepared), images).features[0]
    if features is None:
        raise ValueError(NO_HEAD)
    return features


@torch.inference_mode()
def features_of(net: nn.Module, head_key: str, x: Tensor) -> Tensor:
    """Return what the layer of this name is given for inputs (n, 3, H, W) in eval mode: (n, D) on the CPU."""
    found: list[Tensor] = []
    layer = net.get_submodule(head_key)
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].cpu()))
    try:
        for batch in torch.split(x, EVALUATED):
            net(batch)
    finally:
        handle.remove()
    return torch.cat(found)


def _row(prepared: PreparedBase) -> npt.NDArray[np.float64]:
    ingredients = prepared.manifest.ingredients
    return np.eye(len(ingredients))[[nominal_of(prepared.manifest)]]
