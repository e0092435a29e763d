"""Multi steepest descent: one attack against several norms at once, for training."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from training.ascent import Model, differentiate, logits_of
from training.attack_losses import LOSSES
from training.attacks import eval_mode
from training.manifest import Norm, ThreatModel
from training.threat import PROJECT, STEEPEST

TRAVEL: dict[Norm, float] = {"Linf": 2.5, "L2": 2.5, "L1": 5.0}  # length of all steps together, over eps
SPARSITY = 0.05  # share of the entries that an L1 step moves


def msd(
    model: Model,
    images: Float[Tensor, "B C H W"],
    labels: Int[Tensor, "B"],
    threats: Sequence[ThreatModel],
    *,
    num_steps: int,
) -> Float[Tensor, "B C H W"]:
    """Return images perturbed by multi steepest descent with the cross-entropy loss, from the clean images.

    Every step tries each threat model's own steepest step, projected onto its own ball and the box, and keeps, per
    image, the one of largest loss. So the result lies in one of the balls. One step costs one gradient and one forward
    pass per threat model.

    Args:
        model: logits (B, K) of images in [0, 1]; a module is put into eval mode for the time of the attack.
        images: clean images in [0, 1].
        labels: their classes, int64.
        threats: norms and radii.
        num_steps: steps.

    Source: Maini, Wong & Kolter 2020 (arXiv:1909.04068), algorithm 1.
    """
    x, best_x = images, images
    num_entries = torch.full_like(labels, max(1, int(SPARSITY * images[0].numel())))
    best = torch.full_like(images[:, 0, 0, 0], -torch.inf)
    with eval_mode(model):
        for _ in range(num_steps):
            _, _, gradient = differentiate(model, "ce", x, labels, labels)
            points = [_step(x, images, gradient, num_entries, threat, num_steps) for threat in threats]
            losses = torch.stack([LOSSES["ce"](logits_of(model, point), labels, labels) for point in points])
            loss, chosen = losses.max(0)
            x = torch.stack(points)[chosen, torch.arange(len(chosen), device=chosen.device)]
            better = loss > best
            best_x = torch.where(better[:, None, None, None], x, best_x)
            best = torch.where(better, loss, best)
    return best_x


def _step(
    x: Tensor, images: Tensor, gradient: Tensor, num_entries: Tensor, threat: ThreatModel, num_steps: int
) -> Tensor:
    size = TRAVEL[threat.norm] * threat.eps / num_steps
    return PROJECT[threat.norm](x + size * STEEPEST[threat.norm](gradient, num_entries), images, threat.eps)
