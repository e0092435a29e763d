"""Threat models: projections onto ball and box, steepest steps, random starts, union. Pure maths, one function a norm.

Throughout, `images` (B, C, H, W) in [0, 1] are the clean images and `eps` is a radius on the [0, 1] pixel scale, so
the feasible set of an image x0 is  {x : ||x - x0||_p <= eps, 0 <= x <= 1}.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from training.manifest import NORMS, Norm, ThreatModel

__all__ = [
    "DEFAULT_THREATS",
    "NORMS",
    "PROJECT",
    "RANDOM_START",
    "STEEPEST",
    "Norm",
    "ThreatModel",
    "default_threats",
    "norm_of",
    "union",
]

# What CIFAR-sized images are usually evaluated against (Croce & Hein 2022, arXiv:2105.12508).
DEFAULT_THREATS = (
    ThreatModel(norm="Linf", eps=8 / 255),
    ThreatModel(norm="L2", eps=0.5),
    ThreatModel(norm="L1", eps=12),
)

# The same for ImageNet at 224 x 224 pixels (the same paper).
_LARGE_SIDE = 224
_LARGE = {"Linf": 4 / 255, "L2": 2.0, "L1": 255.0}
_SMALL_SIDE = 64  # up to this side images count as CIFAR-sized

_MAX_ITERATIONS = 50  # of the root search
_PIXELS = (1, 2, 3)


def default_threats(height: int, width: int) -> tuple[ThreatModel, ...]:
    """Return the threat models that images of this size are evaluated against where nobody says otherwise.

    Up to 64 x 64 pixels those of CIFAR-10. Beyond, those of ImageNet, with the mean change of a pixel kept: of d
    pixels, the L2 radius grows with sqrt(d) and the L1 radius with d, while the Linf radius stays.

    Args:
        height: rows, in pixels.
        width: columns, in pixels.
    """
    if max(height, width) <= _SMALL_SIDE:
        return DEFAULT_THREATS
    share = height * width / _LARGE_SIDE**2
    scale: dict[Norm, float] = {"Linf": 1.0, "L2": share**0.5, "L1": share}
    return tuple(ThreatModel(norm=norm, eps=_LARGE[norm] * scale[norm]) for norm in NORMS)


def project_linf(x: Float[Tensor, "B C H W"], images: Float[Tensor, "B C H W"], eps: float) -> Float[Tensor, "B C H W"]:
    """Return the nearest point of the Linf ball cut with the box. The order of the two clips does not matter here."""
    radius = _safe_radius(x, eps, 1)
    return x.clamp(images - radius, images + radius).clamp_(0, 1)


def project_l2(x: Float[Tensor, "B C H W"], images: Float[Tensor, "B C H W"], eps: float) -> Float[Tensor, "B C H W"]:
    """Return the nearest point of the L2 ball cut with the box, exactly.

    With d = x - images and u the room to the box in d's direction, the answer is  images + sign(d) min(s |d|, u)  for
    the largest s <= 1 that keeps its norm within eps: the Lagrangian of the ball's constraint shrinks d evenly.
    """
    eps = _safe_radius(x, eps, images[0].numel() ** 0.5)
    delta, size, room = _split(x, images)
    length = size.square().sum(_PIXELS, keepdim=True).sqrt()

    def excess(scale: Tensor) -> Tensor:
        return torch.minimum(size * scale, room).square_().sum(_PIXELS, keepdim=True).sqrt_() - eps

    scale = _root(excess, torch.ones_like(length), (eps / _nonzero(length)).clamp(max=1), eps)
    size = torch.minimum(size * scale, room)
    shrink = (eps / _nonzero(size.square().sum(_PIXELS, keepdim=True).sqrt())).clamp(max=1)
    return (images + (size * shrink).copysign_(delta)).clamp_(0, 1)


def project_l1(x: Float[Tensor, "B C H W"], images: Float[Tensor, "B C H W"], eps: float) -> Float[Tensor, "B C H W"]:
    """Return the nearest point of the L1 ball cut with the box, exactly.

    With d = x - images and u the room to the box in d's direction, the answer is  images + sign(d) clip(|d| - t, 0, u)
    for the smallest threshold t >= 0 that keeps its norm within eps. Clipping after a projection onto the ball alone
    gives another, worse point.

    Source: Croce & Hein 2021, "Mind the box" (arXiv:2103.01208), proposition 2.1.
    """
    eps = _safe_radius(x, eps, images[0].numel())
    delta, size, room = _split(x, images)

    def excess(threshold: Tensor) -> Tensor:
        return torch.minimum((size - threshold).clamp_(min=0), room).sum(_PIXELS, keepdim=True) - eps

    largest = size.amax(_PIXELS, keepdim=True)
    threshold = _root(excess, torch.zeros_like(largest), largest, eps)
    size = torch.minimum((size - threshold).clamp_(min=0), room)
    shrink = (eps / _nonzero(size.sum(_PIXELS, keepdim=True))).clamp(max=1)
    return (images + (size * shrink).copysign_(delta)).clamp_(0, 1)


def _safe_radius(x: Tensor, eps: float, length: float) -> float:
    """Return eps less what rounding images + delta can add to the norm, so that no result ever leaves the ball.

    That is one float below 1 per coordinate, and `length` is the norm of the all-ones image: 1.5e-5 of the usual L1
    radius at 32x32, 2e-6 of the usual Linf radius, less in L2.
    """
    return max(torch.finfo(x.dtype).tiny, eps - length * torch.finfo(x.dtype).eps / 2)


def _split(x: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return d = x - images, its size, and how far each coordinate can go that way before it meets the box."""
    delta = x - images
    room = (images - (delta > 0).to(images.dtype)).abs_()
    return delta, delta.abs(), room


def _root(excess: Callable[[Tensor], Tensor], outer: Tensor, inner: Tensor, eps: float) -> Tensor:
    """Return, per image, where a monotone function is 0, between `outer` and `inner`; `outer` where that is <= 0.

    The secant with Anderson and Bjoerck's weights; every fourth step halves the bracket, so that it cannot stall. The
    functions here are piecewise linear or nearly so: about eight evaluations get to the last bit, which on a CPU is
    ten times faster than sorting the breakpoints.

    Args:
        excess: by how much the perturbation's norm exceeds eps.
        outer: where the norm is largest.
        inner: where the norm is at most eps.
        eps: the radius; sets the tolerance, a few floats of it.
    """
    tolerance = 8 * torch.finfo(outer.dtype).eps * eps
    above, below = excess(outer), excess(inner)
    point, done = outer, above <= tolerance
    last_side = torch.zeros_like(above)
    for iteration in range(_MAX_ITERATIONS):
        if done.all():
            break
        secant = (outer * below - inner * above) / (below - above)
        guess = (outer + inner) / 2 if iteration % 4 == 3 else secant
        value = excess(guess)
        point = torch.where(done, point, guess)
        done = done | (value.abs() <= tolerance)
        side = value.sign()
        # The end that stays twice in a row loses weight, so that the next secant lands beyond the root.
        kept, replaced = torch.where(side > 0, below, above), torch.where(side > 0, above, below)
        weight = 1 - value / replaced
        kept = torch.where(side == last_side, kept * torch.where(weight > 0, weight, 0.5), kept)
        outer, inner = torch.where(side > 0, guess, outer), torch.where(side > 0, inner, guess)
        above, below = torch.where(side > 0, value, kept), torch.where(side > 0, kept, value)
        last_side = side
    return point


def _nonzero(x: Tensor) -> Tensor:
    """Return x with zeros replaced by the smallest normal number, to divide by."""
    return x.clamp(min=torch.finfo(x.dtype).tiny)


def steepest_linf(gradient: Float[Tensor, "B C H W"], num_entries: Int[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
    """Return the sign of the gradient: the steepest step of Linf norm 1. `num_entries` is not used."""
    return gradient.sign()


def steepest_l2(gradient: Float[Tensor, "B C H W"], num_entries: Int[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
    """Return the gradient over its norm: the steepest step of L2 norm 1. `num_entries` is not used."""
    # Dividing by the largest entry first keeps the squares of tiny gradients from vanishing.
    gradient = gradient / _nonzero(gradient.abs().amax(_PIXELS, keepdim=True))
    return gradient / _nonzero(gradient.square().sum(_PIXELS, keepdim=True).sqrt())


def steepest_l1(gradient: Float[Tensor, "B C H W"], num_entries: Int[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
    """Return a sparse step of L1 norm 1: the sign of the `num_entries` largest entries, over their count.

    The truly steepest step has one entry; spreading it makes few steps go further (Croce & Hein 2021).

    Args:
        gradient: any scale.
        num_entries: how many entries move, per image, from 1 to C * H * W. Ties may add some; entries whose gradient is
            zero never move and do not count.
    """
    size = gradient.abs()
    largest = size.flatten(1).topk(int(num_entries.max()), dim=1).values
    bound = largest.gather(1, num_entries[:, None] - 1)[:, :, None, None]
    chosen = ((size >= bound) & (size > 0)).to(gradient.dtype)
    return gradient.sign() * chosen / chosen.sum(_PIXELS, keepdim=True).clamp(min=1)


def start_linf(images: Float[Tensor, "B C H W"], eps: float, generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Return points drawn uniformly from the Linf ball, projected."""
    noise = torch.rand(images.shape, generator=generator, device=generator.device).to(images)
    return project_linf(images + eps * (2 * noise - 1), images, eps)


def start_l2(images: Float[Tensor, "B C H W"], eps: float, generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Return points drawn uniformly from the L2 sphere, projected."""
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    return project_l2(images + eps * steepest_l2(noise, noise.new_ones(len(noise), dtype=torch.long)), images, eps)


def start_l1(images: Float[Tensor, "B C H W"], eps: float, generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Return Gaussian noise projected onto ball and box: a few random pixels changed a lot."""
    noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    return project_l1(images + noise, images, eps)


PROJECT: dict[Norm, Callable[[Tensor, Tensor, float], Tensor]] = {
    "Linf": project_linf,
    "L2": project_l2,
    "L1": project_l1,
}
STEEPEST: dict[Norm, Callable[[Tensor, Tensor], Tensor]] = {
    "Linf": steepest_linf,
    "L2": steepest_l2,
    "L1": steepest_l1,
}
RANDOM_START: dict[Norm, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "Linf": start_linf,
    "L2": start_l2,
    "L1": start_l1,
}


def norm_of(delta: Float[Tensor, "B C H W"], norm: Norm) -> Float[Tensor, "B"]:
    """Return the norm of each perturbation."""
    order = {"Linf": float("inf"), "L2": 2.0, "L1": 1.0}[norm]
    lengths: Tensor = torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)
    return lengths


def union(survived: Sequence[Bool[Tensor, "N"]]) -> Bool[Tensor, "N"]:
    """Return which images survive every threat model: the worst case per image, not the worst of the means."""
    return torch.stack(list(survived)).all(dim=0)
