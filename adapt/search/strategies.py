"""Which soups a search evaluates: the whole grid, or the few that a surrogate of the logits calls promising."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.evidence.score import Scores, part, temp_ce
from adapt.networks.forward import score_logits
from adapt.search.candidates import (
    Block,
    Bools,
    Ints,
    Pool,
    Task,
    distinct,
    is_among,
    is_current,
    joined,
    run_candidates,
    run_current,
)
from adapt.search.grid import Grid, Lattice

PROMISING = 6  # soups of least predicted tempCE that each choice may fall on ...
# ... or fewer, so that all choices together have no more than this: a sixth of the usual grid in all. Recalibrated ones
# are evaluated once more for each fold, see `adapt.rungs.ladder`; where they were tried and led not, little is left.
VERIFIED, VERIFIED_RECALIBRATED, VERIFIED_LATE = 12, 4, 3
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
    blocks = [run_current(task)]
    for number, recalibrated in enumerate(task.kinds):
        part = task.part(number / len(task.kinds), (number + 1) / len(task.kinds))
        some = rows if recalibrated else rows[~is_current(task, rows)]
        for start in range(0, len(some), GRID_BLOCK):
            span = part.part(start / len(some), min(1.0, (start + GRID_BLOCK) / len(some)))
            block = run_candidates(span, some[start : start + GRID_BLOCK], recalibrated=recalibrated)
            blocks.append(block._replace(features=(None,) * len(block.features)))
    everything = np.ones(sum(len(block.coefficients) for block in blocks), dtype=np.bool_)
    return joined(blocks, eligible=everything, eligible_without=None)


def search_surrogate(task: Task, points: Lattice) -> Pool:
    """Evaluate the soups that a quadratic surrogate of the logits calls best, and no more of the grid.

    The logits of a soup are predicted from those of `nodes` by the quadratic in the coefficients that passes through
    them. The soups of least predicted tempCE are then evaluated for real, and so is what would have been called best
    without each fold's images: so the folds' choices do not profit from the images that judge them. A pool that is too
    large for a grid is searched by a descent on its points instead.

    Where soups may be recalibrated, the nodes of that kind and the plain ingredients are looked at first. The
    surrogate then goes on with the kind that leads. Statistics of the very images flatter the recalibrated: where they
    do not lead, they are out of the running; where they do, the plain ingredients stay in it.
    """
    current = run_current(task)
    leading, others = _evaluate_nodes(task.part(0.0, 0.6))
    rows, values = _predict(task, leading, points)
    # Nodes are known whatever the labels say, so every choice may fall on them.
    known = is_among(rows, leading.coefficients)
    lists = _within_budget(values, known, num_verified(leading.recalibrated, len(others)))
    wanted = np.unique(np.concatenate(lists))
    wanted = wanted[~known[wanted]]
    blocks = [current, leading, *others]
    if len(wanted):
        blocks.append(run_candidates(task.part(0.6, 1.0), rows[wanted], recalibrated=leading.recalibrated))
    always = np.concatenate(
        [
            np.full(len(block.coefficients), block.recalibrated <= leading.recalibrated)
            for block in blocks[: 2 + len(others)]
        ]
    )
    allowed = np.stack([np.concatenate([always, np.isin(wanted, chosen)]) for chosen in lists])
    return joined(blocks, eligible=allowed[-1], eligible_without=allowed[:-1] if task.folds is not None else None)


def num_evaluated(num_ingredients: int, *, both_kinds: bool = False) -> int:
    """Return how many soups `search_surrogate` evaluates, at most."""
    num_nodes = num_ingredients * (num_ingredients + 1) // 2
    if not both_kinds:
        return 1 + num_nodes + VERIFIED
    return 1 + num_nodes + max(num_ingredients + VERIFIED_RECALIBRATED, num_nodes + VERIFIED_LATE)


def num_verified(recalibrated: bool, others: int) -> int:
    """Return how many soups may be evaluated for real after the nodes."""
    return VERIFIED_RECALIBRATED if recalibrated else VERIFIED_LATE if others else VERIFIED


def _evaluate_nodes(task: Task) -> tuple[Block, list[Block]]:
    """Return the nodes of the leading kind, and what else was evaluated on the way."""
    rows, num_ingredients = nodes(task.num_ingredients), task.num_ingredients
    if not task.recalibrate:
        return run_candidates(task, rows, recalibrated=False), []
    anew = run_candidates(task.part(0.0, 0.5), rows, recalibrated=True)
    plain = run_candidates(task.part(0.5, 0.7), rows[:num_ingredients], recalibrated=False)
    if temp_ce(anew.scores.losses, task.weights)[0].min() < temp_ce(plain.scores.losses, task.weights)[0].min():
        return anew, [plain]
    pairs = run_candidates(task.part(0.7, 1.0), rows[num_ingredients:], recalibrated=False)
    return _stacked(plain, pairs), [anew]


def _predict(task: Task, known: Block, points: Lattice) -> tuple[Grid, list[npt.NDArray[np.float64]]]:
    """Return soups (C, M) and, for each choice, their predicted tempCE (C,); infinite for those not usable."""
    subsets = task.subsets()
    model = task.prepared.model("raw" if known.recalibrated else task.bn_mode)

    def predict(rows: Grid) -> list[npt.NDArray[np.float64]]:
        losses = _predicted_losses(known.logits, rows, task.support.labels)
        usable = np.ones(len(rows), dtype=np.bool_)
        if not known.recalibrated:
            usable = np.asarray(model.usable(torch.from_numpy(rows)))
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
        logits=torch.cat([first.logits, second.logits]),
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
    return np.asarray(rows), [np.asarray(found) for found in values]


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


def _within_budget(values: list[npt.NDArray[np.float64]], known: Bools, budget: int) -> list[Ints]:
    """Return the best few of each choice, as many as keep the new ones of all together within the budget."""
    order = [np.argsort(found, kind="stable")[: int(np.isfinite(found).sum())] for found in values]
    for count in range(PROMISING, 0, -1):
        lists = [positions[:count] for positions in order]
        if (~known[np.unique(np.concatenate(lists))]).sum() <= budget:
            return lists
    return _most_wanted(order, known, budget)


def _most_wanted(order: list[Ints], known: Bools, budget: int) -> list[Ints]:
    """Return each choice's first, but of those that are new only the first `budget` in number of choices."""
    firsts = [positions[:1] for positions in order]
    new, counts = np.unique(
        [int(first[0]) for first in firsts if len(first) and not known[first[0]]], return_counts=True
    )
    # The choice on all images comes last and must have its first.
    ranked = sorted(
        zip(new.tolist(), counts.tolist(), strict=True), key=lambda pair: (pair[0] not in firsts[-1], -pair[1])
    )
    kept = {position for position, _ in ranked[:budget]}
    return [first[[bool(known[p]) or int(p) in kept for p in first]] for first in firsts]
