"""From a few labelled images to a soup: candidates, their scores, the choice, the evidence, the decision."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Required, TypedDict, Unpack

import numpy as np

from adapt.documents.patch import Floats, Patch, make_patch
from adapt.documents.soup import (
    RUNGS,
    AccuracySummary,
    BnMode,
    Outcome,
    Promote,
    Rung,
    SearchSummary,
    Soup,
    Strategy,
    SupportSummary,
    check_soup,
    make_soup,
)
from adapt.evidence.score import (
    NUM_FOLDS,
    P_THRESHOLD,
    TEMPERATURES,
    CrossFit,
    Decision,
    Scores,
    balanced_weights,
    decide,
    fold_dependence,
    summarise,
)
from adapt.images.support import Reference, Support
from adapt.networks.prepared import PreparedBase, pick_device, thread_count
from adapt.rungs.choice import Fit
from adapt.rungs.early import MIN_IMAGES as MIN_EARLY_IMAGES
from adapt.rungs.early import TRAIN_FROM
from adapt.rungs.ladder import Ladder
from adapt.rungs.surgery import Surgery
from adapt.search.candidates import (
    SAME,
    Ints,
    Library,
    Pool,
    Progress,
    ShouldStop,
    Task,
)
from adapt.search.floor import Bound, check_floor
from adapt.search.grid import Grid, GridKind, Lattice, lattice
from adapt.search.strategies import num_evaluated, search_grid, search_surrogate
from adapt.search.unlabelled import Images, check_unlabelled
from training.bases import BaseSet
from training.manifest import check_mixable

TRAINED_FROM = 0.3  # of the progress, where first layers may be trained


@dataclass(frozen=True)
class Search:
    """Everything a search saw. Position 0 of its pool is the current soup.

    Attributes:
        soup: the candidate, with the outcome as its evidence.
        outcome: what was found and whether it is to be promoted.
        pool: of all soups evaluated.
        choice: what the candidate is.
        fit: held-out answers; None where there was only one image.
    """

    soup: Soup
    outcome: Outcome
    pool: Pool
    choice: Fit
    fit: CrossFit | None

    @property
    def coefficients(self) -> Grid:
        """Of all soups evaluated, (C, M)."""
        return self.pool.coefficients

    @property
    def scores(self) -> Scores:
        """Of all soups evaluated, on the support images."""
        return self.pool.scores


class SearchOptions(TypedDict, total=False):
    """Keywords of `search` and `find_soup`; see there."""

    current: Required[Soup]
    unlabelled: Images | None
    strategy: Strategy
    rungs: Collection[Rung]
    grid: GridKind
    step: float | None
    bn_mode: BnMode
    balance: bool
    promote: Promote
    p_threshold: float
    reference: Reference | None
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
    unlabelled: Images | None = None,
    strategy: Strategy = "auto",
    rungs: Collection[Rung] = RUNGS,
    train_from: int = TRAIN_FROM,
    grid: GridKind = "affine",
    step: float | None = None,
    bn_mode: BnMode = "folded",
    balance: bool = False,
    promote: Promote = "auto",
    p_threshold: float = P_THRESHOLD,
    reference: Reference | None = None,
    seed: int = 0,
    device: str = "cpu",
    num_threads: int | None = None,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Search:
    """Evaluate soups on the support images, choose one, and judge it on images it was not chosen on.

    The current soup and every ingredient alone are always among the candidates. Where channel statistics of training
    are known (BatchNorm, or moments), soups with statistics estimated on the images are candidates too. The soup of
    least tempCE is taken; its last layer is fitted again where that lowers the cross-validated log-loss, or its first
    layers are trained where that is better on held-out images. Accuracy, interval and p-value come from cross-fitting
    all of these choices. Deterministic for a seed on one machine.

    Args:
        base: the base set; a `PreparedBase` saves folding it again (its own device is used then).
        support: the labelled images.
        current: the soup now in use, the one to beat.
        unlabelled: uint8 (m, H, W, 3) at the network's input size: more images of the shift, to recalibrate on.
        strategy: "grid" evaluates the whole grid; "surrogate" predicts it from a few soups and verifies the best;
            "auto" takes the cheaper of both, which is the surrogate from three ingredients on.
        rungs: what is tried beside the coefficients: channel "statistics" of the images, the last layer ("head"), the
            first layers ("early"); any of them. A network with neither BatchNorm nor moments does without the first,
            one without a linear last layer without the others.
        train_from: labelled images from which on "early" is tried, at least 80; it takes ten times as long as the rest.
        grid: "affine" (extrapolates a little) or "simplex" (no coefficient below 0).
        step: of the grid, 1 divided by a whole number; None for 0.25 (affine) or 0.1 (simplex).
        bn_mode: how the candidates mix BatchNorm that is not recalibrated.
        balance: let every class that occurs count alike, however many images it has, in choosing and in the evidence.
        promote: "auto" follows the evidence, "always" and "never" overrule it.
        p_threshold: "auto" promotes below this p-value.
        reference: trusted images on which the candidate must reach a floor, or "auto" keeps the current soup.
        seed: of the folds and of the swaps that measure their dependence.
        device: "cpu", "cuda" or "auto".
        num_threads: CPU threads of torch while searching; None leaves them as they are.
        progress: called with the fraction done and what is being done.
        should_stop: asked before each candidate, and before each step of a training.

    Raises:
        BaseSetError: the base set has a single ingredient.
        GridTooLarge: strategy "grid" with a grid of more than 2,000 candidates.
        SoupError: the current soup belongs to another base set.
        Cancelled: `should_stop` said so.
        ValueError: bad step, rung, `train_from`, device or threshold; unlabelled images of another size; no usable
            candidate.
    """
    if not 0 <= p_threshold <= 1:
        raise ValueError(f"expected 0 <= p_threshold <= 1, got {p_threshold:g}")
    if train_from < MIN_EARLY_IMAGES:
        raise ValueError(f"expected train_from >= {MIN_EARLY_IMAGES}, got {train_from}: fewer mislead a training")
    if unknown := sorted(set(rungs) - set(RUNGS)):
        raise ValueError(f"expected rungs of {list(RUNGS)}, got {unknown}")
    started = time.perf_counter()
    manifest = base.manifest
    check_mixable(manifest)
    check_soup(current, manifest)
    check_unlabelled(unlabelled, manifest)
    strategy, points = _resolve(strategy, grid, step, len(manifest.ingredients))
    folds = support.folds(NUM_FOLDS, seed=seed) if len(support) >= 2 else None
    report = progress or (lambda fraction, message: None)
    with thread_count(num_threads):
        report(0.0, "preparing the base set")
        prepared = base if isinstance(base, PreparedBase) else PreparedBase(base, device=pick_device(device))
        recalibrate = "statistics" in rungs and prepared.can_recalibrate
        weights = balanced_weights(support.labels) if balance else None
        task = Task(prepared, support, unlabelled, current, bn_mode, recalibrate, folds, weights, report, should_stop)
        evaluate = search_grid if strategy == "grid" else search_surrogate
        may_train = "early" in rungs and len(support) >= train_from
        pool = evaluate(task.part(0.0, TRAINED_FROM) if may_train else task, points)
        library = Library(task, pool)
        ladder = Ladder(task, pool, library, with_head="head" in rungs)
        surgery = Surgery(task.part(TRAINED_FROM, 1.0), ladder, seed=seed)
        choice, fit, _ = surgery.climb(ladder.climb()) if may_train else ladder.climb()
    patch = _patch(task, pool, choice)
    accuracy = None if fit is None or folds is None else _summary(pool, fit, folds, seed, p_threshold)
    decision = decide(
        accuracy,
        promote=promote,
        same=choice.candidate == 0 and choice.head is None and choice.early is None,
        counts=list(support.per_class.values()),
        p_threshold=p_threshold,
    )
    summary = SearchSummary(
        strategy=strategy,
        candidates=len(pool.coefficients),
        image_forwards=pool.image_forwards + library.image_forwards + surgery.image_forwards,
        seconds=time.perf_counter() - started,
        grid=f"{grid} {points}",
    )
    outcome = _outcome(task, pool, choice, patch, accuracy, decision, summary)
    soup = make_soup(
        manifest,
        outcome.coefficients,
        bn_mode=outcome.bn_mode,
        temperature=outcome.temperature,
        patch=patch,
        evidence=outcome,
    )
    if reference is not None:
        with thread_count(num_threads):
            soup, outcome = _bounded(soup, outcome, check_floor(prepared, soup, reference), promote)
    return Search(soup, outcome, pool, choice, fit)


def _bounded(soup: Soup, outcome: Outcome, bound: Bound, promote: Promote) -> tuple[Soup, Outcome]:
    """Return the soup and its evidence with what the reference images say; an objection keeps what "auto" promotes."""
    update: dict[str, object] = {"reference": bound.check}
    if bound.objection is not None and promote == "auto" and outcome.state == "promoted":
        update |= {"state": "kept", "reason": f"{bound.objection} ({outcome.reason})"}
    outcome = outcome.model_copy(update=update)
    return soup.model_copy(update={"evidence": outcome}), outcome


def _outcome(
    task: Task,
    pool: Pool,
    choice: Fit,
    patch: Patch | None,
    accuracy: AccuracySummary | None,
    decision: Decision,
    summary: SearchSummary,
) -> Outcome:
    names = task.prepared.manifest.ingredient_names
    return Outcome(
        state=decision.state,
        reason=decision.reason,
        coefficients=dict(zip(names, pool.coefficients[choice.candidate].tolist(), strict=True)),
        temperature=TEMPERATURES[choice.temperature] if choice.head is None else 1.0,
        bn_mode=_bn_mode(task, pool, choice),
        patch=None if patch is None else patch.summary,
        support=SupportSummary(n=len(task.support), unlabelled=task.num_unlabelled, per_class=task.support.per_class),
        accuracy=accuracy,
        search=summary,
        ingredients=_ingredient_accuracy(names, pool),
    )


def _patch(task: Task, pool: Pool, choice: Fit) -> Patch | None:
    """Return the tensors that the candidate replaces: those of the current soup where it is that, and new ones."""
    tensors: dict[str, Floats] = {}
    recalibrated, head, early = 0, choice.head is not None, choice.early is not None
    if choice.candidate == 0 and (old := task.current.patch) is not None:
        tensors.update(old.tensors())
        recalibrated, head, early = old.recalibrated, head or old.head, early or old.early
    statistics = pool.statistics[choice.candidate]
    if statistics is not None:
        tensors.update(statistics)
    if choice.early is not None:
        tensors.update(choice.early)
    if statistics is not None or (choice.early is not None and task.prepared.has_batchnorm):
        recalibrated = len(task.support) + task.num_unlabelled
    if choice.head is not None:
        for part, tensor in zip(("weight", "bias"), choice.head, strict=True):
            tensors[f"{task.prepared.head_key}.{part}"] = tensor.float().numpy()
    return make_patch(tensors, recalibrated=recalibrated, head=head, early=early) if tensors else None


def _bn_mode(task: Task, pool: Pool, choice: Fit) -> BnMode:
    if choice.candidate == 0:
        return task.current.bn_mode
    return "raw" if pool.recalibrated[choice.candidate] else task.prepared.canonical(task.bn_mode)


def _resolve(strategy: Strategy, kind: GridKind, step: float | None, num_ingredients: int) -> tuple[Strategy, Lattice]:
    """Return what "auto" stands for: the surrogate, but where a grid costs no more than it."""
    points = lattice(kind, step)
    if strategy == "auto":
        is_cheaper = points.count(num_ingredients) <= num_evaluated(num_ingredients)
        return ("grid" if is_cheaper else "surrogate"), points
    return strategy, points


def _summary(pool: Pool, fit: CrossFit, folds: Ints, seed: int, p_threshold: float) -> AccuracySummary:
    dependence = fold_dependence(pool.scores, folds, weights=fit.weights, seed=seed)
    return summarise(fit, dependence=dependence, p_threshold=p_threshold)


def _ingredient_accuracy(names: tuple[str, ...], pool: Pool) -> dict[str, float]:
    """Return each ingredient's own accuracy, not recalibrated; from the current soup where that is one."""
    positions = [
        int(np.flatnonzero((np.abs(pool.coefficients - row).max(axis=1) < SAME) & ~pool.recalibrated)[-1])
        for row in np.eye(len(names))
    ]
    return {name: float(pool.scores.accuracy[position]) for name, position in zip(names, positions, strict=True)}
