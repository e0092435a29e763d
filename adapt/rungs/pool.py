"""Candidates on the labelled images: soups with their BatchNorm as it is, or with statistics of the images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adapt.documents.patch import Tensors
from adapt.evidence.scores import Bools, Doubles, Scores
from adapt.networks.forward import score_logits
from adapt.networks.last_layer import Head
from adapt.networks.network import Run
from adapt.rungs.model import Seen
from adapt.rungs.task import Task

SAME = 1e-9  # two coefficients closer than this are the same soup


class Block(NamedTuple):
    """Candidates of one kind, evaluated."""

    coefficients: Doubles  # (C, M)
    recalibrated: bool
    scores: Scores
    logits: tuple[Tensor | None, ...]  # of each (n, K)
    features: tuple[Tensor | None, ...]
    statistics: tuple[Tensors | None, ...]
    image_forwards: int

    def light(self) -> "Block":
        """Return the block without what needs much memory; it is computed again for the few that are chosen."""
        nothing = (None,) * len(self.coefficients)
        return self._replace(logits=nothing, features=nothing, statistics=nothing)


class Standing(NamedTuple):
    """The current soup on the labelled images, as it may be judged.

    Attributes:
        logits: (n, K), of the network; held-out answers times the temperature that they were divided by.
        fresh: (n,) images that it was not fitted on.
        judged: (n,) images for which it has an answer made without them: the fresh ones, and those with an answer kept
            from its own search.
    """

    logits: Tensor
    fresh: Bools
    judged: Bools


@dataclass(frozen=True)
class Pool:
    """Candidates evaluated on the support images; the current soup is at position 0.

    Attributes:
        coefficients: (C, M).
        recalibrated: (C,) which have statistics estimated on the images. The current soup counts as not, with any
            patch.
        scores: on the support images.
        eligible: (C,) which of them the choice on all images may fall on.
        eligible_without: (F, C) the same for the choice without the images of each fold; None where nothing can be
            held out.
        logits: of each, (n, K); None where they were not kept.
        features: of each, (n, D), the inputs of the last layer; None if they were not kept, or there is none.
        statistics: of each, None where they were not recalibrated, or not kept.
        standing: how the current soup may be judged.
        image_forwards: images through the network.
    """

    coefficients: Doubles
    recalibrated: Bools
    scores: Scores
    eligible: Bools
    eligible_without: Bools | None
    logits: tuple[Tensor | None, ...]
    features: tuple[Tensor | None, ...]
    statistics: tuple[Tensors | None, ...]
    standing: Standing
    image_forwards: int

    def without_current(self) -> "Pool":
        """Return the pool where no choice may fall on the current soup; it stays the one to beat."""
        others = np.arange(len(self.eligible)) > 0
        without = None if self.eligible_without is None else self.eligible_without & others
        return replace(self, eligible=self.eligible & others, eligible_without=without)


def run_current(task: Task) -> tuple[Block, Standing]:
    """Evaluate the current soup, with its patch; its own held-out answers stand for images it was made from."""
    current = task.current
    row = np.asarray([current.vector(task.network.manifest)])
    patch = None if current.patch is None else current.patch.tensors()
    found = task.network.run(
        row, task.support.images, bn_mode=current.bn_mode, patch=patch, should_stop=task.should_stop
    )
    standing = _standing(task, found.logits[0])
    return _block(task, row, False, found._replace(logits=standing.logits[None])), standing


def _standing(task: Task, logits: Tensor) -> Standing:
    """Return the current soup's answers, those it made with the image's help replaced where that is possible."""
    n = len(task.support)
    fresh, judged = np.ones(n, dtype=np.bool_), np.ones(n, dtype=np.bool_)
    if task.current.held_out is None:
        return Standing(logits, fresh, judged)
    known = task.current.held_out.answers()
    place = {digest: position for position, digest in enumerate(known.hashes)}
    logits = logits.clone()
    for image, digest in enumerate(task.support.hashes):
        if (position := place.get(digest)) is not None:
            fresh[image] = False
            judged[image] = bool(np.isfinite(known.logits[position]).all())
            if judged[image]:
                logits[image] = torch.from_numpy(known.logits[position]) * task.current.temperature
    return Standing(logits, fresh, judged)


def run_candidates(task: Task, rows: Doubles, *, recalibrated: bool) -> Block:
    """Evaluate soups and keep what the last layer is given."""
    n = len(task.support)

    def tell(fraction: float) -> None:
        kind = "recalibrated soups" if recalibrated else "soups"
        task.report(fraction, f"evaluated {round(fraction * len(rows))} of {len(rows)} {kind} on {n} images")

    found = task.network.run(
        rows,
        task.support.images,
        bn_mode=task.bn_mode,
        recalibrate=recalibrated,
        unlabelled=task.unlabelled if recalibrated else None,
        progress=tell,
        should_stop=task.should_stop,
    )
    return _block(task, rows, recalibrated, found)


def _block(task: Task, rows: Doubles, recalibrated: bool, found: Run) -> Block:
    scores = score_logits(found.logits, task.support.labels)
    return Block(
        rows, recalibrated, scores, tuple(found.logits), found.features, found.statistics, found.image_forwards
    )


def is_current(task: Task, rows: Doubles) -> Bools:
    """Say which soups (C, M), not recalibrated, are the network that is served now and so need no other run, (C,).

    None where the current soup was fitted on some of the images: its answers to those are not its own then.
    """
    network, current = task.network, task.current
    if current.patch is not None or current.held_out is not None:
        return np.zeros(len(rows), dtype=np.bool_)
    if network.canonical(task.bn_mode) != network.canonical(current.bn_mode):
        return np.zeros(len(rows), dtype=np.bool_)
    return is_among(rows, np.asarray([current.vector(network.manifest)]))


def is_among(rows: Doubles, others: Doubles) -> Bools:
    """Say which rows (C, M) are one of the others, (C,)."""
    return np.asarray((np.abs(rows[:, None] - others[None]).max(axis=2) < SAME).any(axis=1))


def distinct(rows: Doubles) -> Doubles:
    """Return the rows without repeats, in order of first appearance."""
    return rows[np.sort(np.unique(rows.round(9), axis=0, return_index=True)[1])]


def joined(blocks: Sequence[Block], standing: Standing, *, eligible: Sequence[Bools]) -> Pool:
    """Return the pool of blocks, the current soup's first.

    Args:
        blocks: candidates.
        standing: of the current soup.
        eligible: (C,) for each subset of `Task.subsets`.
    """
    allowed = np.stack(eligible)
    if not standing.judged.all():
        allowed[:, 0] = False  # it looks better than it is on the images that it cannot be judged by
    return Pool(
        coefficients=np.concatenate([block.coefficients for block in blocks]),
        recalibrated=np.concatenate([np.full(len(block.coefficients), block.recalibrated) for block in blocks]),
        scores=Scores.joined([block.scores for block in blocks]),
        eligible=allowed[-1],
        eligible_without=allowed[:-1] if len(allowed) > 1 else None,
        logits=tuple(logits for block in blocks for logits in block.logits),
        features=tuple(features for block in blocks for features in block.features),
        statistics=tuple(statistics for block in blocks for statistics in block.statistics),
        standing=standing,
        image_forwards=sum(block.image_forwards for block in blocks),
    )


class Rerun(NamedTuple):
    """A candidate on all labelled images, with the statistics of some of them where it is recalibrated."""

    logits: Tensor  # (n, K)
    features: Tensor | None  # (n, D)
    statistics: Tensors | None
    stream: Seen | None = None  # of the images without labels, where it was kept


class Library:
    """The answers of candidates and the inputs of their last layers; runs a candidate again if these were not kept.

    Attributes:
        task: of the search.
        pool: its candidates.
        image_forwards: images through the network for what was run again.
    """

    def __init__(self, task: Task, pool: Pool) -> None:
        self.task, self.pool = task, pool
        self._found: dict[int, Rerun] = {}
        self._without: dict[tuple[int, bytes], Rerun] = {}
        self._streams: dict[int, Seen] = {}
        self.image_forwards = 0

    def answers(self, candidate: int) -> Rerun:
        """Return a candidate as it was evaluated; statistics, if any, are those of all images."""
        pool = self.pool
        if (logits := pool.logits[candidate]) is not None:
            return Rerun(logits, pool.features[candidate], pool.statistics[candidate])
        if candidate not in self._found:
            row, recalibrated = pool.coefficients[[candidate]], bool(pool.recalibrated[candidate])
            block = run_candidates(self.task, row, recalibrated=recalibrated)
            self.image_forwards += block.image_forwards
            assert block.logits[0] is not None, "it was just evaluated"
            self._found[candidate] = Rerun(block.logits[0], block.features[0], block.statistics[0])
        return self._found[candidate]

    def without(self, candidate: int, subset: Bools) -> Rerun:
        """Return a recalibrated candidate with the statistics of a subset of the images, and of all unlabelled ones."""
        key = (candidate, subset.tobytes())
        if key not in self._without:
            self._without[key] = self._run_without(candidate, subset)
        return self._without[key]

    def _run_without(self, candidate: int, subset: Bools) -> Rerun:
        task, images = self.task, self.task.support.images
        order = np.concatenate([np.flatnonzero(subset), np.flatnonzero(~subset)])
        rows = self.pool.coefficients[[candidate]]
        # The same images give the same statistics. Those without labels are answered only where that is of use.
        keeps_stream = task.draw == "fair" and task.unlabelled is not None
        pool = np.concatenate([images[subset], task.unlabelled]) if keeps_stream else images[subset]
        recalibrated = task.network.run(
            rows,
            pool,
            recalibrate=True,
            unlabelled=None if keeps_stream else task.unlabelled,
            should_stop=task.should_stop,
        )
        statistics, size = recalibrated.statistics[0], int(subset.sum())
        rest = task.network.run(rows, images[~subset], bn_mode="raw", patch=statistics, should_stop=task.should_stop)
        self.image_forwards += recalibrated.image_forwards + rest.image_forwards
        back = torch.from_numpy(np.argsort(order))
        seen = Seen(recalibrated.logits[0], recalibrated.features[0])
        logits = torch.cat([seen.logits[:size], rest.logits[0]])[back]
        stream = _after(seen, size) if keeps_stream else None
        if seen.features is None or rest.features[0] is None:
            return Rerun(logits, None, statistics, stream)
        return Rerun(logits, torch.cat([seen.features[:size], rest.features[0]])[back], statistics, stream)

    def stream(self, candidate: int, subset: Bools) -> Seen:
        """Return what a candidate says of the images without labels; m may be 0.

        Args:
            candidate: its position.
            subset: (n,) the labelled images that its statistics are of, where it is recalibrated.
        """
        if self.pool.recalibrated[candidate] and not subset.all():
            kept = self.without(candidate, subset).stream
            assert kept is not None or self.task.unlabelled is None, "kept where labels are a fair draw"
            return kept or self._no_stream(candidate)
        if candidate not in self._streams:
            self._streams[candidate] = self._run_stream(candidate)
        return self._streams[candidate]

    def _run_stream(self, candidate: int) -> Seen:
        task, current = self.task, self.task.current
        if task.unlabelled is None:
            return self._no_stream(candidate)
        bn_mode, patch = task.bn_mode, None
        if self.pool.recalibrated[candidate]:
            bn_mode, patch = "raw", self.answers(candidate).statistics
        elif candidate == 0:
            bn_mode, patch = current.bn_mode, None if current.patch is None else current.patch.tensors()
        rows = self.pool.coefficients[[candidate]]
        found = task.network.run(rows, task.unlabelled, bn_mode=bn_mode, patch=patch, should_stop=task.should_stop)
        self.image_forwards += found.image_forwards
        return Seen(found.logits[0], found.features[0])

    def _no_stream(self, candidate: int) -> Seen:
        layer = self.layer(candidate)
        features = None if layer is None else torch.zeros(0, layer.weight.shape[1])
        return Seen(torch.zeros(0, len(self.task.support.class_names)), features)

    def layer(self, candidate: int) -> Head | None:
        """Return a candidate's own last layer; None where it is not linear."""
        current = self.task.current.patch
        patch = None if candidate or current is None else current.tensors()
        return self.task.network.head(self.pool.coefficients[candidate].tolist(), patch)


def _after(seen: Seen, position: int) -> Seen:
    """Return what was said of the images from a position on."""
    return Seen(seen.logits[position:], None if seen.features is None else seen.features[position:])
