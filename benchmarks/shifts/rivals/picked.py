"""Pick one ingredient, estimate its BatchNorm statistics again, fit its last layer again: each alone or together."""

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
from adapt.rungs.head import PENALTIES, fit_heads
from benchmarks.shifts.context import Answer, Context, Unseen
from benchmarks.shifts.options import Recalibration, Refit
from benchmarks.shifts.tuned import chosen


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
    return adapted(context, bn=prior_of(context), refit=None)


def picked_head(context: Context) -> Answer:
    """Pick an ingredient, then fit its last layer again where that lowers the cross-validated log-loss."""
    return adapted(context, bn=None, refit=chosen(context, "picked_head", Refit))


def picked_bn_head(context: Context) -> Answer:
    """Pick an ingredient with statistics of the pictures, then fit its last layer again."""
    return adapted(context, bn=prior_of(context), refit=chosen(context, "picked_head", Refit))


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
        support: in one batch, unless they are more than `recalibration_batch` allows.
        strength: pictures that the statistics of training count as, in every layer.

    Source: Schneider et al. 2020 (arXiv:2006.16971), sec. 3.
    """
    before = prepared.recalibrator
    prepared.recalibrator = prepared.recalibrator_with((strength, strength))
    try:
        found = run_soups(prepared, np.eye(len(prepared.manifest.ingredients)), support.images, recalibrate=True)
    finally:
        prepared.recalibrator = before
    return found.logits, [*found.statistics]


def prior_of(context: Context) -> float | None:
    """Return how strong a prior `picked_bn` takes; None for a network without BatchNorm."""
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
