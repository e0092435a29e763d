"""Norm affines trained on pictures without labels: EATA's and ROID's objectives, from what the ladder chose.

The rivals of `benchmarks.shifts` answer pictures as they pass. Here their steps are taken on pictures that were kept,
and what they lead to is a patch like any other. BatchNorm normalises each batch with the batch's statistics, and is
given those of all pictures at the end.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adapt.documents.patch import Floats, Tensors
from adapt.rungs.certainty import Guard
from adapt.rungs.training import network_of
from benchmarks.shifts.finetuning import affines_of, augmented, batch_statistics, train_only
from benchmarks.shifts.options import Eata, Roid
from benchmarks.shifts.rivals import eata, roid
from benchmarks.shifts.rivals.online import Learn
from benchmarks.streams.start import Chosen, Pictures
from benchmarks.streams.variants import LABELS

BATCH = 64
SIMILARITY = 0.4  # of EATA, as for ten classes in its paper
LABELS_RATE = 1e-3  # of the steps on labelled pictures, beside those on others

Make = Callable[[nn.Module, list[nn.Parameter], float, int], Learn]
LEARNERS: Mapping[str, Make] = {
    "eata": lambda net, parameters, lr, _: eata.Learner(net, parameters, Eata(lr=lr, similarity=SIMILARITY, anchor=0)),
    "roid": lambda net, parameters, lr, seed: roid.Learner(net, parameters, Roid(lr=lr), seed=seed),
}


def train(
    chosen: Chosen,
    pictures: Pictures,
    idea: str,
    *,
    lr: float,
    steps: Sequence[int],
    shares: Sequence[float],
    seed: int,
) -> Iterator[tuple[int, float, Tensors]]:
    """Yield numbers of steps, shares of the way, and the scales and shifts there.

    Once answers collapse, the start takes the place of what was trained, for good.

    Args:
        chosen: BatchNorm in the open.
        pictures: of the trial.
        idea: a learner, `LABELS`, or both with a plus between.
        lr: learning rate of the learner.
        steps: ascending.
        shares: of the way from the start.
        seed: of order and augmentation.
    """
    net, parameters, names = _opened_network(chosen)
    before = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(seed)
    x = chosen.prepared.inputs(pictures.stream)
    learners = _learners(net, parameters, chosen, pictures, idea, lr=lr, seed=seed)
    guard = Guard()
    batches = _endless(len(x), generator)
    for step in range(1, max(steps) + 1):
        if not guard.has_collapsed:
            batch = x[next(batches)]
            with batch_statistics(net):
                answers = [learn(batch).detach() for learn in learners]
            guard.see(answers[0])
        if step in steps:
            for share in shares:
                way = 0.0 if guard.has_collapsed else share
                yield step, share, _between(names, before, parameters, way)


def _opened_network(chosen: Chosen) -> tuple[nn.Module, list[nn.Parameter], list[str]]:
    """Return a copy of the network, its logits divided by the temperature, and its scales and shifts with names."""
    net = network_of(chosen.prepared, chosen.start())
    layer = net.get_submodule(f"{chosen.prepared.head_key}")
    for part in ("weight", "bias"):
        layer.get_parameter(part).data.div_(chosen.temperature)
    parameters = affines_of(net)
    train_only(net, parameters)
    by_identity = {id(parameter): name for name, parameter in net.named_parameters()}
    return net, parameters, [by_identity[id(parameter)] for parameter in parameters]


def _learners(
    net: nn.Module,
    parameters: list[nn.Parameter],
    chosen: Chosen,
    pictures: Pictures,
    idea: str,
    *,
    lr: float,
    seed: int,
) -> list[Learn]:
    parts = idea.split(" + ")
    found = [LEARNERS[part](net, parameters, lr, seed) for part in parts if part != LABELS]
    if LABELS in parts:
        labelled = chosen.prepared.inputs(pictures.labelled.images)
        found.append(_Labels(net, parameters, labelled, torch.from_numpy(pictures.labelled.labels), seed=seed))
    return found


class _Labels:
    """Takes a step on labelled pictures, moved a little, whatever batch it is given."""

    def __init__(self, net: nn.Module, parameters: list[nn.Parameter], x: Tensor, labels: Tensor, *, seed: int) -> None:
        self._net, self._x, self._labels = net, x, labels
        self._optimiser = torch.optim.Adam(parameters, lr=LABELS_RATE)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, _: Tensor) -> Tensor:
        batch = torch.randperm(len(self._x), generator=self._generator)[:BATCH]
        logits: Tensor = self._net(augmented(self._x[batch], self._generator))
        self._optimiser.zero_grad(set_to_none=True)
        cross_entropy(logits, self._labels[batch]).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        return logits


def _between(
    names: Sequence[str], before: Sequence[Tensor], parameters: Sequence[nn.Parameter], share: float
) -> dict[str, Floats]:
    mixed = (torch.lerp(old, new.detach(), share) for old, new in zip(before, parameters, strict=True))
    return {name: tensor.contiguous().numpy() for name, tensor in zip(names, mixed, strict=True)}


def _endless(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(n, generator=generator).tensor_split(-(-n // BATCH))
