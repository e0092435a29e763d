"""From a few labelled images to a soup: candidates, their scores, the choice, the evidence, the decision."""

import time
from dataclasses import dataclass
from typing import Required, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from adapt.evaluation import PreparedBase, pick_device, thread_count
from adapt.grid import Grid, GridKind, Lattice, lattice
from adapt.score import (
    NUM_FOLDS,
    P_THRESHOLD,
    TEMPERATURES,
    Choice,
    CrossFit,
    Scores,
    choose,
    cross_fit,
    decide,
    fold_dependence,
    summarise,
)
from adapt.soup import (
    AccuracySummary,
    BnMode,
    Outcome,
    Promote,
    SearchSummary,
    Soup,
    Strategy,
    SupportSummary,
    check_soup,
    make_soup,
)
from adapt.strategies import (
    SAME,
    Pool,
    Progress,
    ShouldStop,
    Task,
    num_evaluated,
    search_grid,
    search_surrogate,
)
from adapt.support import Support
from training.bases import BaseSet
from training.manifest import check_mixable


@dataclass(frozen=True)
class Search:
    """Everything a search saw. Position 0 of `coefficients` and `scores` is the current soup.

    Attributes:
        soup: the candidate, with the outcome as its evidence.
        outcome: what was found and whether it is to be promoted.
        coefficients: (C, M) of all soups evaluated.
        scores: of all of them on the support images.
        choice: position of the candidate and of its temperature.
        fit: held-out answers; None where there was only one image.
    """

    soup: Soup
    outcome: Outcome
    coefficients: Grid
    scores: Scores
    choice: Choice
    fit: CrossFit | None


class SearchOptions(TypedDict, total=False):
    """Keywords of `search` and `find_soup`; see there."""

    current: Required[Soup]
    strategy: Strategy
    grid: GridKind
    step: float | None
    bn_mode: BnMode
    promote: Promote
    p_threshold: float
    seed: int
    device: str
    num_threads: int | None
    progress: Progress | None
    should_stop: ShouldStop | None


def find_soup(base: BaseSet | PreparedBase, support: Support, **options: Unpack[SearchOptions]) -> tuple[Soup, Outcome]:
    """Return the best soup for the support images, and whether to promote it. Keywords as for `search`."""
    found = search(base, support, **options)
    return found.soup, found.outcome


def search(
    base: BaseSet | PreparedBase,
    support: Support,
    *,
    current: Soup,
    strategy: Strategy = "auto",
    grid: GridKind = "affine",
    step: float | None = None,
    bn_mode: BnMode = "folded",
    promote: Promote = "auto",
    p_threshold: float = P_THRESHOLD,
    seed: int = 0,
    device: str = "cpu",
    num_threads: int | None = None,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Search:
    """Evaluate soups of a grid on the support images, choose one, and judge it on images it was not chosen on.

    The current soup and every ingredient alone are always among the candidates. The candidate is the soup of least
    tempCE on all images; its accuracy, interval and p-value come from cross-fitting the same choice. Deterministic for
    a seed on one machine.

    Args:
        base: the base set; a `PreparedBase` saves folding it again (its own device is used then).
        support: the labelled images.
        current: the soup now in use, the one to beat.
        strategy: "grid" evaluates the whole grid; "surrogate" predicts it from a few soups and verifies the best;
            "auto" takes the cheaper of both, which is the surrogate from three ingredients on.
        grid: "affine" (extrapolates a little) or "simplex" (no coefficient below 0).
        step: of the grid, 1 divided by a whole number; None for 0.25 (affine) or 0.1 (simplex).
        bn_mode: how the candidates mix BatchNorm.
        promote: "auto" follows the evidence, "always" and "never" overrule it.
        p_threshold: "auto" promotes below this p-value.
        seed: of the folds and of the swaps that measure their dependence.
        device: "cpu", "cuda" or "auto".
        num_threads: CPU threads of torch while searching; None leaves them as they are.
        progress: called with the fraction done and what is being done.
        should_stop: asked before each candidate.

    Raises:
        BaseSetError: the base set has a single ingredient.
        GridTooLarge: strategy "grid" with a grid of more than 2,000 candidates.
        SoupError: the current soup belongs to another base set.
        Cancelled: `should_stop` said so.
        ValueError: bad step, device or threshold; no usable candidate.
    """
    if not 0 <= p_threshold <= 1:
        raise ValueError(f"expected 0 <= p_threshold <= 1, got {p_threshold:g}")
    started = time.perf_counter()
    manifest = base.manifest
    check_mixable(manifest)
    check_soup(current, manifest)
    strategy, points = _resolve(strategy, grid, step, len(manifest.ingredients))
    folds = support.folds(NUM_FOLDS, seed=seed) if len(support) >= 2 else None
    report = progress or (lambda fraction, message: None)
    with thread_count(num_threads):
        report(0.0, "preparing the base set")
        prepared = base if isinstance(base, PreparedBase) else PreparedBase(base, device=pick_device(device))
        task = Task(prepared, support, current, bn_mode, folds, report, should_stop)
        pool = search_grid(task, points) if strategy == "grid" else search_surrogate(task, points)
    coefficients, scores = pool.coefficients, pool.scores
    choice = choose(scores.losses, pool.eligible)
    same = choice.candidate == 0
    fit, accuracy = _judge(pool, folds, seed)
    per_class = support.per_class
    decision = decide(accuracy, promote=promote, same=same, counts=list(per_class.values()), p_threshold=p_threshold)
    vector = coefficients[choice.candidate]
    outcome = Outcome(
        state=decision.state,
        reason=decision.reason,
        coefficients=dict(zip(manifest.ingredient_names, vector.tolist(), strict=True)),
        temperature=TEMPERATURES[choice.temperature],
        bn_mode=current.bn_mode if same else prepared.canonical(bn_mode),
        support=SupportSummary(n=len(support), per_class=per_class),
        accuracy=accuracy,
        search=SearchSummary(
            strategy=strategy,
            candidates=len(coefficients),
            image_forwards=pool.image_forwards,
            seconds=time.perf_counter() - started,
            grid=f"{grid} {points}",
        ),
        ingredients=_ingredient_accuracy(manifest.ingredient_names, coefficients, scores),
    )
    soup = make_soup(
        manifest,
        outcome.coefficients,
        bn_mode=outcome.bn_mode,
        temperature=outcome.temperature,
        evidence=outcome,
    )
    return Search(soup, outcome, coefficients, scores, choice, fit)


def _resolve(strategy: Strategy, kind: GridKind, step: float | None, num_ingredients: int) -> tuple[Strategy, Lattice]:
    """Return what "auto" stands for: the surrogate, but where a grid costs no more than it."""
    points = lattice(kind, step)
    if strategy == "auto":
        is_cheaper = points.count(num_ingredients) <= num_evaluated(num_ingredients)
        return ("grid" if is_cheaper else "surrogate"), points
    return strategy, points


def _judge(
    pool: Pool, folds: npt.NDArray[np.int64] | None, seed: int
) -> tuple[CrossFit | None, AccuracySummary | None]:
    if folds is None:
        return None, None
    fit = cross_fit(pool.scores, folds, eligible=pool.eligible_without)
    return fit, summarise(fit, dependence=fold_dependence(pool.scores, folds, seed=seed))


def _ingredient_accuracy(names: tuple[str, ...], coefficients: Grid, scores: Scores) -> dict[str, float]:
    """Return each ingredient's own accuracy; where the current soup is one in the other BatchNorm mode, the same."""
    positions = [int(np.flatnonzero(np.abs(coefficients - row).max(axis=1) < SAME)[0]) for row in np.eye(len(names))]
    return {name: float(scores.accuracy[position]) for name, position in zip(names, positions, strict=True)}
