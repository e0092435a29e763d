"""What a user would do with the same pictures instead: each adapts one ingredient, and stops there.

Their hyper-parameters are those that were best on shifts of other families than the one at hand: see `tuning`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode
from adapt.evidence.cross_fit import NUM_FOLDS
from adapt.evidence.scores import TEMPERATURES, choose
from adapt.images.support import Support
from adapt.networks.forward import run_soups, score_logits, soup_logits
from adapt.networks.last_layer import Head
from adapt.networks.prepared import PreparedBase
from adapt.networks.recalibration import Recalibrator
from adapt.rungs.head import PENALTIES, fit_heads
from benchmarks.shifts.context import Answer, Context, Unseen
from benchmarks.shifts.finetuning import (
    affines_of,
    blocks_of,
    finetune,
    inputs_of,
    logits_of,
    minimise_entropy,
    network,
)
from benchmarks.shifts.tuned import FineTuning, Recalibration, Refit, Surgery, Tent, chosen

BACKWARD = 3  # forwards that a forward and a backward pass cost


class Member(NamedTuple):
    """An ingredient, and the BatchNorm statistics in the place of its own."""

    ingredient: int
    temperature: float  # the best on the labelled pictures
    statistics: Tensors | None
    forwards: int


def picked(context: Context) -> Answer:
    """Pick the ingredient with the least tempCE."""
    ingredients = context.table.soups.ingredients()
    position = ingredients[choose(context.table.scores.losses[ingredients]).candidate]
    row = tuple(float(value) for value in context.table.soups.coefficients[position])
    forwards = len(ingredients) * len(context.support)
    return Answer(lambda unseen: unseen.logits[position], forwards, is_tabled=True, coefficients=row)


def picked_bn(context: Context) -> Answer:
    """Estimate every ingredient's BatchNorm statistics on the pictures, then pick; without BatchNorm only pick."""
    return adapted(context, bn=_prior(context), refit=None)


def picked_head(context: Context) -> Answer:
    """Pick an ingredient, then fit its last layer again where that lowers the cross-validated log-loss."""
    return adapted(context, bn=None, refit=chosen(context, "picked_head", Refit))


def picked_bn_head(context: Context) -> Answer:
    """Do both."""
    return adapted(context, bn=_prior(context), refit=chosen(context, "picked_head", Refit))


def adapted(context: Context, *, bn: float | None, refit: Refit | None) -> Answer:
    """Return an ingredient with its statistics, its last layer or both adapted."""
    member = pick(context, bn)
    patch, forwards = dict(member.statistics or {}), member.forwards
    key = context.prepared.head_key
    if refit is not None and key is not None and len(context.support) >= refit.min_images:
        head = _refitted(context, member)
        forwards += len(context.support)
        if head is not None:
            patch |= {f"{key}.weight": head.weight.float().numpy(), f"{key}.bias": head.bias.float().numpy()}
    row = np.eye(len(context.prepared.manifest.ingredients))[[member.ingredient]]
    mode: BnMode = "folded" if member.statistics is None else "raw"

    def predict(unseen: Unseen) -> Tensor:
        return soup_logits(context.prepared, row, unseen.images, bn_mode=mode, patch=patch or None)[0]

    return Answer(predict, forwards, coefficients=tuple(row[0].tolist()))


def pick(context: Context, bn: float | None) -> Member:
    """Return the ingredient of least tempCE, its statistics first estimated if a strength of the prior is given."""
    prepared, support = context.prepared, context.support
    rows = np.eye(len(prepared.manifest.ingredients))
    if bn is None or not prepared.has_batchnorm:
        found = context.shared.get("as they are", lambda: soup_logits(prepared, rows, support.images))
        statistics: list[Tensors | None] = [None] * len(rows)
    else:
        strength = bn
        name = f"recalibrated {strength}"
        found, statistics = context.shared.get(name, lambda: recalibrated(prepared, support, strength))
    choice = choose(score_logits(found, support.labels).losses)
    forwards = len(rows) * len(support)
    return Member(choice.candidate, TEMPERATURES[choice.temperature], statistics[choice.candidate], forwards)


def recalibrated(prepared: PreparedBase, support: Support, strength: float) -> tuple[Tensor, list[Tensors | None]]:
    """Return every ingredient's logits on the pictures (M, n, K), and the statistics that gave them.

    Args:
        prepared: of networks with BatchNorm.
        support: all of these in one batch.
        strength: pictures that the statistics of training count as, in every layer.

    Source: Schneider et al. 2020 (arXiv:2006.16971), sec. 3.
    """
    recalibrator = Recalibrator(prepared.model("raw"), prior_images=(strength, strength))
    logits, statistics = [], []
    for row in np.eye(len(prepared.manifest.ingredients)):
        found = recalibrator.run(row.tolist(), [inputs_of(prepared, support.images)], len(support))
        assert found is not None, "one batch has its logits"
        logits.append(found)
        statistics.append(recalibrator.statistics())
    return torch.stack(logits), [*statistics]


def finetuned(context: Context) -> Answer:
    """Pick an ingredient with its BatchNorm statistics estimated on the pictures, then train all of its weights."""
    return trained(context, chosen(context, "finetune", FineTuning), bn=_prior(context))


def surgical(context: Context) -> Answer:
    """Train one part of the network only: first or middle layers, or the last.

    Source: Lee et al. 2022 (arXiv:2210.11466).
    """
    return trained(context, chosen(context, "surgical", Surgery), bn=_prior(context))


def trained(context: Context, how: FineTuning | Surgery, *, bn: float | None) -> Answer:
    """Return one ingredient with all of its weights or one part of it trained on the labelled pictures."""
    prepared, support = context.prepared, context.support
    member = pick(context, bn)
    net = network(prepared, member.ingredient, member.statistics)
    parameters = list(net.parameters()) if isinstance(how, FineTuning) else part_of(net, how.part)
    x, labels = inputs_of(prepared, support.images), torch.from_numpy(support.labels)
    finetune(net, x, labels, parameters, how.schedule, seed=context.seed)
    forwards = member.forwards + BACKWARD * how.schedule.pictures(len(support))
    return Answer(lambda unseen: logits_of(net, inputs_of(prepared, unseen.images)), forwards)


def tent(context: Context) -> Answer:
    """Adapt the normalisation layers without labels, and answer batches of 200 with their own statistics.

    As its authors do, unseen pictures are normalised batch by batch with the statistics of the batch: unlike all other
    methods it sees 200 of them at a time. Whether it learns on the labelled pictures, or on the unseen ones as they
    pass, is one of the hyper-parameters. It starts from the ingredient that `picked_bn` picks.
    """
    return entropy_minimised(context, chosen(context, "tent", Tent), bn=_prior(context))


def entropy_minimised(context: Context, how: Tent, *, bn: float | None) -> Answer:
    """Return the network of `tent`."""
    prepared, n = context.prepared, len(context.support)
    member = pick(context, bn)
    net = network(prepared, member.ingredient, member.statistics)
    forwards = member.forwards
    if how.learns_on == "support":
        x = inputs_of(prepared, context.support.images)
        minimise_entropy(net, x, lr=how.lr, epochs=how.epochs, seed=context.seed)
        forwards += BACKWARD * how.epochs * n
    weights = [parameter.detach().clone() for parameter in affines_of(net)]

    def predict(unseen: Unseen) -> Tensor:
        with torch.no_grad():  # what earlier pictures taught is forgotten
            for parameter, value in zip(affines_of(net), weights, strict=True):
                parameter.copy_(value)
        epochs = how.epochs if how.learns_on == "unseen" else 0
        with torch.set_grad_enabled(bool(epochs)):
            x = inputs_of(prepared, unseen.images)
            return minimise_entropy(net, x, lr=how.lr, epochs=epochs, seed=context.seed)

    return Answer(predict, forwards, passes=BACKWARD if how.learns_on == "unseen" else 1)


def part_of(net: torch.nn.Module, share: float) -> list[torch.nn.Parameter]:
    """Return the parameters of one part of the network: 0 the first, 1 the last."""
    blocks = blocks_of(net)
    return blocks[round(share * (len(blocks) - 1))][1]


def _prior(context: Context) -> float | None:
    if not context.prepared.has_batchnorm:
        return None
    return chosen(context, "picked_bn", Recalibration).prior_images


def _refitted(context: Context, member: Member) -> Head | None:
    """Return the last layer fitted to the pictures with the cross-validated penalty; None where its own is better."""
    prepared, support = context.prepared, context.support
    if len(support.per_class) < len(support.class_names):  # a class without pictures would be fitted away
        return None
    row = np.eye(len(prepared.manifest.ingredients))[[member.ingredient]]
    mode: BnMode = "folded" if member.statistics is None else "raw"
    found = run_soups(prepared, row, support.images, bn_mode=mode, patch=member.statistics)
    own, features = prepared.head(row[0].tolist()), found.features[0]
    if own is None or features is None:
        return None
    own = own.divided(member.temperature)
    folds = support.folds(NUM_FOLDS, seed=context.seed)
    losses = np.zeros(1 + len(PENALTIES))
    for fold in np.unique(folds):
        held_out, seen = folds == fold, folds != fold
        heads = [own, *fit_heads(features[torch.from_numpy(seen)], support.labels[seen], own)]
        targets = torch.from_numpy(support.labels[held_out])
        x = features[torch.from_numpy(held_out)]
        losses += [float(torch.nn.functional.cross_entropy(head(x), targets, reduction="sum")) for head in heads]
    best = int(losses.argmin())
    return fit_heads(features, support.labels, own)[best - 1] if best else None


RIVALS: dict[str, Callable[[Context], Answer]] = {
    "picked": picked,
    "picked_bn": picked_bn,
    "picked_head": picked_head,
    "picked_bn_head": picked_bn_head,
    "finetune": finetuned,
    "surgical": surgical,
    "tent": tent,
}
