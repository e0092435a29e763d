"""EATA: lower the entropy of answers that are sure and unlike earlier ones, and keep parameters that matter.

Source: Niu et al. 2022 (arXiv:2204.02610), section 4: sample weights (eq. 2 to 6), penalty by Fisher information (eq. 7
and 8). Ours deviates in how similar an answer may be (tuned; theirs is 0.05 for 1,000 classes, 0.4 for ten) and in the
weight of the penalty (theirs 2,000 for 1,000 classes, 1 for ten). The Fisher information comes from up to 200 pictures
of the kind that the base set was trained on; without such pictures there is no penalty, which the paper calls ETA.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from adapt.rungs.certainty import KEPT, entropies
from benchmarks.shifts.context import Answer, Context
from benchmarks.shifts.finetuning import BACKWARD, inputs_of
from benchmarks.shifts.options import Eata
from benchmarks.shifts.rivals.online import MOMENTUM, Learn, batch_size, most_entropy, online
from benchmarks.shifts.tuned import chosen


def eata(context: Context) -> Answer:
    """Let the nominal ingredient learn from sure and novel answers as unseen pictures pass."""
    how = chosen(context, "eata", Eata)
    source = context.source if how.anchor else None

    def start(net: nn.Module, parameters: list[nn.Parameter]) -> Learn:
        if source is None or not len(source):
            return Learner(net, parameters, how)
        return Learner(net, parameters, how, importance(net, parameters, inputs_of(context.prepared, source)))

    forwards = 0 if source is None else BACKWARD * len(source)
    return online(context, start, forwards=forwards, passes=BACKWARD)


def importance(net: nn.Module, parameters: list[nn.Parameter], x: Tensor) -> list[Tensor]:
    """Return the diagonal of the Fisher information, of each parameter: mean squared gradients, batch by batch.

    Labels are the network's own answers.
    """
    found = [torch.zeros_like(parameter) for parameter in parameters]
    batches = x.tensor_split(-(-len(x) // batch_size(x)))
    for batch in batches:
        logits = net(batch)
        gradients = torch.autograd.grad(cross_entropy(logits, logits.argmax(dim=1)), parameters)
        for total, gradient in zip(found, gradients, strict=True):
            total += gradient**2 / len(batches)
    return found


class Learner:
    """Answers batches and learns from some of the answers."""

    def __init__(
        self, net: nn.Module, parameters: list[nn.Parameter], how: Eata, fisher: list[Tensor] | None = None
    ) -> None:
        """Begin.

        Args:
            net: normalises each batch with its own statistics.
            parameters: may change.
            how: hyper-parameters.
            fisher: how much each parameter matters, see `importance`; None for no penalty.
        """
        self._net, self._parameters, self._how, self._fisher = net, parameters, how, fisher
        self._start = [parameter.detach().clone() for parameter in parameters]
        self._optimiser = torch.optim.SGD(parameters, lr=how.lr, momentum=MOMENTUM)
        self._mean: Tensor | None = None  # of the answers learned from, (K,)

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of a batch, then learn."""
        logits: Tensor = self._net(x)
        kept = self._kept(logits.detach())
        if kept.any():
            found, most = entropies(logits)[kept], most_entropy(logits)
            loss = (found * (most - found.detach()).exp()).mean() + self._penalty()
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        return logits

    def _kept(self, logits: Tensor) -> Tensor:
        """Say which answers are sure and novel, (B,), and take these into the mean."""
        probabilities = logits.softmax(dim=1)
        kept = entropies(logits) < most_entropy(logits)
        if self._mean is not None:
            kept &= cosine_similarity(self._mean[None], probabilities).abs() < self._how.similarity
        if kept.any():
            mean = probabilities[kept].mean(dim=0)
            self._mean = mean if self._mean is None else KEPT * self._mean + (1 - KEPT) * mean
        return kept

    def _penalty(self) -> Tensor | float:
        if self._fisher is None:
            return 0.0
        parts = [
            (fisher * (parameter - start) ** 2).sum()
            for fisher, parameter, start in zip(self._fisher, self._parameters, self._start, strict=True)
        ]
        return self._how.anchor * torch.stack(parts).sum()
