"""Gradient steps on a few labelled pictures, and what rivals that train have in common. Plain torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.modules.batchnorm import _BatchNorm

from adapt.documents.patch import Tensors
from adapt.networks.prepared import PreparedBase
from training.documents import Frozen

BATCH = 64  # labelled pictures per step; fewer where there are fewer
CROP_SHARE = 8  # crops move by up to this part of a side
WARM_UP = 0.1  # share of the steps in which the learning rate rises
BACKWARD = 3  # forwards that a forward and a backward pass cost
EVALUATED = 64  # pictures per forward
STATISTICS_PIXELS = 2048 * 32 * 32  # per batch that statistics are estimated on: larger ones may not fit into memory


class Schedule(Frozen):
    """How long and how fast AdamW trains."""

    lr: float = Field(gt=0, description="the highest; it rises over the first steps and falls along a cosine")
    steps: int = Field(ge=1)
    weight_decay: float = 0.01

    def pictures(self, n: int) -> int:
        """Return how many of n pictures go through the network, repeats counted."""
        return round(self.steps * n / _num_batches(n))


def network(prepared: PreparedBase, ingredient: int, statistics: Tensors | None = None) -> nn.Module:
    """Return a fresh network with the weights of an ingredient, and these tensors in the place of its own."""
    net = prepared.base.model(prepared.manifest.ingredient_names[ingredient]).net
    new = {key: torch.from_numpy(array) for key, array in (statistics or {}).items()}
    net.load_state_dict({**net.state_dict(), **new})
    return net.to(prepared.device).to(memory_format=torch.channels_last).eval()


def inputs_of(prepared: PreparedBase, images: npt.NDArray[np.uint8]) -> Tensor:
    """Return uint8 (n, H, W, 3) as the network wants them, on its device."""
    return prepared.inputs(images)


def blocks_of(net: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """Return names and parameters of the network's parts from input to output; stages count one by one."""
    parts: list[tuple[str, nn.Module]] = []
    for name, child in net.named_children():
        if name in ("stages", "blocks", "layers"):
            parts.extend((f"{name}.{index}", stage) for index, stage in child.named_children())
        else:
            parts.append((name, child))
    found = [(name, list(part.parameters())) for name, part in parts]
    return [(name, parameters) for name, parameters in found if parameters]


def affines_of(net: nn.Module) -> list[nn.Parameter]:
    """Return scales and shifts of the normalisation layers: BatchNorm, or LayerNorm where there is none."""
    modules = list(net.modules())
    layers: list[nn.Module] = [module for module in modules if isinstance(module, _BatchNorm)]
    layers = layers or [module for module in modules if isinstance(module, nn.LayerNorm)]
    return [parameter for layer in layers for parameter in layer.parameters()]


def finetune(
    net: nn.Module, x: Tensor, labels: Tensor, parameters: Sequence[nn.Parameter], schedule: Schedule, *, seed: int
) -> None:
    """Lower the cross-entropy on randomly cropped and mirrored pictures.

    BatchNorm normalises each batch with its own statistics, and is afterwards given those of all the pictures. (With
    the statistics that training starts from, kept throughout, accuracy was up to 4 points lower.)

    Args:
        net: in eval mode; it ends so.
        x: inputs (n, 3, H, W).
        labels: (n,).
        parameters: what is trained; all others stay.
        schedule: how long and how fast.
        seed: of order and augmentation.
    """
    generator = torch.Generator().manual_seed(seed)
    train_only(net, parameters)
    optimiser = torch.optim.AdamW(list(parameters), lr=schedule.lr, weight_decay=schedule.weight_decay)
    with batch_statistics(net):
        for step, batch in enumerate(_endless(len(x), generator)):
            if step == schedule.steps:
                break
            for group in optimiser.param_groups:
                group["lr"] = schedule.lr * _rate((step + 0.5) / schedule.steps)
            loss = cross_entropy(net(augmented(x[batch], generator)), labels[batch].to(x.device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    estimate_statistics(net, x)


@torch.inference_mode()
def logits_of(net: nn.Module, x: Tensor) -> Tensor:
    """Return logits (n, K) in eval mode, on the CPU."""
    return torch.cat([net(batch) for batch in torch.split(x, EVALUATED)]).cpu()


def _rate(done: float) -> float:
    """Return the share of the highest learning rate after this share of the steps."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.5 * (1 + float(np.cos(np.pi * (done - WARM_UP) / (1 - WARM_UP))))


def train_only(net: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Let gradients reach these parameters of the network, and no others."""
    net.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def _endless(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches, epoch after epoch; of each epoch's pictures all occur, in batches of nearly equal size."""
    while True:
        yield from torch.randperm(n, generator=generator).tensor_split(_num_batches(n))


def _num_batches(n: int) -> int:
    return -(-n // BATCH)


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return each picture moved a little at random, its border mirrored outwards, half of them mirrored."""
    height, width = x.shape[2:]
    reach = max(1, height // CROP_SHARE), max(1, width // CROP_SHARE)
    wide = pad(x, (reach[1], reach[1], reach[0], reach[0]), mode="reflect")
    tops, lefts = (torch.randint(2 * r + 1, (len(x),), generator=generator) for r in reach)
    rows = (tops[:, None] + torch.arange(height))[:, None, :, None]
    columns = lefts[:, None] + torch.arange(width)
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)[:, None, None, :]
    moved = wide[torch.arange(len(x))[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]
    return moved.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def estimate_statistics(net: nn.Module, x: Tensor) -> None:
    """Give BatchNorm the statistics of these inputs: of one batch of all, or the mean of large batches."""
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.training, layer.momentum = True, None  # None: the mean of all batches
    for batch in x.tensor_split(-(-len(x) * x.shape[2] * x.shape[3] // STATISTICS_PIXELS)):
        net(batch.contiguous(memory_format=torch.channels_last))
    for layer, momentum in zip(layers, before, strict=True):
        layer.training, layer.momentum = False, momentum


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise with the batch at hand, and leave its running statistics alone."""
    layers = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    for layer in layers:
        layer.training, layer.track_running_stats = True, False
    try:
        yield
    finally:
        for layer, (training, tracked) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, tracked
