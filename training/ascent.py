"""The ascent that every iterative attack is: steps, momentum, checkpoints, sparsity. One loop for all norms.

Source: APGD, Croce & Hein 2020 (arXiv:2003.01690), algorithm 1; for L1, Croce & Hein 2021 (arXiv:2103.01208),
algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from training.attack_losses import LOSSES, LossName
from training.threat import PROJECT, STEEPEST, Norm

Model = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> logits (B, K)

MOMENTUM = 0.75
RISING_SHARE = 0.75  # of the steps since the last checkpoint: if fewer raised the loss, halve the step


class Rules(NamedTuple):
    """How an attack climbs."""

    loss: LossName
    norm: Norm
    eps: float
    num_steps: int
    step_size: float  # length of the first step, in the norm
    is_adaptive: bool
    stops: bool  # an image is done once it is misclassified


class Found(NamedTuple):
    """The result of a climb, per image."""

    x: Tensor
    loss: Tensor
    is_wrong: Tensor


@dataclass
class _State:
    """Where the attacked images stand. Every field has one row per image, so that rows are dropped together."""

    rows: Tensor  # positions in the batch
    images: Tensor
    labels: Tensor
    reference: Tensor
    x: Tensor
    x_before: Tensor
    gradient: Tensor
    loss: Tensor
    best_x: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step_size: Tensor  # (b, 1, 1, 1)
    num_entries: Tensor  # that the next L1 step moves
    num_rising: Tensor  # steps since the last checkpoint that raised the loss
    was_reduced: Tensor  # whether the last checkpoint reduced the step
    checked_loss: Tensor  # best loss at the last checkpoint

    def keep(self, which: Tensor) -> "_State":
        return _State(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


def climb(
    model: Model,
    images: Tensor,
    labels: Tensor,
    reference: Tensor,
    start: Tensor,
    rules: Rules,
    *,
    num_entries: Tensor,
) -> Found:
    """Climb in one ball and return the best points; with `rules.stops`, the first misclassified ones.

    Args:
        model: logits (B, K) of images in [0, 1].
        images: the clean images, float (B, C, H, W).
        labels: their classes, int64 (B,).
        reference: further inputs of the loss, B rows.
        start: a point of each image's ball and box.
        rules: how to climb.
        num_entries: how many entries the first L1 steps move, int64 (B,); other norms ignore it.
    """
    checkpoints = _checkpoints(rules)
    found = Found(
        start.clone(), torch.full_like(start[:, 0, 0, 0], -torch.inf), torch.zeros_like(labels, dtype=torch.bool)
    )
    state = _begin(images, labels, reference, start, rules, num_entries)
    for step in range(rules.num_steps + 1):
        if step > 0:
            _move(state, rules, has_momentum=rules.is_adaptive and rules.norm != "L1" and step > 1)
        logits = _judge(model, state, rules.loss, with_gradient=step < rules.num_steps)
        if rules.stops:
            wrong = logits.argmax(1) != state.labels
            if wrong.any():
                rows = state.rows[wrong]
                found.x[rows], found.loss[rows], found.is_wrong[rows] = state.x[wrong], state.loss[wrong], True
                state = state.keep(~wrong)
            if len(state.rows) == 0:
                break
        if step in checkpoints:
            _check_progress(state, rules, interval=checkpoints[step])
    found.x[state.rows], found.loss[state.rows] = state.best_x, state.best_loss
    return found


def _begin(
    images: Tensor, labels: Tensor, reference: Tensor, start: Tensor, rules: Rules, num_entries: Tensor
) -> _State:
    lowest = torch.full_like(start[:, 0, 0, 0], -torch.inf)
    count = torch.zeros_like(labels)
    return _State(
        rows=torch.arange(len(labels), device=labels.device),
        images=images,
        labels=labels,
        reference=reference,
        x=start,
        x_before=start,
        gradient=torch.zeros_like(start),
        loss=-lowest,  # the start's own loss does not count as a rise
        best_x=start,
        best_gradient=torch.zeros_like(start),
        best_loss=lowest,
        step_size=torch.full_like(start[:, :1, :1, :1], rules.step_size),
        num_entries=num_entries,
        num_rising=count,
        was_reduced=count == 0,  # so that the first checkpoint does not ask for progress since an earlier one
        checked_loss=lowest,
    )


def _move(state: _State, rules: Rules, *, has_momentum: bool) -> None:
    project = PROJECT[rules.norm]
    target = state.x + state.step_size * STEEPEST[rules.norm](state.gradient, state.num_entries)
    target = project(target, state.images, rules.eps)
    if has_momentum:
        target = state.x + MOMENTUM * (target - state.x) + (1 - MOMENTUM) * (state.x - state.x_before)
        target = project(target, state.images, rules.eps)
    state.x, state.x_before = target, state.x


def _judge(model: Model, state: _State, loss: LossName, *, with_gradient: bool) -> Tensor:
    """Update losses, gradients and best points at the current points; return the logits there."""
    if with_gradient:
        logits, losses, state.gradient = differentiate(model, loss, state.x, state.labels, state.reference)
    else:
        logits = logits_of(model, state.x)
        losses = LOSSES[loss](logits, state.labels, state.reference)
    state.num_rising = state.num_rising + (losses > state.loss)
    state.loss = losses
    better = losses > state.best_loss
    state.best_loss = torch.where(better, losses, state.best_loss)
    state.best_x = torch.where(_wide(better), state.x, state.best_x)
    if with_gradient:
        state.best_gradient = torch.where(_wide(better), state.gradient, state.best_gradient)
    return logits


def _checkpoints(rules: Rules) -> dict[int, int]:
    """Return the steps after which progress is checked, each with the number of steps since the one before."""
    if not rules.is_adaptive:
        return {}
    n = rules.num_steps
    interval, shrink, shortest = max(int(0.22 * n), 1), max(int(0.03 * n), 1), max(int(0.06 * n), 1)
    if rules.norm == "L1":
        interval, shrink, shortest = max(int(0.04 * n), 1), 0, 1
    checkpoints = {}
    step = interval
    while step < n:
        checkpoints[step] = interval
        interval = max(interval - shrink, shortest)
        step += interval
    return checkpoints


def _check_progress(state: _State, rules: Rules, *, interval: int) -> None:
    """Adapt the step at a checkpoint; images whose step is reset or halved go on from their best point."""
    if rules.norm == "L1":
        restart = _adapt_sparsity(state, rules)
    else:
        oscillates = state.num_rising < RISING_SHARE * interval
        restart = oscillates | (~state.was_reduced & (state.best_loss <= state.checked_loss))
        state.step_size = torch.where(_wide(restart), state.step_size / 2, state.step_size)
        state.was_reduced, state.checked_loss = restart, state.best_loss
        state.num_rising = torch.zeros_like(state.num_rising)
    state.x = torch.where(_wide(restart), state.best_x, state.x)
    state.x_before = torch.where(_wide(restart), state.best_x, state.x_before)
    state.gradient = torch.where(_wide(restart), state.best_gradient, state.gradient)
    state.loss = torch.where(restart, state.best_loss, state.loss)


def _adapt_sparsity(state: _State, rules: Rules) -> Tensor:
    """Move fewer entries as the perturbation gets sparser; return where that resets the step to its first length."""
    num_entries = fewer_entries(state.best_x, state.images)
    sparser = num_entries < 0.95 * state.num_entries
    smaller = (state.step_size / 1.5).clamp(min=rules.step_size / 10)
    state.step_size = torch.where(_wide(sparser), rules.step_size, smaller)
    state.num_entries = num_entries
    return sparser


def fewer_entries(x: Tensor, images: Tensor) -> Tensor:
    """Return how many entries the next L1 steps move: two thirds of those that x changed, int64 (B,)."""
    return ((x != images).flatten(1).sum(1) / 1.5).long().clamp(min=1)


def differentiate(
    model: Model, loss: LossName, x: Tensor, labels: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, losses and the losses' gradient at x; nothing accumulates anywhere."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = _float32(model(x))
        losses = LOSSES[loss](logits, labels, reference)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    return logits.detach(), losses.detach(), gradient


@torch.no_grad()
def logits_of(model: Model, images: Tensor) -> Tensor:
    """Return the logits, without a graph."""
    return _float32(model(images))


def _float32(logits: Tensor) -> Tensor:
    """Widen what a model under autocast returns: at 8 bits, most steps would change no loss."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _wide(per_image: Tensor) -> Tensor:
    return per_image[:, None, None, None]
