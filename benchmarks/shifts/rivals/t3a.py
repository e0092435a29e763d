"""T3A: as unseen pictures pass, each class's weights become the mean feature of those that are surely of the class.

Source: Iwasawa and Matsuo 2021 (NeurIPS, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain
Generalization"), section 3, algorithm 1. As in the code published with it, pictures and prototypes have length 1, and
whether a picture is sure is told by the entropy of the layer's own answer. No gradient, no labels.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adapt.networks.last_layer import Head
from adapt.rungs.certainty import entropies
from benchmarks.shifts.context import Answer, Context, Unseen
from benchmarks.shifts.nominal import nominal_features, nominal_head
from benchmarks.shifts.options import T3a
from benchmarks.shifts.rivals.online import LARGE_BATCH
from benchmarks.shifts.tuned import chosen


def t3a(context: Context) -> Answer:
    """Answer by the prototypes of the nominal ingredient's features; labelled pictures are not used."""
    prepared, most = context.prepared, chosen(context, "t3a", T3a).most
    head = nominal_head(prepared)

    def predict(unseen: Unseen) -> Tensor:
        found = nominal_features(prepared, unseen.images) if unseen.features is None else unseen.features
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(context.seed))
        prototypes, logits = Prototypes(head, most), torch.empty(len(found), len(head.bias))
        for batch in torch.split(order, LARGE_BATCH):
            logits[batch] = prototypes.answer(found[batch])
        return logits

    return Answer(predict)


class Prototypes:
    """The sure features of each class so far; at first the rows of the last layer."""

    def __init__(self, head: Head, most: int | None) -> None:
        """Begin with a layer's rows.

        Args:
            head: the last layer, (K, D).
            most: features of a class that are kept, those of least entropy; None for all.
        """
        self._head, self._most = head, most
        self._features = head.weight.double()
        answers = head(self._features)
        self._classes, self._entropies = answers.argmax(dim=1), entropies(answers)

    def answer(self, features: Tensor) -> Tensor:
        """Take in features (B, D), then return their logits (B, K): cosines to the prototypes, times their length."""
        answers = self._head(features)
        self._features = torch.cat([self._features, features.double()])
        self._classes = torch.cat([self._classes, answers.argmax(dim=1)])
        self._entropies = torch.cat([self._entropies, entropies(answers)])
        self._forget()
        directions = normalize(self._features)
        sums = torch.zeros_like(self._head.weight.double()).index_add(0, self._classes, directions)
        return (features.double() @ normalize(sums).T).float()

    def _forget(self) -> None:
        if self._most is None:
            return
        kept = []
        for label in range(len(self._head.bias)):
            members = torch.nonzero(self._classes == label).flatten()
            kept.append(members[self._entropies[members].argsort(stable=True)[: self._most]])
        rows = torch.cat(kept)
        self._features, self._classes, self._entropies = (
            part[rows] for part in (self._features, self._classes, self._entropies)
        )
