"""TENT: lower the entropy of the answers, with normalisation layers alone.

Source: Wang et al. 2021 (arXiv:2006.10726), section 3. Ours starts from what `picked_bn` picks, and may learn on the
labelled pictures instead of the unseen ones: that is one of its hyper-parameters.
"""

import torch
from torch import Tensor, nn

from adapt.rungs.certainty import entropies
from benchmarks.shifts.context import Answer, Context, Unseen
from benchmarks.shifts.finetuning import BACKWARD, affines_of, batch_statistics, inputs_of, network, train_only
from benchmarks.shifts.options import Tent
from benchmarks.shifts.rivals.online import stream
from benchmarks.shifts.rivals.picked import pick, prior_of
from benchmarks.shifts.tuned import chosen


def tent(context: Context) -> Answer:
    """Adapt the normalisation layers without labels, and answer batches of 200 with their own statistics.

    As its authors do, unseen pictures are normalised batch by batch with the statistics of the batch: unlike methods
    with labels it sees 200 of them at a time (64 of large pictures). Whether it learns on the labelled pictures, or on
    the unseen ones as they pass, is one of the hyper-parameters. It starts from the ingredient that `picked_bn` picks.
    """
    return entropy_minimised(context, chosen(context, "tent", Tent), bn=prior_of(context))


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


def minimise_entropy(net: nn.Module, x: Tensor, *, lr: float, epochs: int, seed: int) -> Tensor:
    """Adapt the normalisation layers to pictures without labels; return the logits (n, K) of the last time round.

    Each batch is normalised with its own statistics, answered, and then used for one step of Adam that lowers the mean
    entropy of its answers. LayerNorm has no statistics: there only its affines move. With `epochs` 0 nothing is
    learned: the pictures are answered with the statistics of their batches.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = affines_of(net)
    train_only(net, parameters)
    optimiser = torch.optim.Adam(parameters, lr=lr)

    def learn(batch: Tensor) -> Tensor:
        logits: Tensor = net(batch)
        if epochs:
            optimiser.zero_grad(set_to_none=True)
            entropies(logits).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return logits

    logits = torch.empty(0)
    with batch_statistics(net):
        for _ in range(max(epochs, 1)):
            logits = stream(x, learn, generator)
    return logits.cpu()
