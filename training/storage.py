"""How an ingredient's file holds its weights: float32, half precision, or the difference to another ingredient.

In both short forms a floating-point tensor is float16, or float32 where a number is too large for that; counters stay
integers. Matrices and filters of a difference are shorter still; biases, norm layers and statistics (vectors) are
stored as they are, because the difference of two variances, rounded, could make a negative one.

A difference is int8 with one scale per output channel, in a tensor named `<key>.scale`. Scales are bfloat16: a scale
read from a file rounds to itself, so that a base set that is loaded and saved again has the same files.

Source: quantised weight differences between a plain and a robust network, "Robust Weight Signatures: Gaining Robustness
as Easy as Patching Weights?", Cai et al. 2023.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"
LEVELS = 127  # the int8 values used are -127 to 127


def halve(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict in float16: each number is wrong by at most 2^-11 of itself, or by 2^-25.

    A tensor with a number above 65504 stays as it is.
    """
    return {key: _half(tensor) for key, tensor in state_dict.items()}


def _half(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if torch.isfinite(half).all() else tensor


def subtract(state_dict: Mapping[str, Tensor], parent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict as its difference to another one.

    Args:
        state_dict: float32 tensors and integer counters.
        parent: the same keys and shapes, float32, rounded as it is stored.

    Returns:
        For a weight (O, ...): int8 (O, ...), and a bfloat16 scale (O,) under its key with `.scale`. Adding
        int8 * scale to the parent is wrong by at most half a step, 0.4 % of the output channel's largest difference.
        Other tensors as from `halve`.
    """
    stored: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if tensor.ndim < 2 or not tensor.is_floating_point():
            stored[key] = _half(tensor)
            continue
        difference = tensor - parent[key]
        scale = (difference.flatten(1).abs().amax(1) / LEVELS).bfloat16()
        steps = difference / _per_channel(scale, difference).clamp_min(torch.finfo(torch.float32).tiny)
        stored[key] = steps.round().clamp(-LEVELS, LEVELS).to(torch.int8)
        stored[key + SCALE] = scale
    return stored


def restore(stored: Mapping[str, Tensor], parent: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the weights that a file holds, floating-point tensors as float32.

    Keys, shapes and dtypes that belong to no weight are passed on as they are, for the caller to refuse.

    Args:
        stored: what `halve` or `subtract` returned.
        parent: what was subtracted, float32; None where nothing was.

    Raises:
        ValueError: a difference and its scale, or the parent's weight, do not fit one another.
    """
    restored: dict[str, Tensor] = {}
    for key, tensor in stored.items():
        if parent is not None and key.endswith(SCALE) and key.removesuffix(SCALE) in stored:
            continue
        if parent is not None and key in parent and key + SCALE in stored:
            tensor = _add(key, tensor, stored[key + SCALE], parent[key])
        restored[key] = tensor.float() if tensor.is_floating_point() else tensor
    return restored


def _add(key: str, steps: Tensor, scale: Tensor, parent: Tensor) -> Tensor:
    if steps.dtype != torch.int8 or steps.shape != parent.shape or steps.ndim < 2:
        raise ValueError(f"{key}: expected a difference int8{list(parent.shape)}, got {_describe(steps)}")
    if scale.dtype != torch.bfloat16 or scale.shape != steps.shape[:1]:
        raise ValueError(f"{key}{SCALE}: expected bfloat16[{len(steps)}], got {_describe(scale)}")
    return parent + steps * _per_channel(scale, steps)


def _per_channel(scale: Tensor, like: Tensor) -> Tensor:
    return scale.float().reshape(-1, *[1] * (like.ndim - 1))


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
