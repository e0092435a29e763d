"""State of an unfinished training run, as safetensors: written atomically, read on resume."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from training.bases import StateDict
from training.files import replace_file
from training.optimisation import MovingAverage

FORMAT = "2"  # of checkpoints


@dataclass
class Progress:
    """How far the training of one ingredient has come, besides its tensors."""

    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the steps of the current epoch
    seconds: float = 0.0  # spent on the current epoch
    memory: dict[str, float] = field(default_factory=dict)  # what the objective remembers
    best: float = -1.0  # robust validation accuracy of the best epoch so far


def save_atomically(tensors: Mapping[str, Tensor], path: Path, info: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file; an earlier file of that name stays intact until the new one is whole.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    content = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    try:
        replace_file(path, lambda partial: safetensors.torch.save_file(content, partial, info))
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: cannot be written, the file before is intact: {error}") from None


def save_checkpoint(
    path: Path,
    name: str,
    progress: Progress,
    nets: Mapping[str, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the state of the ingredient in training.

    Args:
        path: the file.
        name: of the ingredient.
        progress: step and running values.
        nets: state dicts by a name without dots: the network, its average, the best so far.
        optimizer: its state is written, its settings are not.
    """
    tensors = {f"{net}.{key}": tensor for net, state in nets.items() for key, tensor in state.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    save_atomically(tensors, path, {"format": FORMAT, "ingredient": name, "progress": json.dumps(vars(progress))})


def load_checkpoint(
    path: Path, name: str, net: nn.Module, average: MovingAverage, optimizer: torch.optim.Optimizer
) -> tuple[Progress, StateDict]:
    """Restore what `save_checkpoint` wrote for this ingredient; return its progress and the best weights, if any.

    Raises:
        ValueError: another version of Saucier wrote it.
    """
    if not path.exists():
        return Progress(), {}
    with safetensors.safe_open(path, framework="pt") as file:
        info = file.metadata()
        if info.get("format") != FORMAT:
            raise ValueError(f"{path}: written by another version of Saucier; remove it to begin {name} again")
        if info["ingredient"] != name:
            return Progress(), {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    net.load_state_dict(_with_prefix(tensors, "model."))
    state = optimizer.state_dict()
    state["state"] = {}
    for key, tensor in _with_prefix(tensors, "optimizer.").items():
        index, _, field_name = key.partition(".")
        state["state"].setdefault(int(index), {})[field_name] = tensor
    optimizer.load_state_dict(state)
    raw: dict[str, Any] = json.loads(info["progress"])
    progress = Progress(**raw)
    average.load_state_dict(_with_prefix(tensors, "average."), step=progress.step)
    return progress, _with_prefix(tensors, "best.")


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> StateDict:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
