"""The last rung: first layers, scales and shifts trained on the labelled images, where held-out images bear it out.

Whole trainings are cross-fitted: for every fold the network is trained anew on the other images, from the choice and
the statistics made without the fold, and answers the fold. So the rung is judged, and reported, on images that had no
part in it; the price is one training for each fold beside the one that is kept.
"""

from typing import NamedTuple

import numpy as np
import torch

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode
from adapt.evidence.score import LARGE, CrossFit, Floats, part
from adapt.networks.forward import run_soups
from adapt.rungs.choice import Climb, Fit
from adapt.rungs.early import Start, train_early
from adapt.rungs.ladder import Ladder, judged
from adapt.search.candidates import Bools, Task

HOPELESS = 2.0  # standard errors by which the first folds are behind where the others are not tried


class _Trained(NamedTuple):
    start: Start
    patch: Tensors  # of the start, with what was trained


class Surgery:
    """Trains on from where a ladder was climbed to.

    Attributes:
        image_forwards: images through the network.
    """

    def __init__(self, task: Task, ladder: Ladder, *, seed: int) -> None:
        """Take a ladder.

        Args:
            task: that of the ladder, its reports perhaps shown as another part of the whole.
            ladder: its choices are where training starts.
            seed: of every training.
        """
        self._task, self._ladder, self._seed = task, ladder, seed
        self.image_forwards = 0

    def climb(self, below: Climb) -> Climb:
        """Return the climb with first layers trained, or as it is where held-out images do not ask for more.

        They ask for it by a lower log-loss, hits being no fewer. Only with images enough, every class among
        them, and for networks with a linear last layer whose tensors a patch can replace one by one. BatchNorm that is
        folded into the convolutions is no tensor any more: where that leads, the recalibrated are trained.
        """
        everything = np.ones(len(self._ladder.labels), dtype=np.bool_)
        if below.fit is None or not self._ladder.has_enough(everything):
            return below
        choice, kind = below.choice, below.kind
        if not self._is_open(choice):
            kind = self._ladder.pool.recalibrated
            if not kind.any():
                return below
            choice = self._ladder.fit(everything, self._ladder.among(kind))
        fit = self._cross_fit(kind, below.fit)
        if fit is None or fit.loss >= below.fit.loss or fit.share(fit.candidate) < below.fit.share(below.fit.candidate):
            return below
        found = self._train(choice, everything, 1.0)
        if found is None:
            return below
        return Climb(choice._replace(penalty=None, head=None, early=found.patch), fit, kind)

    def _cross_fit(self, kind: Bools, below: CrossFit) -> CrossFit | None:
        """Answer every image with a network trained without its fold; None where the first folds leave no hope.

        A fold whose choice cannot be trained is answered as below.
        """
        chosen, right, losses = below.chosen.copy(), below.candidate.copy(), below.candidate_losses.copy()
        asked = np.zeros(len(right), dtype=np.bool_)
        for number, (held_out, choice) in enumerate(self._ladder.fits(kind), 1):
            if self._is_open(choice) and (found := self._train(choice, ~held_out, number / len(self._task.subsets()))):
                chosen[held_out] = choice.candidate
                losses[held_out], right[held_out] = self._answers(found, held_out)
            asked |= held_out
            excess = np.minimum(losses, LARGE).astype(np.float64) - np.minimum(below.candidate_losses, LARGE)
            excess = (excess if below.weights is None else excess * below.weights)[asked]
            if number > 1 and excess.mean() > HOPELESS * excess.std() / len(excess) ** 0.5:
                return None
        return CrossFit(chosen, below.current, right, below.current_losses, losses, below.weights)

    def _train(self, choice: Fit, subset: Bools, done: float) -> _Trained | None:
        """Train what a choice on a subset of the images fell on; None where its last layer is not linear."""
        task, support = self._task, self._task.support
        stand = self._ladder.standpoint(choice, subset)
        if stand is None:
            return None
        patch = stand.statistics
        if choice.candidate == 0:
            patch = None if task.current.patch is None else task.current.patch.tensors()
        row = self._ladder.pool.coefficients[choice.candidate].tolist()
        start = Start(row, self._bn_mode(choice), patch, stand.temperature)
        step = 1 / len(task.subsets())
        trained = train_early(
            task.prepared,
            start,
            support.images[subset],
            support.labels[subset],
            stand.head(stand.features[torch.from_numpy(subset)]).softmax(dim=1),
            unlabelled=task.unlabelled,
            weights=part(task.weights, subset),
            seed=self._seed,
            progress=lambda part: task.report(
                done - step * (1 - part), f"training first layers on {subset.sum()} images"
            ),
            should_stop=task.should_stop,
        )
        self.image_forwards += trained.image_forwards
        return _Trained(start, {**(patch or {}), **trained.tensors})

    def _answers(self, found: _Trained, held_out: Bools) -> tuple[Floats, Bools]:
        """Return losses and hits of a trained network on the images it was made without."""
        task, start = self._task, found.start
        run = run_soups(
            task.prepared,
            np.asarray([start.coefficients]),
            task.support.images[held_out],
            bn_mode=start.bn_mode,
            patch=found.patch,
            should_stop=task.should_stop,
        )
        self.image_forwards += run.image_forwards
        return judged(run.logits[0] / start.temperature, task.support.labels[held_out])

    def _is_open(self, choice: Fit) -> bool:
        """Say whether the network of a choice is in a layout in which every tensor stands by itself."""
        prepared = self._task.prepared
        return prepared.head_key is not None and (not prepared.has_batchnorm or self._bn_mode(choice) == "raw")

    def _bn_mode(self, choice: Fit) -> BnMode:
        if choice.candidate == 0:
            return self._task.current.bn_mode
        return "raw" if self._ladder.pool.recalibrated[choice.candidate] else self._task.bn_mode
