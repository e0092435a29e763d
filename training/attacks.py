"""Attacks inside a ball cut with the box [0, 1]: APGD for Linf, L2 and L1, plain PGD, and FGSM from noise.

APGD and PGD share one loop, in ascent.py: APGD adapts its step, PGD keeps it. The model runs in eval mode and is left
as it was found; gradients flow to the input only. Steps, losses and projections are float32, also if the model runs
under autocast; images in half precision come back as float32.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.ascent import Found, Model, Rules, climb, differentiate, fewer_entries, logits_of
from training.attack_losses import LOSSES, LossName, references
from training.threat import PROJECT, RANDOM_START, Norm, ThreatModel

Mode = Literal["train", "evaluate"]

SPARSITY: dict[Mode, float] = {"train": 0.05, "evaluate": 0.2}  # share of the entries that the first L1 steps move
PGD_SPARSITY = 0.01
PGD_TRAVEL: dict[Norm, float] = {"Linf": 5, "L2": 5, "L1": 10}  # length of all of PGD's steps together, over eps
NUM_TARGETS: dict[Norm, int] = {"Linf": 9, "L2": 9, "L1": 5}
LARGER_RADII = ((3.0, 0.3), (2.0, 0.3))  # (radius over eps, share of the steps) before eps itself, for L1 in evaluation


def apgd(
    model: Model,
    images: Float[Tensor, "B C H W"],
    labels: Int[Tensor, "B"],
    threat: ThreatModel,
    *,
    num_steps: int,
    loss: LossName = "ce",
    mode: Mode = "evaluate",
    random_start: bool | None = None,
    num_restarts: int = 1,
    target: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B C H W"]:
    """Return images perturbed by APGD, inside the threat model's ball and the box.

    Mode "train" returns the point of highest loss. Mode "evaluate" returns the first misclassified point, or that of
    highest loss if there is none: images that the model gets wrong unperturbed come back as they are, and only images
    still standing are attacked on. For L1 it spends 30 % of the steps each in balls of 3 and 2 eps first.

    Args:
        model: logits (B, K) of images in [0, 1]; a module is put into eval mode for the time of the attack.
        images: clean images in [0, 1].
        labels: their classes, int64.
        threat: norm and radius.
        num_steps: steps, each with one gradient; one more forward pass judges the last point.
        loss: what is maximised. "dlr-targeted" runs the whole attack, in every restart, once for each of the 9
            (L1: 5) highest-scoring other classes.
        mode: see above.
        random_start: start from a random point of the ball. Default: in evaluation, and with "kl", whose gradient
            is zero at the clean image.
        num_restarts: independent runs; in evaluation only.
        target: with a targeted loss, aim only at the other class of this rank, 0 being the highest-scoring one.
        generator: of the random starts, on any device. Default: torch's global one.

    Raises:
        ValueError: shapes that do not match, pixels outside [0, 1], or settings that exclude one another.

    Source: Croce & Hein 2020 (arXiv:2003.01690), algorithm 1; Croce & Hein 2021 (arXiv:2103.01208), algorithm 1.
    """
    step_size = threat.eps if threat.norm == "L1" else 2 * threat.eps
    stops = mode == "evaluate"
    rules = Rules(loss, threat.norm, threat.eps, num_steps, step_size, is_adaptive=True, stops=stops)
    return _attack(model, images, labels, rules, SPARSITY[mode], random_start, num_restarts, generator, target)


def pgd(
    model: Model,
    images: Float[Tensor, "B C H W"],
    labels: Int[Tensor, "B"],
    threat: ThreatModel,
    *,
    num_steps: int,
    loss: LossName = "ce",
    mode: Mode = "evaluate",
    random_start: bool | None = None,
    num_restarts: int = 1,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B C H W"]:
    """Return images perturbed by plain projected gradient ascent with a fixed step. Weaker than `apgd`.

    Steps are the gradient's sign (Linf), the normalised gradient (L2), or the sign of its largest 1 % (L1).

    Args:
        model: as in `apgd`, and so are all that follow but the last.
        images: clean images.
        labels: their classes.
        threat: norm and radius.
        num_steps: steps.
        loss: what is maximised.
        mode: highest loss, or first misclassified point.
        random_start: start from a random point of the ball.
        num_restarts: independent runs.
        generator: of the random starts.
        step_size: length of a step in the norm. Default: 5 eps / num_steps, for L1 10 eps / num_steps. (On a small
            CIFAR-10 net these were the strongest of 1.25, 2.5, 5 and 10, for L1 up to 30.)

    Raises:
        ValueError: as `apgd`.

    Source: Madry et al. 2018 (arXiv:1706.06083); sparse L1 steps as in SLIDE, Tramer & Boneh 2019 (arXiv:1904.13000).
    """
    size = PGD_TRAVEL[threat.norm] * threat.eps / max(1, num_steps) if step_size is None else step_size
    stops = mode == "evaluate"
    rules = Rules(loss, threat.norm, threat.eps, num_steps, size, is_adaptive=False, stops=stops)
    return _attack(model, images, labels, rules, PGD_SPARSITY, random_start, num_restarts, generator)


def fgsm(
    model: Model,
    images: Float[Tensor, "B C H W"],
    labels: Int[Tensor, "B"],
    threat: ThreatModel,
    *,
    noise: float = 1.0,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B C H W"]:
    """Return images perturbed by one signed gradient step from uniform noise: the cheapest attack to train with.

    Args:
        model: as in `apgd`.
        images: clean images in [0, 1].
        labels: their classes.
        threat: Linf only.
        noise: radius of the noise, as a share of eps, in [0, 1].
        step_size: length of the step. Default: 1.25 eps.
        generator: of the noise.

    Raises:
        ValueError: as `apgd`, or another norm than Linf.

    Source: Wong, Rice & Kolter 2020 (arXiv:2001.03994).
    """
    if threat.norm != "Linf":
        raise ValueError(f"fgsm is an attack for Linf, got {threat.norm}: use apgd")
    check_images(images, labels)
    images = _at_least_float32(images)
    start = RANDOM_START["Linf"](images, noise * threat.eps, generator or torch.default_generator)
    with eval_mode(model):
        _, _, gradient = differentiate(model, "ce", start, labels, labels)
    size = 1.25 * threat.eps if step_size is None else step_size
    return PROJECT["Linf"](start + size * gradient.sign(), images, threat.eps)


def _attack(
    model: Model,
    images: Tensor,
    labels: Tensor,
    rules: Rules,
    sparsity: float,
    random_start: bool | None,
    num_restarts: int,
    generator: torch.Generator | None,
    target: int | None = None,
) -> Tensor:
    """Check the settings, then run one climb in training, or as many as the images stand in evaluation."""
    check_images(images, labels)
    if rules.num_steps < 1 or num_restarts < 1:
        raise ValueError(f"expected at least 1 step and 1 restart, got {rules.num_steps} and {num_restarts}")
    if random_start is None:
        random_start = rules.stops or rules.loss == "kl"
    if rules.loss == "kl" and not random_start:
        raise ValueError("loss kl needs a random start: its gradient is zero at the clean image")
    if not rules.stops and (num_restarts > 1 or rules.loss == "dlr-targeted"):
        raise ValueError("restarts and targets need mode evaluate: in training an attack is one run")
    if target is not None and not rules.loss.endswith("-targeted"):
        raise ValueError(f"a target needs a targeted loss, got {rules.loss}")
    noise = (generator or torch.default_generator) if random_start else None
    images = _at_least_float32(images)
    entries = max(1, int(sparsity * images[0].numel()))
    with eval_mode(model):
        if rules.stops:
            return _attack_standing(model, images, labels, rules, entries, num_restarts, noise, target)
        reference = logits_of(model, images) if rules.loss == "kl" else labels
        return _run(model, images, labels, reference, rules, entries, noise).x


def _attack_standing(
    model: Model,
    images: Tensor,
    labels: Tensor,
    rules: Rules,
    entries: int,
    num_restarts: int,
    noise: torch.Generator | None,
    target: int | None,
) -> Tensor:
    """Attack, restart by restart and target by target, the images that the model still gets right."""
    clean_logits = logits_of(model, images)
    num_targets = NUM_TARGETS[rules.norm] if target is None else target + 1
    runs = references(rules.loss, clean_logits, labels, num_targets=num_targets)
    if target is not None:
        if not 0 <= target < len(runs):
            raise ValueError(f"expected a target from 0 to {clean_logits.shape[1] - 2}, got {target}")
        runs = runs[target:]
    runs = runs * num_restarts
    is_wrong = clean_logits.argmax(1) != labels
    best = Found(images.clone(), LOSSES[rules.loss](clean_logits, labels, runs[0]), is_wrong)
    for reference in runs:
        rows = torch.nonzero(~best.is_wrong)[:, 0]
        if len(rows) == 0:
            break
        found = _run(model, images[rows], labels[rows], reference[rows], rules, entries, noise)
        better = found.is_wrong | (found.loss > best.loss[rows])
        for ours, theirs in zip(best, found, strict=True):
            ours[rows[better]] = theirs[better]
    return best.x


def _run(
    model: Model,
    images: Tensor,
    labels: Tensor,
    reference: Tensor,
    rules: Rules,
    entries: int,
    noise: torch.Generator | None,
) -> Found:
    """Climb from the image, or from a random point if there is `noise`; for L1 in evaluation by way of larger balls."""
    phases = [rules]
    if rules.norm == "L1" and rules.is_adaptive and rules.stops:
        phases = [
            rules._replace(eps=radius * rules.eps, step_size=radius * rules.step_size, num_steps=steps, stops=False)
            for radius, share in LARGER_RADII
            if (steps := int(share * rules.num_steps)) > 0
        ]
        phases.append(rules._replace(num_steps=rules.num_steps - sum(phase.num_steps for phase in phases)))
    start = images if noise is None else RANDOM_START[rules.norm](images, phases[0].eps, noise)
    num_entries = torch.full_like(labels, entries)
    for phase in phases:
        if phase.eps < phases[0].eps:
            # Go on as sparse as the larger ball ended: on a small CIFAR-10 net 20 steps then broke 3 % more images.
            start = PROJECT[rules.norm](start, images, phase.eps)
            num_entries = fewer_entries(start, images)
        found = climb(model, images, labels, reference, start, phase, num_entries=num_entries)
        start = found.x
    return found


@contextmanager
def eval_mode(model: Model) -> Iterator[None]:
    """Put a module into eval mode, and every part of it back as it was."""
    training = [part for part in model.modules() if part.training] if isinstance(model, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def check_images(images: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless there are floating-point images in [0, 1] and one label for each."""
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"expected images and one label for each, got {len(images)} and {len(labels)}")
    if not images.is_floating_point():
        raise ValueError(f"expected floating-point images in [0, 1], got {images.dtype}: divide uint8 by 255")
    low, high = (float(value) for value in images.aminmax())
    if math.isnan(low) or math.isnan(high):
        raise ValueError("expected images in [0, 1], got NaN in some")
    if not (low >= 0 and high <= 1):
        hint = " (did you forget to divide by 255?)" if low >= 0 and 2 < high <= 255 else ""
        raise ValueError(f"expected images in [0, 1], got values from {low:g} to {high:g}{hint}")


def _at_least_float32(images: Tensor) -> Tensor:
    """Return images that steps of eps / 100 do not vanish in: bfloat16 knows 1 / 256 next to 1 at best."""
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
