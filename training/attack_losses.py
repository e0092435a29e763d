"""Losses that an attack maximises: one value per image, larger when the model is closer to wrong, or further into it.

Every loss takes logits (B, K), labels (B,) and a reference of B rows: the target classes (B,) of a targeted loss, the
logits of the clean images (B, K) for "kl"; the others ignore it.
"""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import kl_div, log_softmax

LossName = Literal["ce", "ce-targeted", "dlr", "dlr-targeted", "margin", "kl"]


def cross_entropy(logits: Float[Tensor, "B K"], labels: Int[Tensor, "B"], reference: Tensor) -> Float[Tensor, "B"]:
    """Return the cross-entropy."""
    return torch_cross_entropy(logits, labels, reduction="none")


def cross_entropy_targeted(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, "B"], reference: Tensor
) -> Float[Tensor, "B"]:
    """Return the cross-entropy of the target classes in `reference`, (B,), with its sign changed."""
    return -torch_cross_entropy(logits, reference, reduction="none")


def margin(logits: Float[Tensor, "B K"], labels: Int[Tensor, "B"], reference: Tensor) -> Float[Tensor, "B"]:
    """Return the highest other logit less the label's: positive when the image is misclassified."""
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - _at(logits, labels)


def dlr(logits: Float[Tensor, "B K"], labels: Int[Tensor, "B"], reference: Tensor) -> Float[Tensor, "B"]:
    """Return the margin over the gap between the first and third logit: no scale of the logits can hide its gradient.

    With fewer than three classes there is no third logit, and this is the margin.

    Source: Croce & Hein 2020 (arXiv:2003.01690), equation 6.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels, reference)
    top = logits.topk(3, dim=1).values
    return margin(logits, labels, reference) / _positive(top[:, 0] - top[:, 2])


def dlr_targeted(logits: Float[Tensor, "B K"], labels: Int[Tensor, "B"], reference: Tensor) -> Float[Tensor, "B"]:
    """Return the targeted DLR: the target's logit less the label's, over a gap among the first four logits.

    With fewer than four classes there is no fourth logit, and this is the difference alone.

    Args:
        logits: of the attacked images.
        labels: the true classes.
        reference: the target classes, int64 (B,).

    Source: Croce & Hein 2020 (arXiv:2003.01690), equation 7.
    """
    difference = _at(logits, reference) - _at(logits, labels)
    if logits.shape[1] < 4:
        return difference
    top = logits.topk(4, dim=1).values
    return difference / _positive(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def kl(logits: Float[Tensor, "B K"], labels: Int[Tensor, "B"], reference: Tensor) -> Float[Tensor, "B"]:
    """Return the Kullback-Leibler divergence from the clean prediction to the attacked one.

    Args:
        logits: of the attacked images.
        labels: not used.
        reference: the logits of the clean images, (B, K).

    Source: TRADES, Zhang et al. 2019 (arXiv:1901.08573).
    """
    return kl_div(log_softmax(logits, 1), log_softmax(reference, 1), reduction="none", log_target=True).sum(1)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _positive(gap: Tensor) -> Tensor:
    return gap.clamp(min=1e-12)


LOSSES: dict[LossName, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "ce-targeted": cross_entropy_targeted,
    "dlr": dlr,
    "dlr-targeted": dlr_targeted,
    "margin": margin,
    "kl": kl,
}


def references(
    loss: LossName, clean_logits: Float[Tensor, "B K"], labels: Int[Tensor, "B"], *, num_targets: int
) -> list[Tensor]:
    """Return the reference of each run of an attack with this loss: one run, or one for each target.

    Args:
        loss: the attack's loss.
        clean_logits: logits of the clean images.
        labels: the true classes.
        num_targets: how many of the highest-scoring other classes a targeted loss aims at; K - 1 if larger.
    """
    if loss == "kl":
        return [clean_logits]
    if loss in ("ce-targeted", "dlr-targeted"):
        others = clean_logits.scatter(1, labels[:, None], float("-inf"))
        targets = others.topk(min(num_targets, clean_logits.shape[1] - 1), dim=1).indices
        return list(targets.unbind(1))
    return [labels]
