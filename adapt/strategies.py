"""Which soups a search evaluates: the whole grid, or the few that a surrogate of the logits calls promising."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.evaluation import PreparedBase, evaluate_soups, score_logits, soup_logits
from adapt.grid import Grid, Lattice
from adapt.score import Scores, temp_ce
from adapt.soup import BnMode, Soup
from adapt.support import Support

SAME = 1e-9  # two coefficients closer than this are the same soup
PROMISING = 6  # soups of least predicted tempCE that each choice may fall on ...
MAX_VERIFIED = 12  # ... or fewer, so that all choices together have no more
PREDICTED_ELEMENTS = 2**24  # logits predicted at a time

Progress = Callable[[float, str], None]
ShouldStop = Callable[[], bool]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class Task(NamedTuple):
    """What every strategy is given."""

    prepared: PreparedBase
    support: Support
    current: Soup
    bn_mode: BnMode  # of the candidates
    folds: Ints | None  # (n,) None where nothing can be held out
    report: Progress
    should_stop: ShouldStop | None


@dataclass(frozen=True)
class Pool:
    """Soups evaluated on the support images; the current one is at position 0.

    Attributes:
        coefficients: (C, M).
        scores: on the support images.
        eligible: (C,) which of them the choice on all images may fall on.
        eligible_without: (F, C) the same for the choice without the images of each fold.
        images_forwards: images through the network.
    """

    coefficients: Grid
    scores: Scores
    eligible: Bools
    eligible_without: Bools | None
    image_forwards: int


def nodes(num_ingredients: int) -> Grid:
    """Return the M (M + 1) / 2 soups that fix a quadratic: every ingredient alone, then every pair half and half."""
    alone = np.eye(num_ingredients)
    pairs = [(alone[i] + alone[j]) / 2 for i in range(num_ingredients) for j in range(i + 1, num_ingredients)]
    return np.concatenate([alone, np.asarray(pairs).reshape(-1, num_ingredients)])


def interpolation(coefficients: Grid) -> npt.NDArray[np.float64]:
    """Return the weights (C, nodes) of the nodes' values in the quadratic's value at each soup (C, M).

    With c the coefficients, barycentric as they sum to 1: c_i (2 c_i - 1) for an ingredient, 4 c_i c_j for a pair: the
    quadratic Lagrange polynomials of a simplex, valid outside of it too.
    """
    num_ingredients = coefficients.shape[1]
    first, second = np.triu_indices(num_ingredients, 1)
    return np.concatenate(
        [coefficients * (2 * coefficients - 1), 4 * coefficients[:, first] * coefficients[:, second]], axis=1
    )


def search_grid(task: Task, points: Lattice) -> Pool:
    """Evaluate every point of the grid, the current soup and every ingredient."""
    num_ingredients = len(task.prepared.manifest.ingredients)
    return _pool(task, np.concatenate([points.points(num_ingredients), np.eye(num_ingredients)]))


def search_surrogate(task: Task, points: Lattice) -> Pool:
    """Evaluate the soups that a quadratic surrogate of the logits calls best, and no more of the grid.

    The logits of a soup are predicted from those of `nodes` by the quadratic in the coefficients that passes through
    them. The soups of least predicted tempCE are then evaluated for real, and so is what would have been called best
    without each fold's images: so the folds' choices do not profit from the images that judge them. A pool that is too
    large for a grid is searched by a descent on its points instead.
    """
    num_ingredients = len(task.prepared.manifest.ingredients)
    known = nodes(num_ingredients)
    report = _span(task.report, 0.0, 0.5)
    logits = soup_logits(
        task.prepared,
        known,
        task.support.images,
        bn_mode=task.bn_mode,
        progress=lambda done: report(done, f"evaluated {round(done * len(known))} of {len(known)} nodes"),
        should_stop=task.should_stop,
    )
    subsets = _subsets(task.folds, len(task.support))
    rows, order = _promising(task, logits, points, subsets)
    # Nodes are known whatever the labels say, so every choice may fall on them.
    lists = _within_budget(order, rows, known)
    verified = rows[np.unique(np.concatenate(lists))]
    rest = _pool(task._replace(report=_span(task.report, 0.5, 1.0)), verified, known=(known, logits))
    allowed = np.stack([_is_among(rest.coefficients, np.concatenate([known, rows[chosen]])) for chosen in lists])
    allowed[:, 0] = True
    return Pool(
        rest.coefficients,
        rest.scores,
        allowed[-1],
        allowed[:-1] if task.folds is not None else None,
        rest.image_forwards + len(known) * len(task.support),
    )


def num_evaluated(num_ingredients: int) -> int:
    """Return how many soups `search_surrogate` evaluates, at most."""
    return 1 + num_ingredients * (num_ingredients + 1) // 2 + MAX_VERIFIED


def _pool(task: Task, rows: Grid, known: tuple[Grid, Tensor] | None = None) -> Pool:
    """Evaluate the current soup and those of `rows`, none twice; take the logits of `known` soups as they are."""
    prepared, support, current = task.prepared, task.support, task.current
    served = np.asarray([current.vector(prepared.manifest)])
    same_mode = prepared.canonical(task.bn_mode) == prepared.canonical(current.bn_mode)
    blocks, scores = [served[:0]], []
    if known is not None:
        fresh = ~_is_among(known[0], served) if same_mode else np.ones(len(known[0]), dtype=np.bool_)
        blocks.append(known[0][fresh])
        scores.append(score_logits(known[1][torch.from_numpy(fresh)], support.labels))
        rows = rows[~_is_among(rows, known[0])]
    rows = _distinct(rows[~_is_among(rows, served)] if same_mode else rows)

    def run(which: Grid, mode: BnMode, offset: int) -> Scores:
        total = len(rows) + 1

        def tell(fraction: float) -> None:
            done = offset + fraction * len(which)
            task.report(done / total, f"evaluated {round(done)} of {total} soups on {len(support)} images")

        return evaluate_soups(
            prepared, which, support.images, support.labels, bn_mode=mode, progress=tell, should_stop=task.should_stop
        )

    if same_mode:
        both = run(np.concatenate([served, rows]), task.bn_mode, 0)
        scores = [both.take(slice(0, 1)), *scores, both.take(slice(1, None))]
    else:
        scores = [run(served, current.bn_mode, 0), *scores, run(rows, task.bn_mode, 1)]
    coefficients = np.concatenate([served, *blocks, rows])
    everything = np.ones(len(coefficients), dtype=np.bool_)
    return Pool(coefficients, Scores.joined(scores), everything, None, (1 + len(rows)) * len(support))


def _subsets(folds: Ints | None, n: int) -> list[Bools]:
    """Return the images of each choice: without every fold in turn, then all."""
    without = [] if folds is None else [folds != fold for fold in np.unique(folds)]
    return [*without, np.ones(n, dtype=np.bool_)]


def _promising(task: Task, logits: Tensor, points: Lattice, subsets: list[Bools]) -> tuple[Grid, list[Ints]]:
    """Return soups and, for each subset of the images, their order by predicted tempCE, best first."""
    num_ingredients = len(task.prepared.manifest.ingredients)
    model = task.prepared.model(task.bn_mode)

    def predict(rows: Grid) -> list[npt.NDArray[np.float64]]:
        losses = _predicted_losses(logits, rows, task.support.labels)
        unusable = ~np.asarray(model.usable(torch.from_numpy(rows)))
        return [np.where(unusable, np.inf, temp_ce(losses[:, :, subset])[0]) for subset in subsets]

    if points.is_small(num_ingredients):
        rows = points.points(num_ingredients)
        return rows, [np.argsort(values, kind="stable") for values in predict(rows)]
    return _descend(predict, points, num_ingredients, len(subsets))


def _predicted_losses(logits: Tensor, rows: Grid, labels: Ints) -> npt.NDArray[np.float32]:
    weights = torch.from_numpy(interpolation(rows)).float()
    flat = logits.flatten(1)
    chunk = max(1, PREDICTED_ELEMENTS // flat.shape[1])
    parts = [
        score_logits((some @ flat).view(-1, *logits.shape[1:]), labels).losses for some in torch.split(weights, chunk)
    ]
    return np.concatenate(parts)


def _descend(
    predict: Callable[[Grid], list[npt.NDArray[np.float64]]], points: Lattice, num_ingredients: int, num_subsets: int
) -> tuple[Grid, list[Ints]]:
    """Walk down from each subset's best ingredient, a step of the lattice from one coefficient to another at a time."""
    visited: dict[tuple[int, ...], int] = {}
    values: list[list[float]] = [[] for _ in range(num_subsets)]
    rows: list[npt.NDArray[np.float64]] = []

    def visit(whole: list[tuple[int, ...]]) -> None:
        fresh = [point for point in dict.fromkeys(whole) if point not in visited]
        if not fresh:
            return
        block = np.asarray(fresh, dtype=np.float64) / points.parts
        for found, predicted in zip(values, predict(block), strict=True):
            found.extend(predicted.tolist())
        for point, row in zip(fresh, block, strict=True):
            visited[point] = len(rows)
            rows.append(row)

    visit([tuple(row) for row in (np.eye(num_ingredients, dtype=np.int64) * points.parts).tolist()])
    for subset in range(num_subsets):
        here: tuple[int, ...] | None = None
        while here is None or _best(visited, values[subset]) != here:
            here = _best(visited, values[subset])
            visit(_neighbours(here, points.integer_bounds))
    order = [np.argsort(np.asarray(found), kind="stable") for found in values]
    return np.asarray(rows), order


def _best(visited: dict[tuple[int, ...], int], values: list[float]) -> tuple[int, ...]:
    return min(visited, key=lambda point: values[visited[point]])


def _neighbours(point: tuple[int, ...], bounds: tuple[int, int]) -> list[tuple[int, ...]]:
    low, high = bounds
    found = []
    for giver in range(len(point)):
        for taker in range(len(point)):
            if giver != taker and point[giver] > low and point[taker] < high:
                moved = list(point)
                moved[giver] -= 1
                moved[taker] += 1
                found.append(tuple(moved))
    return found


def _within_budget(order: list[Ints], rows: Grid, known: Grid) -> list[Ints]:
    """Return the best few of each order, as many as keep the new ones of all together within `MAX_VERIFIED`."""
    is_new = ~_is_among(rows, known)
    for count in range(PROMISING, 0, -1):
        lists = [positions[:count] for positions in order]
        union = np.unique(np.concatenate(lists))
        if is_new[union].sum() <= MAX_VERIFIED:
            return lists
    return lists


def _is_among(rows: Grid, others: Grid) -> Bools:
    """Say which rows (C, M) are one of the others, (C,)."""
    return np.asarray((np.abs(rows[:, None] - others[None]).max(axis=2) < SAME).any(axis=1))


def _distinct(rows: Grid) -> Grid:
    """Return the rows without repeats, in order of first appearance."""
    first = np.unique(rows.round(9), axis=0, return_index=True)[1]
    return rows[np.sort(first)]


def _span(report: Progress, low: float, high: float) -> Progress:
    return lambda done, message: report(low + (high - low) * done, message)
