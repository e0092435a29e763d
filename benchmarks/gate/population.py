"""Populations to draw labelled pictures from: every soup's logits on a shift's pictures, computed once and kept."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.evidence.scores import Scores
from adapt.networks.forward import score_logits, soup_logits
from adapt.networks.prepared import PreparedBase
from benchmarks.shifts.sources import Sources
from benchmarks.shifts.table import soups_of

logger = logging.getLogger(__name__)

CLEAN = "clean"  # name of the pictures that shifts are computed from

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Population:
    """A shift as a distribution: its pictures, each as likely as the other.

    Labelled pictures are drawn with replacement, so that they are independent and what is true of a soup is known
    without error: it is its score on all pictures.

    Attributes:
        name: of the shift.
        labels: (N,).
        logits: float16 (C, N, K), of the soups that a grid search looks at; the first is the base set's default.
        truth: losses and hits of all soups on all pictures.
    """

    name: str
    labels: Ints
    logits: Tensor
    truth: Scores

    @cached_property
    def brier(self) -> npt.NDArray[np.float32]:
        """Brier score of every soup on every picture, (C, N), at temperature 1."""
        chances = self.logits.float().softmax(dim=2)
        of_label = chances.gather(2, torch.from_numpy(self.labels).view(1, -1, 1).expand(len(chances), -1, 1))
        scores: npt.NDArray[np.float32] = (1 + chances.square().sum(dim=2) - 2 * of_label.squeeze(2)).numpy()
        return scores

    def scores(self, positions: Ints, labels: Ints) -> Scores:
        """Return what the soups' scores on some pictures are under these labels, which may be wrong."""
        right, losses = self.truth.correct[:, positions], self.truth.losses[:, :, positions]
        changed = np.flatnonzero(labels != self.labels[positions])
        if len(changed):
            logits = self.logits[:, positions[changed]].float()
            replaced = score_logits(logits, labels[changed])
            losses[:, :, changed], right[:, changed] = replaced.losses, replaced.correct
        return Scores(losses, right)


def tabulate(prepared: PreparedBase, sources: Sources, names: Sequence[str], folder: Path, *, seed: int) -> None:
    """Compute the logits that `folder` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    soups = soups_of(prepared.manifest)
    rows = soups.coefficients[: soups.num_searched]
    for number, name in enumerate(names, 1):
        if (path := _path(folder, name)).exists():
            continue
        started = time.perf_counter()
        data = sources.clean if name == CLEAN else sources.load(name, seed=seed)
        logits = soup_logits(prepared, rows, data.images).half()
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, logits=logits.numpy(), labels=data.labels)
        partial.replace(path)
        logger.info("%s: %.0f s, %d of %d", name, time.perf_counter() - started, number, len(names))


def load(folder: Path, name: str) -> Population:
    """Read the logits of a shift."""
    with np.load(_path(folder, name)) as arrays:
        logits, labels = torch.from_numpy(arrays["logits"]), arrays["labels"]
    return Population(name, labels, logits, score_logits(logits.float(), labels))


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"
