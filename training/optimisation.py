"""How weights move: the optimiser and its parameter groups, the learning rate, the moving average that is kept."""

import math
from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.models import Classifier, head_keys
from training.recipe import IngredientSpec


def make_optimizer(spec: IngredientSpec, net: nn.Module) -> torch.optim.Optimizer:
    """Return the recipe's optimiser. Biases, norm layers and what the network itself exempts have no weight decay.

    timm's networks exempt their position embeddings and class tokens, for example. Each group has an `lr_factor`, which
    is that of the recipe for the last layer, else 1.
    """
    exempt: Collection[str] = getattr(net, "no_weight_decay", tuple)()
    decayed: list[dict[str, Any]] = param_groups_weight_decay(net, spec.weight_decay, no_weight_decay_list=exempt)
    keys = head_keys(net) if spec.head_lr_factor != 1 else set()
    head = {id(parameter) for key, parameter in net.named_parameters() if key in keys}
    groups = []
    for group in decayed:
        for factor, is_head in ((1.0, False), (spec.head_lr_factor, True)):
            if params := [parameter for parameter in group["params"] if (id(parameter) in head) == is_head]:
                groups.append({**group, "params": params, "lr_factor": factor})
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.momentum, spec.second_moment))
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.momentum > 0)


def learning_rate(step: int, num_steps: int, warmup_fraction: float, milestones: tuple[float, ...]) -> float:
    """Return the factor on the peak learning rate: a linear rise, then steps down or half a cosine to zero."""
    warmup = warmup_fraction * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if milestones:
        passed = sum(step >= share * num_steps for share in milestones)
        return float(0.1**passed)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, num_steps - warmup)))


class MovingAverage:
    """The exponential moving average (EMA) of a classifier's weights, and of its BatchNorm statistics.

    With w_t the weights after step t >= 1 and a_0 = w_0,

        a_t = d_t a_(t-1) + (1 - d_t) w_t,    d_t = min(decay, t / (t + 9)),

    so that the first steps do not hold on to the start. Integer buffers are copied.

    Args:
        classifier: averaged from its weights of now on; give it before it is wrapped for several processes.
        decay: per step, in [0, 1).
    """

    def __init__(self, classifier: Classifier, decay: float) -> None:
        self._averaged = AveragedModel(classifier, multi_avg_fn=_average(decay), use_buffers=True)
        self.classifier = cast(Classifier, self._averaged.module).eval().requires_grad_(False)
        self._averaged.update_parameters(classifier)  # the first call copies

    def update(self, classifier: Classifier) -> None:
        """Add the weights after a step."""
        self._averaged.update_parameters(classifier)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average, by timm's own keys. Its tensors change with the next update."""
        return dict(self.classifier.net.state_dict())

    def load_state_dict(self, state_dict: dict[str, Tensor], *, step: int) -> None:
        """Go on from the average after this many steps."""
        self.classifier.net.load_state_dict(state_dict)
        self._averaged.n_averaged.fill_(step + 1)


def _average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return the update of tensors of one type, for `AveragedModel`, which counts the start as the first model."""

    @torch.no_grad()
    def update(averages: list[Tensor], tensors: list[Tensor], num_averaged: Tensor) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, tensors)
            return
        step = int(num_averaged)
        move = get_ema_multi_avg_fn(min(decay, step / (step + 9)))  # type: ignore[no-untyped-call]
        move(averages, tensors, num_averaged)

    return update
