"""Soups with channel statistics estimated on the images, in the place of those of training."""

from collections.abc import Sequence

import numpy as np
import torch

from adapt.evidence.scores import TEMPERATURES, Bools, Floats, choose, part, temp_ce
from adapt.networks.forward import score_logits
from adapt.rungs.model import Answers, Model
from adapt.rungs.pool import Library
from adapt.rungs.task import Part

NAME = "statistics"
DOUBT = 1.0  # standard errors by which recalibrated candidates may be behind on held-out images


class Statistics:
    """Chooses among the recalibrated soups; answers with the statistics of its part of the images alone."""

    name = NAME
    num_variants = 1
    num_parts: int | None = None

    def __init__(self, library: Library) -> None:
        self._library = library
        self._models: dict[tuple[int, bytes], Model] = {}

    def refuse(self, below: Model, some: Part) -> str | None:
        """Say so where the network has no statistics, or a look at the soups has shown that they do not help."""
        if not self._library.task.network.can_recalibrate:
            return "the network has no BatchNorm, and its base set no moments"
        if not self._eligible(some).any():
            return "soups with statistics of the images were behind on the labelled ones"
        return None

    def fit(self, below: Model, some: Part) -> Sequence[Model]:
        """Return the recalibrated soup of least tempCE on the part, with the statistics of the part."""
        task, pool = self._library.task, self._library.pool
        if not self._eligible(some).any():
            return [below]
        counts = part(task.weights, some.images)
        candidate = choose(pool.scores.losses[:, :, some.images], self._eligible(some), counts).candidate
        key = (candidate, some.images.tobytes())
        if key not in self._models:
            self._models[key] = self._model(candidate, some.images)
        return [self._models[key]]

    def is_better(self, below: Answers, own: Answers, weights: Floats | None) -> bool:
        """Say whether the recalibrated are better on held-out images, or not clearly worse.

        Their statistics lack a fold's images there, which matters where images are few: so they get the benefit of the
        doubt.
        """
        excess = own.losses.astype(np.float64) - below.losses
        if not np.isfinite(excess).all():
            return bool(np.isfinite(own.losses).all())
        excess = excess if weights is None else excess * weights
        return bool(excess.mean() <= DOUBT * excess.std() / len(excess) ** 0.5)

    def _eligible(self, some: Part) -> Bools:
        return some.eligible & self._library.pool.recalibrated

    def _model(self, candidate: int, images: Bools) -> Model:
        task, library = self._library.task, self._library
        found = library.answers(candidate) if images.all() else library.without(candidate, images)
        assert found.statistics is not None, "the candidate is recalibrated"
        scores = score_logits(found.logits[torch.from_numpy(images)][None], task.support.labels[images])
        temperature = int(temp_ce(scores.losses, part(task.weights, images))[1][0])
        return Model(
            candidate=candidate,
            coefficients=tuple(library.pool.coefficients[candidate].tolist()),
            bn_mode="raw",
            temperature=TEMPERATURES[temperature],
            answer=lambda some: found.logits[torch.from_numpy(some)],
            features=found.features,
            layer=library.layer(candidate),
            stream=lambda: library.stream(candidate, images),
            tensors=found.statistics,
            recalibrated=int(images.sum()) + task.num_unlabelled,
            rungs=(self.name,),
        )
