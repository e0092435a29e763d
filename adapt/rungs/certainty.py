"""How sure answers to images without labels are, and how unlike one another. Pure maths.

Source: Marsden, Doebler and Yang 2024 (arXiv:2306.00650), ROID, section 3, constants as in the code published with it;
Niu et al. 2023 (arXiv:2302.12400), SAR, for the bound below which answers have collapsed.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

KEPT = 0.9  # of a running mean when a batch comes
MOST = 0.99  # probability above which the likelihood ratio no longer grows
SHARPNESS = 3.0  # of the weights: 1 / their temperature
TINY = 1e-5
# Of the largest entropy: below, answers have collapsed. The paper's bound is 0.2 nats for 1,000 classes.
COLLAPSED = 0.2 / math.log(1000)
LEAST_SPREAD = 0.5  # of the entropy that the mean answer has at first: below, a few classes take over


class Weighted(NamedTuple):
    """Weights of a batch's answers.

    Attributes:
        weights: (B,) 0 for an answer like the mean one, great for one that is sure and unlike it.
        mean: (K,) running mean of the answers, this batch included.
    """

    weights: Tensor
    mean: Tensor


def entropies(logits: Tensor) -> Tensor:
    """Return the entropy of each answer in nats, (n,)."""
    logs = logits.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def soft_likelihood_ratio(logits: Tensor) -> Tensor:
    """Return  -sum_k p_k log(p_k / (1 - p_k))  of each answer, (B,); p is clipped at 0.99, with no gradient above."""
    p = logits.softmax(dim=1).clamp(max=MOST)
    return -(p * (p / (1 - p) + TINY).log()).sum(dim=1)


def symmetric_cross_entropy(one: Tensor, other: Tensor) -> Tensor:
    """Return half the cross-entropy from each of two answers (B, K) to the other, summed: (B,)."""
    there, back = other.softmax(dim=1) * one.log_softmax(dim=1), one.softmax(dim=1) * other.log_softmax(dim=1)
    return -(there + back).sum(dim=1) / 2


def weigh(logits: Tensor, mean: Tensor | None) -> Weighted:
    """Return the weights of answers, without gradients.

    Args:
        logits: (B, K).
        mean: (K,) running mean of earlier answers; None at first, when it is even.
    """
    logits = logits.detach()
    probabilities = logits.softmax(dim=1)
    before = torch.full_like(probabilities[0], 1 / logits.shape[1]) if mean is None else mean
    diversity = _stretched(1 - cosine_similarity(before[None], probabilities))
    certainty = _stretched(-entropies(logits))
    weights = torch.where(diversity < diversity.mean(), 0.0, (SHARPNESS * diversity * certainty).exp())
    return Weighted(weights, KEPT * before + (1 - KEPT) * probabilities.mean(dim=0))


def _stretched(values: Tensor) -> Tensor:
    """Return the values moved and scaled to go from 0 to 1; all 0 where they are equal."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else torch.zeros_like(values)


class Guard:
    """Watches answers for collapse: all of them sure, most of one class, or no numbers."""

    def __init__(self) -> None:
        """Begin before the first batch."""
        self.has_collapsed = False
        self._entropy: float | None = None  # running mean of the answers' entropies
        self._mean: Tensor | None = None  # running mean of the answers, (K,)
        self._first = 0.0  # entropy of the first batch's mean answer

    def see(self, logits: Tensor) -> None:
        """Take in a batch of answers (B, K)."""
        entropy, mean = float(entropies(logits).mean()), logits.softmax(dim=1).mean(dim=0)
        if self._entropy is None or self._mean is None:
            self._entropy, self._mean, self._first = entropy, mean, _entropy(mean)
        self._entropy = KEPT * self._entropy + (1 - KEPT) * entropy
        self._mean = KEPT * self._mean + (1 - KEPT) * mean
        least = COLLAPSED * math.log(logits.shape[1])
        is_open = self._entropy >= least and _entropy(self._mean) >= LEAST_SPREAD * self._first
        self.has_collapsed |= not is_open  # so it is where they are no numbers


def _entropy(probabilities: Tensor) -> float:
    return float(torch.special.entr(probabilities).sum())
