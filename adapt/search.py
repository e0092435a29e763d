"""From a few labelled images to a soup: candidates, their scores, the choice, the evidence, the decision."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Required, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from adapt.evaluation import PreparedBase, evaluate_soups, pick_device, thread_count
from adapt.grid import Grid, GridKind, Lattice, finest, lattice
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
    SupportSummary,
    check_soup,
    make_soup,
)
from adapt.support import Support
from training.bases import BaseSet
from training.manifest import check_mixable

Strategy = Literal["auto", "grid"]
SAME = 1e-9  # two coefficients closer than this are the same soup

Progress = Callable[[float, str], None]
ShouldStop = Callable[[], bool]


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
    """Evaluate every soup of a grid on the support images, choose one, and judge it on images it was not chosen on.

    The current soup and every ingredient alone are always among the candidates. The candidate is the soup of least
    tempCE on all images; its accuracy, interval and p-value come from cross-fitting the same choice. Deterministic for
    a seed on one machine.

    Args:
        base: the base set; a `PreparedBase` saves folding it again (its own device is used then).
        support: the labelled images.
        current: the soup now in use, the one to beat.
        strategy: "grid" evaluates exactly the grid asked for; "auto" takes a coarser one where it is too large.
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
        GridTooLarge: the grid has more than 2,000 candidates.
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
    points = _lattice(strategy, grid, step, len(manifest.ingredients))
    rows = points.points(len(manifest.ingredients))
    report = progress or (lambda fraction, message: None)
    with thread_count(num_threads):
        report(0.0, "preparing the base set")
        prepared = base if isinstance(base, PreparedBase) else PreparedBase(base, device=pick_device(device))
        coefficients, scores = _evaluate(prepared, support, current, rows, bn_mode, report, should_stop)
    choice = choose(scores.losses)
    same = choice.candidate == 0
    fit, accuracy = _judge(scores, support, seed)
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
            strategy="grid",
            candidates=len(coefficients),
            image_forwards=len(coefficients) * len(support),
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


def _lattice(strategy: Strategy, kind: GridKind, step: float | None, num_ingredients: int) -> Lattice:
    if strategy == "auto" and step is None:
        return finest(kind, num_ingredients)
    return lattice(kind, step)


def _evaluate(
    prepared: PreparedBase,
    support: Support,
    current: Soup,
    rows: Grid,
    bn_mode: BnMode,
    report: Progress,
    should_stop: ShouldStop | None,
) -> tuple[Grid, Scores]:
    """Return all coefficients (C, M), the current soup first, and their scores; no soup is evaluated twice."""
    served = np.asarray([current.vector(prepared.manifest)])
    same_mode = prepared.canonical(bn_mode) == prepared.canonical(current.bn_mode)
    others = rows[~_close(rows, served[0])] if same_mode else rows
    alone = np.eye(rows.shape[1])
    known = np.concatenate([served, others]) if same_mode else others
    others = np.concatenate([others, [row for row in alone if not _close(known, row).any()] or alone[:0]])

    def run(which: npt.NDArray[np.float64], mode: BnMode, offset: int) -> Scores:
        total = len(others) + 1

        def tell(fraction: float) -> None:
            done = offset + fraction * len(which)
            report(done / total, f"evaluated {round(done)} of {total} soups on {len(support)} images")

        return evaluate_soups(
            prepared, which, support.images, support.labels, bn_mode=mode, progress=tell, should_stop=should_stop
        )

    coefficients = np.concatenate([served, others])
    if same_mode:
        return coefficients, run(coefficients, bn_mode, 0)
    first, rest = run(served, current.bn_mode, 0), run(others, bn_mode, 1)
    return coefficients, Scores(
        np.concatenate([first.losses, rest.losses]), np.concatenate([first.correct, rest.correct])
    )


def _close(rows: Grid, row: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Say which rows (C, M) are this soup, (C,)."""
    return np.asarray(np.abs(rows - row).max(axis=1) < SAME)


def _judge(scores: Scores, support: Support, seed: int) -> tuple[CrossFit | None, AccuracySummary | None]:
    if len(support) < 2:
        return None, None
    folds = support.folds(NUM_FOLDS, seed=seed)
    fit = cross_fit(scores, folds)
    return fit, summarise(fit, dependence=fold_dependence(scores, folds, seed=seed))


def _ingredient_accuracy(names: tuple[str, ...], coefficients: Grid, scores: Scores) -> dict[str, float]:
    """Return each ingredient's own accuracy; where the current soup is one in the other BatchNorm mode, the same."""
    positions = [int(np.flatnonzero(_close(coefficients, row))[0]) for row in np.eye(len(names))]
    return {name: float(scores.accuracy[position]) for name, position in zip(names, positions, strict=True)}
