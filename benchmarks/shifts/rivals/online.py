"""What rivals without labels have in common: unseen pictures come in batches, each is answered, then learned from."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.shifts.context import Answer, Context, Unseen
from benchmarks.shifts.finetuning import affines_of, batch_statistics, inputs_of, network, train_only
from benchmarks.shifts.nominal import nominal_of

SMALL, SMALL_BATCH, LARGE_BATCH = 64, 200, 64  # pictures of up to 64 pixels come 200 at a time, larger ones 64
ENTROPY_SHARE = 0.4  # of the largest entropy: EATA and SAR learn from answers below it
MOMENTUM = 0.9  # of their SGD

Learn = Callable[[Tensor], Tensor]  # inputs of a batch (B, 3, H, W) -> its logits (B, K)
Start = Callable[[nn.Module, list[nn.Parameter]], Learn]


def online(context: Context, start: Start, *, forwards: int = 0, passes: int) -> Answer:
    """Return the nominal ingredient adapting to the unseen pictures as they pass, from its own weights each time.

    Labelled pictures are not used: the answer is the same for any number of them. BatchNorm normalises each batch with
    its own statistics.

    Args:
        context: for the network and the seed of the order.
        start: is given the network and the scales and shifts of its normalisation layers, which alone may change;
            returns what answers a batch and learns from it.
        forwards: pictures through the network before the first batch comes.
        passes: forwards that an unseen picture costs.
    """
    prepared = context.prepared

    def predict(unseen: Unseen) -> Tensor:
        net = network(prepared, nominal_of(prepared.manifest))
        parameters = affines_of(net)
        train_only(net, parameters)
        generator = torch.Generator().manual_seed(context.seed)
        with batch_statistics(net), torch.enable_grad():
            learn = start(net, parameters)
            return stream(inputs_of(prepared, unseen.images), learn, generator).cpu()

    return Answer(predict, forwards, passes=passes)


def stream(x: Tensor, learn: Learn, generator: torch.Generator) -> Tensor:
    """Return what `learn` answers to inputs (n, 3, H, W), batch by batch and once each: (n, K), in their order.

    Batches are random: pictures sorted by class would make the statistics of a batch those of one class.
    """
    order = torch.randperm(len(x), generator=generator)
    parts = [learn(x[batch]).detach() for batch in order.tensor_split(-(-len(x) // batch_size(x)))]
    logits = torch.empty_like(torch.cat(parts))
    logits[order] = torch.cat(parts)
    return logits


def batch_size(x: Tensor) -> int:
    """Return how many inputs (n, 3, H, W) of this size come at a time, as in the papers' small and large pictures."""
    return SMALL_BATCH if max(x.shape[2:]) <= SMALL else LARGE_BATCH


def most_entropy(logits: Tensor) -> float:
    """Return the entropy, in nats, above which EATA and SAR do not learn from an answer."""
    return ENTROPY_SHARE * float(np.log(logits.shape[1]))
