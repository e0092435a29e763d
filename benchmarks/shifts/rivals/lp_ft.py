"""LP-FT: fit the last layer first, then train all weights from there, so that features are not spoilt on the way.

Source: Kumar et al. 2022 (arXiv:2202.10054), section 4. Ours deviates: the probe is fitted under the BatchNorm
statistics of the labelled pictures, as training then normalises with those of its batches; the optimiser is that of the
other rivals that train (AdamW, cosine) where theirs is SGD; the penalty of the probe is that of `probe`.
"""

import torch
from torch import Tensor

from benchmarks.shifts.context import Answer, Context, Unseen
from benchmarks.shifts.finetuning import BACKWARD, estimate_statistics, finetune, inputs_of, logits_of, network
from benchmarks.shifts.nominal import NO_HEAD, features_of, nominal_of
from benchmarks.shifts.options import FineTuning, Probing
from benchmarks.shifts.rivals.probe import fit_probe
from benchmarks.shifts.tuned import chosen


def lp_ft(context: Context) -> Answer:
    """Give the nominal ingredient a last layer fitted to the labelled pictures, then train all of its weights."""
    how, penalty = chosen(context, "lp_ft", FineTuning), chosen(context, "probe", Probing).penalty
    net, forwards = probed(context, penalty=penalty)
    x, labels = inputs_of(context.prepared, context.support.images), torch.from_numpy(context.support.labels)
    finetune(net, x, labels, list(net.parameters()), how.schedule, seed=context.seed)
    forwards += BACKWARD * how.schedule.pictures(len(x))

    def predict(unseen: Unseen) -> Tensor:
        return logits_of(net, inputs_of(context.prepared, unseen.images))

    return Answer(predict, forwards)


def probed(context: Context, *, penalty: float) -> tuple[torch.nn.Module, int]:
    """Return the nominal ingredient with statistics of the pictures and a last layer fitted to them, and the forwards.

    Raises:
        ValueError: its last layer is not linear.
    """
    prepared, support = context.prepared, context.support
    if prepared.head_key is None:
        raise ValueError(NO_HEAD)
    net, x = network(prepared, nominal_of(prepared.manifest)), inputs_of(prepared, support.images)
    estimate_statistics(net, x)
    features = features_of(net, prepared.head_key, x)
    head = fit_probe(features, support.labels, len(support.class_names), penalty=penalty)
    layer = net.get_submodule(prepared.head_key)
    with torch.no_grad():
        layer.get_parameter("weight").copy_(head.weight)
        layer.get_parameter("bias").copy_(head.bias)
    return net, (2 if prepared.has_batchnorm else 1) * len(support)
