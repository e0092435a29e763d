"""The foot of the ladder: the coefficients, with BatchNorm as it is."""

import numpy as np
import torch

from adapt.evidence.scores import TEMPERATURES, choose, part
from adapt.rungs.model import Model
from adapt.rungs.pool import Library
from adapt.rungs.task import Part


class Mixture:
    """Chooses among the soups that are not recalibrated, the current one among them."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._models: dict[tuple[int, int], Model] = {}

    def fit(self, some: Part) -> Model:
        """Return the soup of least tempCE on a part of the images.

        Raises:
            ValueError: no candidate is usable.
        """
        pool, weights = self._library.pool, self._library.task.weights
        losses = pool.scores.losses[:, :, some.images]
        choice = choose(losses, some.eligible & ~pool.recalibrated, part(weights, some.images))
        if choice not in self._models:
            self._models[choice] = self._model(*choice)
        return self._models[choice]

    def _model(self, candidate: int, temperature: int) -> Model:
        task, found = self._library.task, self._library.answers(candidate)
        current = task.current if candidate == 0 else None
        patch = None if current is None else current.patch
        return Model(
            candidate=candidate,
            coefficients=tuple(self._library.pool.coefficients[candidate].tolist()),
            bn_mode=task.network.canonical(task.bn_mode) if current is None else current.bn_mode,
            temperature=TEMPERATURES[temperature],
            answer=lambda images: found.logits[torch.from_numpy(images)],
            features=found.features,
            layer=self._library.layer(candidate),
            stream=lambda: self._library.stream(candidate, np.ones(len(task.support), dtype=np.bool_)),
            tensors={} if patch is None else patch.tensors(),
            recalibrated=0 if patch is None else patch.recalibrated,
            rungs=() if patch is None else patch.rungs,
        )
