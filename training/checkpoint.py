"""State of an unfinished training run, as safetensors: written atomically after every epoch, read on resume."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from training.bases import StateDict


def save_atomically(tensors: Mapping[str, Tensor], path: Path, info: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file; an earlier file of that name stays intact until the new one is whole."""
    partial = path.with_suffix(".partial")
    try:
        safetensors.torch.save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, partial, info)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_checkpoint(
    path: Path, name: str, step: int, net: nn.Module, average: StateDict, optimizer: torch.optim.Optimizer
) -> None:
    """Write network, averaged weights, momentum and step of the ingredient in training."""
    tensors = {f"model.{key}": tensor for key, tensor in net.state_dict().items()}
    tensors |= {f"average.{key}": tensor for key, tensor in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        if state["momentum_buffer"] is not None:
            tensors[f"momentum.{index}"] = state["momentum_buffer"]
    save_atomically(tensors, path, {"ingredient": name, "step": str(step)})


def load_checkpoint(path: Path, name: str, net: nn.Module, average: StateDict, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote for this ingredient and return its step; 0 if there is none."""
    if not path.exists():
        return 0
    with safetensors.safe_open(path, framework="pt") as file:
        info = file.metadata()
        if info["ingredient"] != name:
            return 0
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    net.load_state_dict(_with_prefix(tensors, "model."))
    for key, tensor in _with_prefix(tensors, "average.").items():
        average[key].copy_(tensor)
    state = optimizer.state_dict()
    momentum = _with_prefix(tensors, "momentum.")
    state["state"] = {int(index): {"momentum_buffer": tensor} for index, tensor in momentum.items()}
    optimizer.load_state_dict(state)
    return int(info["step"])


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> StateDict:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
