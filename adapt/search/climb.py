"""From rung to rung on a part of the images: the choice of held-out answers among rungs that are cheap to fit again.

Source: nested cross-validation, Varma & Simon, BMC Bioinformatics 7:91, 2006.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adapt.evidence.scores import Bools, part
from adapt.rungs.mixture import Mixture
from adapt.rungs.model import Answers, Model, Rung, judge, total
from adapt.rungs.pool import Library
from adapt.rungs.task import Part

Step = tuple[Rung, int]  # a rung and its variant


class Fold(NamedTuple):
    """A fold and what was selected without it."""

    held_out: Bools
    some: Part
    model: Model


class Climb:
    """Climbs the rungs that are cheap enough to be fitted without every two folds."""

    def __init__(self, library: Library, rungs: Sequence[Rung]) -> None:
        self._library, self._rungs = library, rungs
        self._mixture = Mixture(library)
        self._answers: dict[tuple[tuple[str, int], ...], dict[bytes, Answers]] = {}
        self.refused: dict[str, str] = {}

    def parts(self, some: Part) -> list[tuple[Bools, Part]]:
        """Return each fold of a part's images, and the part without it.

        A part that lacks a fold already keeps to the candidates which that fold has no part in.
        """
        without = self._library.pool.eligible_without
        assert without is not None, "there are folds to hold out"
        is_whole = bool(some.images.all())
        return [
            (out, Part(some.images & ~out, without[number] if is_whole else some.eligible))
            for number, out in enumerate(self._library.task.held_out_parts())
            if (some.images & out).any()
        ]

    def select(self, some: Part) -> Model:
        """Return the model that these images choose, fitted on them."""
        return self._model(self._path(some), some)

    def tried(self, some: Part) -> list[Answers]:
        """Return the held-out answers of all that was compared on a part; nothing where nothing was compared."""
        return [found[some.key] for found in self._answers.values() if some.key in found]

    def _path(self, some: Part) -> tuple[Step, ...]:
        path: tuple[Step, ...] = ()
        if self._library.pool.eligible_without is None or len(self.parts(some)) < 2:
            return path
        weights = part(self._library.task.weights, some.images)
        for rung in self._rungs:
            if (why := rung.refuse(self._model(path, some), some)) is not None:
                if some.images.all():
                    self.refused[rung.name] = why
                continue
            below = self._held_out(path, some)
            found = [self._held_out((*path, (rung, variant)), some) for variant in range(rung.num_variants)]
            best = int(np.argmin([total(answers.losses, weights) for answers in found]))
            if rung.is_better(below, found[best], weights):
                path = (*path, (rung, best))
        return path

    def _held_out(self, path: tuple[Step, ...], some: Part) -> Answers:
        """Answer a part's images, each fold by what a path leads to without it; (m,) in the order of the images."""
        kept = self._answers.setdefault(tuple((rung.name, variant) for rung, variant in path), {})
        if some.key not in kept:
            labels = self._library.task.support.labels
            losses, right = np.empty(len(labels), dtype=np.float32), np.empty(len(labels), dtype=np.bool_)
            for out, rest in self.parts(some):
                losses[out], right[out] = judge(self._model(path, rest).logits(out), labels[out])
            kept[some.key] = Answers(losses[some.images], right[some.images])
        return kept[some.key]

    def _model(self, path: tuple[Step, ...], some: Part) -> Model:
        """Return what a path leads to on a part."""
        model = self._mixture.fit(some)
        for rung, variant in path:
            model = rung.fit(model, some)[variant]
        return model
