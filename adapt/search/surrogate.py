"""Which soups a search evaluates: the whole grid, or the few that a surrogate of the logits calls promising."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.evidence.scores import Bools, Ints, Scores, part, temp_ce
from adapt.networks.forward import score_logits
from adapt.rungs.pool import Block, Pool, distinct, is_among, is_current, joined, run_candidates, run_current
from adapt.rungs.task import Task
from adapt.search.grid import Grid, Lattice

# Soups of least predicted tempCE that each choice may fall on. Recalibrated ones are evaluated once more for each fold,
# and again without every two folds: see `adapt.search.selection`.
PROMISING, PROMISING_RECALIBRATED = 6, 1
PREDICTED_ELEMENTS = 2**24  # logits predicted at a time
GRID_BLOCK = 16  # soups of a grid that are run at a time


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
    """Evaluate every point of the grid and every ingredient, of both kinds, and the current soup."""
    num_ingredients = task.num_ingredients
    rows = distinct(np.concatenate([points.points(num_ingredients), np.eye(num_ingredients)]))
    current, standing = run_current(task)
    blocks = [current]
    for number, recalibrated in enumerate(task.kinds):
        part = task.part(number / len(task.kinds), (number + 1) / len(task.kinds))
        some = rows if recalibrated else rows[~is_current(task, rows)]
        for start in range(0, len(some), GRID_BLOCK):
            span = part.part(start / len(some), min(1.0, (start + GRID_BLOCK) / len(some)))
            blocks.append(run_candidates(span, some[start : start + GRID_BLOCK], recalibrated=recalibrated).light())
    everything = np.ones(sum(len(block.coefficients) for block in blocks), dtype=np.bool_)
    return joined(blocks, standing, eligible=[everything] * len(task.subsets()))


def search_surrogate(task: Task, points: Lattice) -> Pool:
    """Evaluate the soups that a quadratic surrogate of the logits calls best, and no more of the grid.

    The logits of a soup are predicted from those of `nodes` by the quadratic in the coefficients that passes through
    them. The soups of least predicted tempCE are then evaluated for real, and so is what would have been called best
    without each fold's images: so the folds' choices do not profit from the images that judge them. A pool that is too
    large for a grid is searched by a descent on its points instead.

    Where soups may be recalibrated, the nodes of that kind and the plain ingredients are looked at first. The
    surrogate then goes on with the kind that leads, on all images and without each fold. Testing statistics on the
    images they came from overstates accuracy: where the recalibrated do not lead, they are out of the running; where
    they do, the plain ingredients stay in it.
    """
    rows, num_ingredients, subsets = nodes(task.num_ingredients), task.num_ingredients, task.subsets()
    current, standing = run_current(task)
    blocks, allowed = [current], [[True] * len(subsets)]  # of each block, whether each choice may fall on it
    if task.recalibrate:
        estimated = run_candidates(task.part(0.0, 0.4), rows, recalibrated=True)
        plain = run_candidates(task.part(0.4, 0.5), rows[:num_ingredients], recalibrated=False)
        leads = [_best_loss(task, estimated, subset) < _best_loss(task, plain, subset) for subset in subsets]
        blocks, allowed = [current, plain, estimated], [*allowed, [True] * len(subsets), leads]
        if not all(leads):
            pairs = run_candidates(task.part(0.5, 0.6), rows[num_ingredients:], recalibrated=False)
            blocks, allowed = [*blocks, pairs], [*allowed, [not lead for lead in leads]]
            plain = _stacked(plain, pairs)
        families = [(estimated, leads, PROMISING_RECALIBRATED), (plain, [not lead for lead in leads], PROMISING)]
    else:
        plain = run_candidates(task.part(0.0, 0.6), rows, recalibrated=False)
        blocks, allowed = [current, plain], [*allowed, [True] * len(subsets)]
        families = [(plain, [True] * len(subsets), PROMISING)]
    sizes = [len(block.coefficients) for block in blocks]
    eligible = [np.repeat([may[number] for may in allowed], sizes) for number in range(len(subsets))]
    for known, wanting, count in families:
        if any(wanting):
            block, chosen = _verify(task.part(0.6, 1.0), known, points, wanting, count)
            if block is not None:
                blocks.append(block)
                eligible = [np.concatenate(pair) for pair in zip(eligible, chosen, strict=True)]
    return joined(blocks, standing, eligible=eligible)


def num_evaluated(num_ingredients: int) -> int:
    """Return about how many soups `search_surrogate` evaluates: the current one, the nodes, and what folds fall on."""
    return 1 + num_ingredients * (num_ingredients + 1) // 2 + 2 * PROMISING


def _best_loss(task: Task, block: Block, subset: Bools) -> float:
    return float(temp_ce(block.scores.losses[:, :, subset], part(task.weights, subset))[0].min())


def _verify(
    task: Task, known: Block, points: Lattice, wanting: Sequence[bool], count: int
) -> tuple[Block | None, list[Bools]]:
    """Evaluate the soups of least predicted tempCE: `count` for each choice that wants some.

    The number is the same for every choice, and independent of the other choices: a choice without a fold must not
    depend on the fold.
    """
    rows, values = _predict(task, known, points)
    seen = is_among(rows, known.coefficients)  # every choice may fall on the nodes, whatever the labels say
    lists = [
        np.argsort(found, kind="stable")[: min(count, int(np.isfinite(found).sum())) if wants else 0]
        for found, wants in zip(values, wanting, strict=True)
    ]
    wanted = np.unique(np.concatenate(lists))
    wanted = wanted[~seen[wanted]]
    if len(wanted) == 0:
        return None, []
    block = run_candidates(task, rows[wanted], recalibrated=known.recalibrated)
    return block, [np.isin(wanted, chosen) for chosen in lists]


def _predict(task: Task, known: Block, points: Lattice) -> tuple[Grid, list[npt.NDArray[np.float64]]]:
    """Return soups (C, M) and, for each choice, their predicted tempCE (C,); infinite for those not usable."""
    subsets = task.subsets()
    logits = torch.stack([one for one in known.logits if one is not None])

    def predict(rows: Grid) -> list[npt.NDArray[np.float64]]:
        losses = _predicted_losses(logits, rows, task.support.labels)
        usable = np.ones(len(rows), dtype=np.bool_)
        if not known.recalibrated:
            usable = task.network.usable(rows, task.bn_mode)
        return [
            np.where(usable, temp_ce(losses[:, :, subset], part(task.weights, subset))[0], np.inf) for subset in subsets
        ]

    if points.is_small(task.num_ingredients):
        rows = points.points(task.num_ingredients)
        return rows, predict(rows)
    return _descend(predict, points, task.num_ingredients, len(subsets))


def _stacked(first: Block, second: Block) -> Block:
    """Return the candidates of two blocks of one kind as one."""
    return Block(
        coefficients=np.concatenate([first.coefficients, second.coefficients]),
        recalibrated=first.recalibrated,
        scores=Scores.joined([first.scores, second.scores]),
        logits=first.logits + second.logits,
        features=first.features + second.features,
        statistics=first.statistics + second.statistics,
        image_forwards=first.image_forwards + second.image_forwards,
    )


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
) -> tuple[Grid, list[npt.NDArray[np.float64]]]:
    """Walk down from each subset's best ingredient, a step of the lattice from one coefficient to another at a time.

    Each subset knows of the soups on its own walk alone, and not of those of the others: a choice without a fold must
    not depend on the fold. So the values of all other soups are infinite to it.
    """
    found: dict[tuple[int, ...], list[float]] = {}  # of each soup come by, the value to every subset

    def visit(whole: Sequence[tuple[int, ...]]) -> None:
        fresh = [point for point in dict.fromkeys(whole) if point not in found]
        if fresh:
            predicted = predict(np.asarray(fresh, dtype=np.float64) / points.parts)
            found.update(zip(fresh, np.stack(predicted, axis=1).tolist(), strict=True))

    alone = [tuple(row) for row in (np.eye(num_ingredients, dtype=np.int64) * points.parts).tolist()]
    visit(alone)
    walks = []
    for subset in range(num_subsets):
        walk, here, best = set(alone), None, min(alone, key=lambda point: found[point][subset])
        while best != here:
            here = best
            around = _neighbours(here, points.integer_bounds)
            visit(around)
            walk.update(around)
            best = min([here, *around], key=lambda point: found[point][subset])
        walks.append(walk)
    values = [
        np.asarray([value[subset] if point in walk else np.inf for point, value in found.items()])
        for subset, walk in enumerate(walks)
    ]
    return np.asarray(list(found), dtype=np.float64) / points.parts, values


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
