"""The attack of pyramid adversarial training: coarse changes that may be large, fine ones that must be small."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from training.ascent import Model
from training.attack_losses import LOSSES
from training.attacks import eval_mode
from training.manifest import ThreatModel

TRAVEL = 2.5  # length of all steps together, over the radius of a level


def pyramid_attack(
    model: Model,
    images: Float[Tensor, "B C H W"],
    labels: Int[Tensor, "B"],
    threat: ThreatModel,
    *,
    num_steps: int,
    scales: Sequence[int],
    multipliers: Sequence[float],
    generator: torch.Generator,
) -> Float[Tensor, "B C H W"]:
    """Return images perturbed by a sum of patterns, one per level, found by signed ascent on the cross-entropy.

    The pattern of a level has one value per square of `scale` pixels and colour, of at most eps; it is enlarged to the
    image, weighted by the level's multiplier, and added. The sum is cut to [0, 1].

    Args:
        model: logits (B, K) of images in [0, 1]; a module is put into eval mode for the time of the attack.
        images: clean images in [0, 1].
        labels: their classes, int64.
        threat: Linf; the radius at multiplier 1.
        num_steps: gradient steps.
        scales: side of a level's squares in pixels, from 1 to the image's side.
        multipliers: one per level, above 0.
        generator: of the random start, on any device.

    Raises:
        ValueError: another norm, or levels that make no sense for these images.

    Source: Herrmann et al. 2022 (arXiv:2111.15121), section 3.
    """
    height, width = images.shape[2:]
    if threat.norm != "Linf":
        raise ValueError(f"pyramid adversarial training: expected a Linf threat model, got {threat.norm}")
    if not scales or len(scales) != len(multipliers) or min(multipliers) <= 0:
        raise ValueError(f"expected one multiplier > 0 per scale, got scales {scales} and multipliers {multipliers}")
    if not 1 <= min(scales) <= max(scales) <= min(height, width):
        raise ValueError(f"expected scales from 1 to the image's side, {min(height, width)}, got {list(scales)}")
    shapes = [(-(-height // scale), -(-width // scale)) for scale in scales]
    patterns = [_noise(images, shape, threat.eps, generator) for shape in shapes]

    def perturbed() -> Tensor:
        change = torch.zeros_like(images)
        for pattern, scale, multiplier in zip(patterns, scales, multipliers, strict=True):
            large = pattern if scale == 1 else interpolate(pattern, scale_factor=float(scale), mode="nearest")
            change = change + multiplier * large[:, :, :height, :width]
        return (images + change).clamp(0, 1)

    step_size = TRAVEL * threat.eps / num_steps
    with eval_mode(model):
        for _ in range(num_steps):
            with torch.enable_grad():
                patterns = [pattern.detach().requires_grad_() for pattern in patterns]
                loss = LOSSES["ce"](model(perturbed()), labels, labels).sum()
                gradients = torch.autograd.grad(loss, patterns)
            patterns = [
                (pattern.detach() + step_size * gradient.sign()).clamp(-threat.eps, threat.eps)
                for pattern, gradient in zip(patterns, gradients, strict=True)
            ]
    return perturbed()


def _noise(images: Tensor, shape: tuple[int, int], eps: float, generator: torch.Generator) -> Tensor:
    noise = torch.rand(*images.shape[:2], *shape, generator=generator, device=generator.device).to(images)
    return eps * (2 * noise - 1)
