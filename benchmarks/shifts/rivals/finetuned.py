"""Train weights on the labelled pictures: all of them, or one part of the network."""

import torch

from adapt.documents.patch import Tensors
from benchmarks.shifts.context import Answer, Context
from benchmarks.shifts.finetuning import BACKWARD, blocks_of, finetune, inputs_of, logits_of, network
from benchmarks.shifts.nominal import nominal_of
from benchmarks.shifts.options import FineTuning, Surgery
from benchmarks.shifts.rivals.picked import pick, prior_of
from benchmarks.shifts.tuned import chosen


def finetuned(context: Context) -> Answer:
    """Pick an ingredient with its BatchNorm statistics estimated on the pictures, then train all of its weights."""
    return trained(context, chosen(context, "finetune", FineTuning), bn=prior_of(context))


def finetuned_nominal(context: Context) -> Answer:
    """Train all weights of the nominal ingredient: what one does who has a plain network and some labels."""
    how = chosen(context, "finetune_nominal", FineTuning)
    return _trained(context, how, nominal_of(context.prepared.manifest), None, forwards=0)


def surgical(context: Context) -> Answer:
    """Train one part of the network only: first or middle layers, or the last.

    Source: Lee et al. 2022 (arXiv:2210.11466).
    """
    return trained(context, chosen(context, "surgical", Surgery), bn=prior_of(context))


def trained(context: Context, how: FineTuning | Surgery, *, bn: float | None) -> Answer:
    """Return the ingredient that `pick` picks with its weights or one part of them trained on the labelled pictures."""
    member = pick(context, bn)
    return _trained(context, how, member.ingredient, member.statistics, forwards=member.forwards)


def _trained(
    context: Context, how: FineTuning | Surgery, ingredient: int, statistics: Tensors | None, *, forwards: int
) -> Answer:
    prepared, support = context.prepared, context.support
    net = network(prepared, ingredient, statistics)
    parameters = list(net.parameters()) if isinstance(how, FineTuning) else part_of(net, how.part)
    x, labels = inputs_of(prepared, support.images), torch.from_numpy(support.labels)
    finetune(net, x, labels, parameters, how.schedule, seed=context.seed)
    forwards += BACKWARD * how.schedule.pictures(len(support))
    return Answer(lambda unseen: logits_of(net, inputs_of(prepared, unseen.images)), forwards)


def part_of(net: torch.nn.Module, share: float) -> list[torch.nn.Parameter]:
    """Return the parameters of one part of the network: 0 the first, 1 the last."""
    blocks = blocks_of(net)
    return blocks[round(share * (len(blocks) - 1))][1]
