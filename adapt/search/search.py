"""From a few labelled images to a soup: candidates, their scores, the choice, the evidence, the decision."""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapt.documents.held_out import HeldOut, make_held_out
from adapt.documents.patch import Patch, Tensors, make_patch
from adapt.documents.soup import (
    AccuracySummary,
    Judged,
    Outcome,
    SearchSummary,
    Soup,
    Strategy,
    SupportSummary,
    check_soup,
    make_soup,
)
from adapt.evidence.cross_fit import NUM_FOLDS, Comparison, CrossFit, compare_answers
from adapt.evidence.decision import Decision, decide
from adapt.evidence.policies import Promote
from adapt.evidence.posterior import Posterior, posterior_of_gain
from adapt.evidence.scores import Scores, balanced_weights, part
from adapt.evidence.significance import fold_dependence
from adapt.images.support import Reference, Support
from adapt.networks.network import Network
from adapt.networks.prepared import PreparedBase
from adapt.rungs.frequencies import Frequencies, report_frequencies
from adapt.rungs.model import Model
from adapt.rungs.pool import SAME, Library, Pool
from adapt.rungs.registry import LADDER, TRAINING
from adapt.rungs.task import Progress, ShouldStop, Task
from adapt.search.config import SearchConfig
from adapt.search.floor import Bound, check_floor
from adapt.search.grid import Grid, GridKind, Lattice, lattice
from adapt.search.selection import Selected, select
from adapt.search.surrogate import num_evaluated, search_grid, search_surrogate
from adapt.search.unlabelled import Images, check_unlabelled
from training.bases import BaseSet
from training.devices import pick_device, thread_count
from training.manifest import check_mixable

TRAINED_FROM = 0.3  # of the progress, where weights may be trained


@dataclass(frozen=True)
class Search:
    """Everything a search saw. Position 0 of its pool is the current soup.

    Attributes:
        soup: the candidate, with the outcome as its evidence.
        outcome: the candidate, and whether it is to be promoted.
        pool: of all soups evaluated.
        selected: what the candidate is, and the held-out answers.
        comparison: of the held-out answers of both soups; None if there are none.
        is_current: the candidate is the network that is served now.
    """

    soup: Soup
    outcome: Outcome
    pool: Pool
    selected: Selected
    comparison: Comparison | None
    is_current: bool

    @property
    def coefficients(self) -> Grid:
        """Of all soups evaluated, (C, M)."""
        return self.pool.coefficients

    @property
    def scores(self) -> Scores:
        """Of all soups evaluated, on the support images."""
        return self.pool.scores

    @property
    def choice(self) -> Model:
        """The candidate."""
        return self.selected.model

    @property
    def fit(self) -> CrossFit | None:
        """Held-out answers; None if there was only one image."""
        return self.selected.fit


def search(
    base: BaseSet | Network,
    support: Support,
    config: SearchConfig = SearchConfig(),  # noqa: B008 (frozen)
    *,
    current: Soup,
    unlabelled: Images | None = None,
    reference: Reference | None = None,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Search:
    """Evaluate soups on the support images, choose one, and judge it on images it was not chosen on.

    The current soup and every ingredient alone are always among the candidates. The soup of least tempCE is taken;
    each rung (statistics, last layer, frequencies, scales and shifts, first layers, all weights) is put on it where
    answers to held-out images are better with it. Accuracy, interval and p-value come from cross-fitting the whole
    selection. Where the current soup was itself made from some of the images, its own held-out answers stand for it
    there. Deterministic for a seed on one machine.

    Args:
        base: the base set; a `PreparedBase` saves folding it again (its own device is used then).
        support: the labelled images.
        config: how to search.
        current: the soup now in use, the one to beat.
        unlabelled: uint8 (m, H, W, 3) at the network's input size: more images of the shift, classes as frequent as
            among those to be served; they tell channel statistics and class frequencies.
        reference: trusted images on which the candidate must reach a floor, or it is not promoted by evidence.
        progress: called with the fraction done and what is being done.
        should_stop: asked before each candidate, and before each step of a training.

    Raises:
        BaseSetError: the base set has a single ingredient.
        GridTooLarge: strategy "grid" with a grid of more than 2,000 candidates.
        SoupError: the current soup belongs to another base set.
        Cancelled: `should_stop` said so.
        ValueError: bad step or device; unlabelled images of another size; no usable candidate.
    """
    started = time.perf_counter()
    manifest = base.manifest
    check_mixable(manifest)
    check_soup(current, manifest)
    check_unlabelled(unlabelled, manifest)
    strategy, points = _resolve(config.strategy, config.grid, config.step, len(manifest.ingredients))
    report = _rising(progress)
    with thread_count(config.threads):
        report(0.0, "preparing the base set")
        network = PreparedBase(base, device=pick_device(config.device)) if isinstance(base, BaseSet) else base
        task = _task(network, support, config, current, unlabelled, report, should_stop)
        library = _evaluate(task, config, strategy, points)
        rungs = [make(library) for name, make in LADDER.items() if name in config.rungs]
        selected = select(library, rungs, is_quick=config.effort == "quick")
        classes = report_frequencies(task, selected.model) if Frequencies.name in config.rungs else None
    pool = library.pool
    counts = _judged_counts(pool, support)
    threshold = config.threshold(len(support), sum(counts))
    comparison = _compare(library, selected, seed=config.seed, threshold=threshold)
    posterior = _posterior(comparison, harm=config.harm)
    is_current = _is_current(task, selected.model)
    decision = decide(
        comparison,
        promote=config.promote,
        same=is_current,
        counts=counts,
        threshold=threshold,
        posterior=posterior,
    )
    if not is_current:
        decision = _with_missing_classes(decision, support)
    summary = SearchSummary(
        strategy=strategy,
        candidates=len(pool.coefficients),
        image_forwards=pool.image_forwards + library.image_forwards,
        seconds=time.perf_counter() - started,
        grid=f"{config.grid} {points}",
    )
    patch = _patch(selected.model)
    outcome = _outcome(library, selected, comparison, posterior, decision, summary, patch)
    outcome = outcome.model_copy(update={"classes": classes})
    if comparison is not None:
        outcome = outcome.model_copy(update={"attempt": config.attempt, "level": threshold})
    soup = _soup(task, selected, outcome, patch)
    if reference is not None:
        with thread_count(config.threads):
            soup, outcome = _bounded(soup, outcome, check_floor(network, soup, reference), config.promote)
    return Search(soup, outcome, pool, selected, comparison, is_current)


def _rising(progress: Progress | None) -> Progress:
    """Return the progress to report to, where a fraction that is lower than an earlier one stays at that one."""
    highest = 0.0

    def report(fraction: float, message: str) -> None:
        nonlocal highest
        highest = max(highest, fraction)
        if progress is not None:
            progress(highest, message)

    return report


def _task(
    network: Network,
    support: Support,
    config: SearchConfig,
    current: Soup,
    unlabelled: Images | None,
    report: Progress,
    should_stop: ShouldStop | None,
) -> Task:
    return Task(
        network=network,
        support=support,
        unlabelled=unlabelled,
        current=current,
        bn_mode=config.bn_mode,
        recalibrate="statistics" in config.rungs and network.can_recalibrate,
        folds=support.folds(NUM_FOLDS, seed=config.seed, by_class=config.draw == "any") if len(support) >= 2 else None,
        weights=balanced_weights(support.labels) if config.balance else None,
        seed=config.seed,
        report=report,
        should_stop=should_stop,
        draw=config.draw,
    )


def _evaluate(task: Task, config: SearchConfig, strategy: Strategy, points: Lattice) -> Library:
    """Evaluate the candidates; return them with what rungs are fitted to."""
    evaluate = search_grid if strategy == "grid" else search_surrogate
    least = [TRAINING[name] for name in config.rungs if name in TRAINING]
    trains = config.effort == "full" and len(task.support) >= min(least, default=np.inf)
    pool = evaluate(task.part(0.0, TRAINED_FROM) if trains else task, points)
    if trains and not pool.standing.fresh.all():
        pool = pool.without_current()  # on which nothing could be put: see `refuse_current`
    return Library(task.part(TRAINED_FROM, 1.0), pool)


def _compare(library: Library, selected: Selected, *, seed: int, threshold: float) -> Comparison | None:
    """Return the comparison of held-out answers; None if the soups have none in common."""
    task, pool, fit = library.task, library.pool, selected.fit
    if fit is None or task.folds is None or not fit.judged.any():
        return None
    judged = fit.judged
    others = None
    if selected.tried:
        losses = np.stack([answers.losses[judged] for answers in selected.tried])
        others = losses, np.stack([answers.right[judged] for answers in selected.tried])
    dependence = fold_dependence(
        Scores(pool.scores.losses[:, :, judged], pool.scores.correct[:, judged]),
        task.folds[judged],
        others=others,
        weights=part(fit.weights, judged),
        seed=seed,
    )
    return compare_answers(fit, fresh=pool.standing.fresh, dependence=dependence, threshold=threshold)


def _posterior(comparison: Comparison | None, *, harm: float) -> Posterior | None:
    if comparison is None:
        return None
    return posterior_of_gain(comparison.candidate - comparison.current, comparison.error, harm=harm)


def _is_current(task: Task, model: Model) -> bool:
    """Say whether a model is the network that is served now."""
    current, network = task.current, task.network
    if model.candidate == 0:
        return model.below is None
    if not _is_same(model.tensors, {} if current.patch is None else current.patch.tensors()):
        return False
    if network.canonical(model.bn_mode) != network.canonical(current.bn_mode):
        return False
    row = np.asarray(current.vector(network.manifest))
    return bool((np.abs(np.asarray(model.coefficients) - row) < SAME).all())


def _is_same(one: Tensors, other: Tensors) -> bool:
    """Say whether tensors differ by rounding at most, as those of two searches on the same images do."""
    return one.keys() == other.keys() and all(np.allclose(one[key], other[key], rtol=1e-4, atol=1e-6) for key in one)


def _judged_counts(pool: Pool, support: Support) -> list[int]:
    """Return how many images of each class that has any can judge."""
    counts = np.bincount(support.labels[pool.standing.judged])
    return [int(count) for count in counts if count]


def _with_missing_classes(decision: Decision, support: Support) -> Decision:
    """Return the decision; its reason says how many classes have no labelled image, where several others have."""
    found, wanted = len(support.per_class), len(support.class_names)
    if not 1 < found < wanted:
        return decision
    silent = f"{wanted - found} of {wanted} classes have no labelled image, so nothing here shows their accuracy"
    return decision._replace(reason=f"{decision.reason}; {silent}")


def _bounded(soup: Soup, outcome: Outcome, bound: Bound, promote: Promote) -> tuple[Soup, Outcome]:
    """Return the soup and its evidence with what the reference images say: below the floor, no evidence promotes."""
    update: dict[str, object] = {"reference": bound.check}
    if bound.objection is not None and promote != "always" and outcome.state == "promoted":
        update |= {"state": "kept", "reason": f"{bound.objection} ({outcome.reason})"}
    outcome = outcome.model_copy(update=update)
    return soup.model_copy(update={"evidence": outcome}), outcome


def _outcome(
    library: Library,
    selected: Selected,
    comparison: Comparison | None,
    posterior: Posterior | None,
    decision: Decision,
    summary: SearchSummary,
    patch: Patch | None,
) -> Outcome:
    task, model = library.task, selected.model
    names = task.network.manifest.ingredient_names
    return Outcome(
        state=decision.state,
        reason=decision.reason,
        coefficients=dict(zip(names, model.coefficients, strict=True)),
        temperature=model.temperature,
        bn_mode=model.bn_mode,
        patch=None if patch is None else patch.summary,
        support=SupportSummary(n=len(task.support), unlabelled=task.num_unlabelled, per_class=task.support.per_class),
        accuracy=_accuracy(comparison, posterior, len(task.support)),
        search=summary,
        ingredients=_ingredient_accuracy(names, library.pool),
        not_tried=selected.not_tried,
    )


def _accuracy(comparison: Comparison | None, posterior: Posterior | None, n: int) -> AccuracySummary | None:
    if comparison is None or posterior is None:
        return None
    return AccuracySummary(
        current=comparison.current,
        candidate=comparison.candidate,
        interval=comparison.interval,
        p_value=comparison.p_value,
        labels_needed=comparison.labels_needed,
        expected_gain=posterior.mean,
        chance_of_harm=posterior.chance_of_harm,
        judged=Judged(
            fresh=comparison.fresh,
            held_out=comparison.held_out,
            left_out=n - comparison.fresh - comparison.held_out,
        ),
    )


def _patch(model: Model) -> Patch | None:
    """Return the tensors that the candidate replaces."""
    if not model.tensors:
        return None
    return make_patch(model.tensors, recalibrated=model.recalibrated, rungs=model.rungs)


def _soup(task: Task, selected: Selected, outcome: Outcome, patch: Patch | None) -> Soup:
    """Return the candidate, with its evidence."""
    return make_soup(
        task.network.manifest,
        outcome.coefficients,
        bn_mode=outcome.bn_mode,
        temperature=outcome.temperature,
        patch=patch,
        held_out=_held_out(task, selected),
        evidence=outcome,
    )


def _held_out(task: Task, selected: Selected) -> HeldOut | None:
    """Return what the candidate will be judged by, once it is the current soup."""
    if task.folds is None or selected.logits is None:
        return None
    before = task.current.held_out if selected.model.candidate == 0 else None
    others = () if before is None else before.answers().hashes
    return make_held_out(task.support.hashes, task.folds, selected.logits.numpy(), others=others)


def _resolve(strategy: Strategy, kind: GridKind, step: float | None, num_ingredients: int) -> tuple[Strategy, Lattice]:
    """Return what "auto" stands for: the surrogate, but where a grid costs no more than it."""
    points = lattice(kind, step)
    if strategy == "auto":
        is_cheaper = points.count(num_ingredients) <= num_evaluated(num_ingredients)
        return ("grid" if is_cheaper else "surrogate"), points
    return strategy, points


def _ingredient_accuracy(names: tuple[str, ...], pool: Pool) -> dict[str, float]:
    """Return each ingredient's own accuracy, not recalibrated; from the current soup where that is one."""
    rows: list[npt.NDArray[np.float64]] = list(np.eye(len(names)))
    positions = [
        int(np.flatnonzero((np.abs(pool.coefficients - row).max(axis=1) < SAME) & ~pool.recalibrated)[-1])
        for row in rows
    ]
    return {name: float(pool.scores.accuracy[position]) for name, position in zip(names, positions, strict=True)}
