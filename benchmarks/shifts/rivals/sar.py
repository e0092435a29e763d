"""SAR: lower the entropy of sure answers, at the worst point near the weights; start again when answers collapse.

Source: Niu et al. 2023 (arXiv:2302.12400), section 4: reliable entropy (eq. 2), sharpness-aware steps (eq. 3 to 5),
recovery. The last quarter of the normalisation layers stay, as do stage 4 of a ResNet and blocks 9 to 11 of a ViT
there. Ours deviates in that the entropy below which the weights are put back grows with the logarithm of the number of
classes; theirs is 0.2 nats for 1,000 of them, which few classes would always be below.
"""

import numpy as np
import torch
from torch import Tensor, nn

from adapt.rungs.certainty import COLLAPSED, KEPT, entropies
from benchmarks.shifts.context import Answer, Context
from benchmarks.shifts.finetuning import BACKWARD
from benchmarks.shifts.options import Sar
from benchmarks.shifts.rivals.online import MOMENTUM, Learn, most_entropy, online
from benchmarks.shifts.tuned import chosen

REACH = 0.05  # length of the step towards the worst point
STILL = 0.25  # share of the normalisation parameters that do not change: the last ones


def sar(context: Context) -> Answer:
    """Let the nominal ingredient learn from sure answers as unseen pictures pass."""
    how = chosen(context, "sar", Sar)

    def start(net: nn.Module, parameters: list[nn.Parameter]) -> Learn:
        return Learner(net, parameters[: len(parameters) - round(STILL * len(parameters))], how)

    return online(context, start, passes=2 * BACKWARD)


class Learner:
    """Answers batches and learns from some of the answers."""

    def __init__(self, net: nn.Module, parameters: list[nn.Parameter], how: Sar) -> None:
        """Begin with a network that normalises each batch with its own statistics; these parameters may change."""
        self._net, self._parameters, self._how = net, parameters, how
        self._start = [parameter.detach().clone() for parameter in parameters]
        self._begin()

    def _begin(self) -> None:
        self._optimiser = torch.optim.SGD(self._parameters, lr=self._how.lr, momentum=MOMENTUM)
        self._running: float | None = None  # mean entropy of the answers learned from

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of a batch, then learn."""
        logits: Tensor = self._net(x)
        found, most = entropies(logits), most_entropy(logits)
        sure = found.detach() < most
        if not sure.any():
            return logits
        steps = self._uphill(found[sure].mean())
        self._move(steps, 1)
        there = entropies(self._net(x))[sure]
        still = there.detach() < most
        self._optimiser.zero_grad(set_to_none=True)
        if still.any():
            there[still].mean().backward()  # type: ignore[no-untyped-call]
        self._move(steps, -1)
        if still.any():
            self._optimiser.step()
            self._watch(float(there[still].detach().mean()), COLLAPSED * float(np.log(logits.shape[1])))
        return logits

    def _uphill(self, loss: Tensor) -> list[Tensor]:
        """Return the step of length `REACH` along which the loss rises fastest."""
        gradients = torch.autograd.grad(loss, self._parameters)
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        return [REACH * gradient / (length + 1e-12) for gradient in gradients]

    @torch.no_grad()
    def _move(self, steps: list[Tensor], sign: int) -> None:
        for parameter, step in zip(self._parameters, steps, strict=True):
            parameter.add_(step, alpha=sign)

    @torch.no_grad()
    def _watch(self, entropy: float, collapsed: float) -> None:
        self._running = entropy if self._running is None else KEPT * self._running + (1 - KEPT) * entropy
        if self._running < collapsed:
            for parameter, value in zip(self._parameters, self._start, strict=True):
                parameter.copy_(value)
            self._begin()
