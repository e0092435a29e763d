"""ROID: raise likelihood ratios of sure and diverse answers, agree with another view, stay near the start.

Source: Marsden, Doebler and Yang 2024 (arXiv:2306.00650), section 3: weighted soft likelihood ratio loss, weight
ensembling, symmetric cross-entropy of a second view, correction by class frequencies; constants as in the code
published with it. Ours deviates: the second view is the crop and mirror image that fine-tuning uses, the optimiser is
Adam with a tuned rate, and class frequencies multiply probabilities, as in the paper, not logits, as in the code.
"""

import torch
from torch import Tensor, nn

from adapt.rungs.certainty import soft_likelihood_ratio, symmetric_cross_entropy, weigh
from benchmarks.shifts.context import Answer, Context
from benchmarks.shifts.finetuning import BACKWARD, augmented
from benchmarks.shifts.options import Roid
from benchmarks.shifts.rivals.online import Learn, online
from benchmarks.shifts.tuned import chosen

PULL = 0.01  # share of the way back to the start after each step


def roid(context: Context) -> Answer:
    """Let the nominal ingredient learn from weighted answers as unseen pictures pass."""
    how = chosen(context, "roid", Roid)

    def start(net: nn.Module, parameters: list[nn.Parameter]) -> Learn:
        return Learner(net, parameters, how, seed=context.seed)

    return online(context, start, passes=2 * BACKWARD)


class Learner:
    """Answers batches and learns from the answers."""

    def __init__(self, net: nn.Module, parameters: list[nn.Parameter], how: Roid, *, seed: int) -> None:
        """Begin with a network that normalises each batch with its own statistics; these parameters may change."""
        self._net, self._parameters = net, parameters
        self._start = [parameter.detach().clone() for parameter in parameters]
        self._optimiser = torch.optim.Adam(parameters, lr=how.lr)
        self._generator = torch.Generator().manual_seed(seed)
        self._mean: Tensor | None = None  # of all answers, (K,)

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of a batch, corrected by its class frequencies, then learn."""
        logits: Tensor = self._net(x)
        weights, self._mean = weigh(logits, self._mean)
        kept = weights > 0
        loss = (weights * soft_likelihood_ratio(logits))[kept].sum()
        if kept.any():
            view = self._net(augmented(x[kept], self._generator))
            loss = loss + (weights[kept] * symmetric_cross_entropy(view, logits[kept])).sum()
            self._optimiser.zero_grad(set_to_none=True)
            (loss / len(x)).backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()
        self._pull_back()
        return corrected(logits.detach())

    @torch.no_grad()
    def _pull_back(self) -> None:
        for parameter, value in zip(self._parameters, self._start, strict=True):
            parameter.lerp_(value, PULL)


def corrected(logits: Tensor) -> Tensor:
    """Return log-probabilities (B, K), up to a constant, times the batch's own class frequencies, smoothed."""
    num, num_classes = logits.shape
    frequencies = logits.softmax(dim=1).mean(dim=0)
    smooth = max(1 / num, 1 / num_classes) / float(frequencies.max())
    return logits.log_softmax(dim=1) + ((frequencies + smooth) / (1 + smooth * num_classes)).log()
