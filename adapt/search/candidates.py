"""Candidates on the support images: soups with their BatchNorm as it is, or with statistics estimated on the images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode, Soup
from adapt.evidence.score import Floats, Scores
from adapt.images.support import Support
from adapt.networks.forward import Run, run_soups, score_logits
from adapt.networks.prepared import PreparedBase
from adapt.rungs.head import Head
from adapt.search.grid import Grid

SAME = 1e-9  # two coefficients closer than this are the same soup

Progress = Callable[[float, str], None]
ShouldStop = Callable[[], bool]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """What every strategy is given.

    Attributes:
        prepared: the base set.
        support: the labelled images.
        unlabelled: uint8 (m, H, W, 3), more images to recalibrate on; None for none.
        current: the soup to beat.
        bn_mode: how candidates mix BatchNorm that is not recalibrated.
        recalibrate: whether soups with recalibrated statistics are candidates too.
        folds: (n,) None where nothing can be held out.
        weights: (n,) of the images; None for equal ones.
        report: told the fraction done and what is being done.
        should_stop: asked before each soup.
    """

    prepared: PreparedBase
    support: Support
    unlabelled: npt.NDArray[np.uint8] | None
    current: Soup
    bn_mode: BnMode
    recalibrate: bool
    folds: Ints | None
    weights: Floats | None
    report: Progress
    should_stop: ShouldStop | None

    @property
    def num_ingredients(self) -> int:
        """M."""
        return len(self.prepared.manifest.ingredients)

    @property
    def num_unlabelled(self) -> int:
        """Images without a label."""
        return 0 if self.unlabelled is None else len(self.unlabelled)

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Whether candidates are recalibrated: both kinds, or the one there is."""
        return (False, True) if self.recalibrate else (False,)

    def subsets(self) -> list[Bools]:
        """Return the images of each choice: without every fold in turn, then all."""
        without = [] if self.folds is None else [self.folds != fold for fold in np.unique(self.folds)]
        return [*without, np.ones(len(self.support), dtype=np.bool_)]

    def part(self, low: float, high: float) -> "Task":
        """Return the task with its reports from 0 to 1 shown as from `low` to `high`."""
        return replace(self, report=lambda done, message: self.report(low + (high - low) * done, message))


class Block(NamedTuple):
    """Candidates of one kind, evaluated."""

    coefficients: Grid  # (C, M)
    recalibrated: bool
    scores: Scores
    logits: Tensor  # (C, n, K)
    features: tuple[Tensor | None, ...]
    statistics: tuple[Tensors | None, ...]
    image_forwards: int


@dataclass(frozen=True)
class Pool:
    """Candidates evaluated on the support images; the current soup is at position 0.

    Attributes:
        coefficients: (C, M).
        recalibrated: (C,) which have statistics estimated on the images. The current soup counts as not, whatever
            its patch.
        scores: on the support images.
        eligible: (C,) which of them the choice on all images may fall on.
        eligible_without: (F, C) the same for the choice without the images of each fold; None where all may.
        features: of each, (n, D), what the last layer is given; None where they were not kept, or there is none.
        statistics: of each, None where they were not recalibrated.
        current_logits: (n, K) of the current soup.
        image_forwards: images through the network.
    """

    coefficients: Grid
    recalibrated: Bools
    scores: Scores
    eligible: Bools
    eligible_without: Bools | None
    features: tuple[Tensor | None, ...]
    statistics: tuple[Tensors | None, ...]
    current_logits: Tensor
    image_forwards: int


def run_current(task: Task) -> Block:
    """Evaluate the current soup, with its patch."""
    current = task.current
    row = np.asarray([current.vector(task.prepared.manifest)])
    patch = None if current.patch is None else current.patch.tensors()
    found = run_soups(
        task.prepared,
        row,
        task.support.images,
        bn_mode=current.bn_mode,
        patch=patch,
        should_stop=task.should_stop,
    )
    return _block(task, row, False, found)


def run_candidates(task: Task, rows: Grid, *, recalibrated: bool) -> Block:
    """Evaluate soups and keep what the last layer is given."""
    n = len(task.support)

    def tell(fraction: float) -> None:
        kind = "recalibrated soups" if recalibrated else "soups"
        task.report(fraction, f"evaluated {round(fraction * len(rows))} of {len(rows)} {kind} on {n} images")

    found = run_soups(
        task.prepared,
        rows,
        task.support.images,
        bn_mode=task.bn_mode,
        recalibrate=recalibrated,
        unlabelled=task.unlabelled if recalibrated else None,
        progress=tell,
        should_stop=task.should_stop,
    )
    return _block(task, rows, recalibrated, found)


def _block(task: Task, rows: Grid, recalibrated: bool, found: Run) -> Block:
    scores = score_logits(found.logits, task.support.labels)
    return Block(rows, recalibrated, scores, found.logits, found.features, found.statistics, found.image_forwards)


def is_current(task: Task, rows: Grid) -> Bools:
    """Say which soups (C, M), not recalibrated, are the very network that is served now, (C,)."""
    prepared, current = task.prepared, task.current
    if current.patch is not None or prepared.canonical(task.bn_mode) != prepared.canonical(current.bn_mode):
        return np.zeros(len(rows), dtype=np.bool_)
    return is_among(rows, np.asarray([current.vector(prepared.manifest)]))


def is_among(rows: Grid, others: Grid) -> Bools:
    """Say which rows (C, M) are one of the others, (C,)."""
    return np.asarray((np.abs(rows[:, None] - others[None]).max(axis=2) < SAME).any(axis=1))


def distinct(rows: Grid) -> Grid:
    """Return the rows without repeats, in order of first appearance."""
    return rows[np.sort(np.unique(rows.round(9), axis=0, return_index=True)[1])]


def joined(blocks: Sequence[Block], *, eligible: Bools, eligible_without: Bools | None) -> Pool:
    """Return the pool of blocks, the current soup's first."""
    return Pool(
        coefficients=np.concatenate([block.coefficients for block in blocks]),
        recalibrated=np.concatenate([np.full(len(block.coefficients), block.recalibrated) for block in blocks]),
        scores=Scores.joined([block.scores for block in blocks]),
        eligible=eligible,
        eligible_without=eligible_without,
        features=tuple(features for block in blocks for features in block.features),
        statistics=tuple(statistics for block in blocks for statistics in block.statistics),
        current_logits=blocks[0].logits[0],
        image_forwards=sum(block.image_forwards for block in blocks),
    )


class Rerun(NamedTuple):
    """A recalibrated candidate without some of the images in its statistics, on all of them."""

    logits: Tensor  # (n, K)
    features: Tensor | None  # (n, D)
    statistics: Tensors


class Library:
    """What candidates give the last rung and the held-out answers; runs them again where that was not kept.

    Attributes:
        image_forwards: images through the network for that.
    """

    def __init__(self, task: Task, pool: Pool) -> None:
        self._task, self._pool = task, pool
        self._found: dict[int, Tensor | None] = {}
        self.image_forwards = 0

    def features(self, candidate: int) -> Tensor | None:
        """Return what a candidate's last layer is given, (n, D); None where it has no linear last layer."""
        kept = self._pool.features[candidate]
        if kept is not None:
            return kept
        if candidate not in self._found:
            row = self._pool.coefficients[[candidate]]
            recalibrated = bool(self._pool.recalibrated[candidate])
            block = run_candidates(self._task, row, recalibrated=recalibrated) if candidate else run_current(self._task)
            self.image_forwards += block.image_forwards
            self._found[candidate] = block.features[0]
        return self._found[candidate]

    def rerun(self, candidate: int, subset: Bools) -> Rerun:
        """Run a recalibrated candidate with the statistics of a subset of the images, and of all unlabelled ones."""
        task = self._task
        images = task.support.images
        order = np.concatenate([np.flatnonzero(subset), np.flatnonzero(~subset)])
        rows = self._pool.coefficients[[candidate]]
        recalibrated = run_soups(
            task.prepared,
            rows,
            images[subset],
            recalibrate=True,
            unlabelled=task.unlabelled,
            should_stop=task.should_stop,
        )
        rest = run_soups(
            task.prepared,
            rows,
            images[~subset],
            bn_mode="raw",
            patch=recalibrated.statistics[0],
            should_stop=task.should_stop,
        )
        self.image_forwards += recalibrated.image_forwards + rest.image_forwards
        statistics = recalibrated.statistics[0]
        assert statistics is not None, "recalibration was asked for"
        back = torch.from_numpy(np.argsort(order))
        logits = torch.cat([recalibrated.logits[0], rest.logits[0]])[back]
        parts = (recalibrated.features[0], rest.features[0])
        if parts[0] is None or parts[1] is None:
            return Rerun(logits, None, statistics)
        return Rerun(logits, torch.cat([parts[0], parts[1]])[back], statistics)

    def head(self, candidate: int) -> Head | None:
        """Return a candidate's own last layer; None where it is not linear."""
        current = self._task.current.patch
        patch = None if candidate or current is None else current.tensors()
        return self._task.prepared.head(self._pool.coefficients[candidate].tolist(), patch)
