"""Training objectives: one small function each, over the one loop in train.py."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from training.attacks import apgd, fgsm
from training.manifest import ThreatModel
from training.recipe import AttackSpec

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, images, labels) -> perturbed images
Objective = Callable[[nn.Module, Tensor, Tensor, Attack | None, float], Tensor]


def nominal(
    model: nn.Module,
    images: Float[Tensor, "B 3 H W"],
    labels: Int[Tensor, "B"],
    attack: Attack | None,
    label_smoothing: float,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy on clean images; the model is left in train mode."""
    model.train()
    return cross_entropy(model(images), labels, label_smoothing=label_smoothing)


def adversarial(
    model: nn.Module,
    images: Float[Tensor, "B 3 H W"],
    labels: Int[Tensor, "B"],
    attack: Attack | None,
    label_smoothing: float,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy on attacked images; the model is left in train mode.

    The attack sees the model in eval mode, so that its BatchNorm statistics stay those of training batches.
    Source: Madry et al. 2018 (arXiv:1706.06083); eval mode during the attack as in Croce & Hein 2022, appendix.
    """
    assert attack is not None
    model.eval()
    attacked = attack(model, images, labels)
    model.train()
    return cross_entropy(model(attacked), labels, label_smoothing=label_smoothing)


OBJECTIVES: dict[str, Objective] = {"nominal": nominal, "adversarial": adversarial}


def make_attack(
    spec: AttackSpec | None, threat_model: ThreatModel | None, *, scale: float, generator: torch.Generator
) -> Attack | None:
    """Return the attack of a recipe at a fraction of its radius, or None for nominal training.

    Args:
        spec: kind and steps.
        threat_model: norm and full radius.
        scale: fraction of the radius, in (0, 1]; the recipe's ramp.
        generator: CPU generator of the attack's noise.
    """
    if spec is None or threat_model is None:
        return None
    threat = threat_model.model_copy(update={"eps": threat_model.eps * scale})
    if spec.kind == "fgsm":
        return lambda model, images, labels: fgsm(model, images, labels, threat, generator=generator)
    return lambda model, images, labels: apgd(
        model, images, labels, threat, num_steps=spec.num_steps, mode="train", random_start=False, generator=generator
    )
