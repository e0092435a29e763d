"""Try hyper-parameters of the rivals on one shift of each family: what `tuned.json` holds."""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.documents.soup import default_soup
from adapt.networks.forward import served_logits
from adapt.networks.prepared import PreparedBase
from adapt.networks.recalibration import PRIOR_IMAGES
from adapt.search.config import SearchConfig
from adapt.search.search import search
from benchmarks.shifts.context import Answer, Context, Unseen
from benchmarks.shifts.grids import GRID, middle
from benchmarks.shifts.options import Options, Recalibration, spelled
from benchmarks.shifts.rivals.registry import RIVALS
from benchmarks.shifts.sets import as_support, draw, draw_positions
from benchmarks.shifts.sources import Sources, family_of
from benchmarks.shifts.table import Soups, tabulate
from benchmarks.shifts.tuned import Trial, Trials
from training.data import ImageSet

logger = logging.getLogger(__name__)

SHIFTS = ("gaussian_noise", "defocus_blur", "fog", "contrast", "sketch")
START_PRIOR = 4.0  # while others are tuned; in a comparison it is the tuned one
TUNED_N = tuple(sorted({n for grid in GRID.values() for n in grid}))
PROFILES = ((1.0, 32.0), (1.0, 12.0), (0.3, 30.0), (4.0, 12.0), (16.0, 16.0))


def tune(
    prepared: PreparedBase,
    sources: Sources,
    *,
    command: str,
    shifts: Sequence[str],
    counts: Sequence[int],
    n_test: int,
    seed: int,
) -> Trials:
    """Return the accuracy of every setting on every shift.

    Args:
        prepared: the base set.
        sources: clean pictures, as many as the most labelled ones and the unseen ones together.
        command: what was asked for, to be kept beside the numbers.
        shifts: one of each family or more.
        counts: numbers of labelled pictures, some of those in `GRID`.
        n_test: unseen pictures.
        seed: of the draw and of every method.
    """
    methods = {name: grid for name, grid in GRID.items() if prepared.has_batchnorm or name != "picked_bn"}
    found: dict[str, dict[tuple[int, int], dict[str, float]]] = {name: defaultdict(dict) for name in methods}
    for shift in shifts:
        data = sources.load(shift, seed=seed)
        for n in counts:
            context, test = _task(prepared, shift, data, n=n, n_test=n_test, seed=seed)
            unseen = Unseen(test.images, torch.empty(0))
            for name, grid in methods.items():
                started = time.perf_counter()
                for position, options in enumerate(grid.get(n, ())):
                    logits = answer_with(context, name, options).predict(unseen)
                    found[name][n, position][shift] = accuracy_of(logits, test.labels)
                logger.info("%s, n = %d, %s: %.0f s", shift, n, name, time.perf_counter() - started)
    return Trials(
        command=command,
        n_test=n_test,
        methods={
            name: tuple(
                Trial(n=n, options=methods[name][n][position].model_dump(mode="json"), accuracy=accuracy)
                for (n, position), accuracy in sorted(trials.items())
            )
            for name, trials in found.items()
        },
    )


def tune_profile(
    prepared: PreparedBase, sources: Sources, *, shifts: Sequence[str], n: Sequence[int], n_test: int, seed: int
) -> dict[tuple[float, float], dict[int, dict[str, float]]]:
    """Return the candidate's accuracy with each prior of the channel statistics, by n and shift."""
    found: dict[tuple[float, float], dict[int, dict[str, float]]] = {
        profile: {count: {} for count in n} for profile in dict.fromkeys((PRIOR_IMAGES, *PROFILES))
    }
    for shift in shifts:
        data = sources.load(shift, seed=seed)
        for count in n:
            parts = draw(data, n_support=count, n_test=n_test, seed=seed)
            for profile in found:
                prepared.recalibrator = prepared.recalibrator_with(profile)
                config, current = SearchConfig(seed=seed), default_soup(prepared.manifest)
                soup = search(prepared, parts.support, config, current=current).soup
                logits = served_logits(prepared, soup, parts.test.images)
                found[profile][count][shift] = accuracy_of(logits, parts.test.labels)
            logger.info("%s, n = %d: %d profiles", shift, count, len(found))
    prepared.recalibrator = prepared.recalibrator_with(PRIOR_IMAGES)
    return found


def answer_with(context: Context, method: str, options: Options) -> Answer:
    """Return what a rival makes of these hyper-parameters; those that it takes from others are the same for all."""
    start: dict[str, Options] = {"picked_bn": Recalibration(prior_images=START_PRIOR), "probe": middle("probe", 100)}
    return RIVALS[method](replace(context, given={**start, method: options}))


def describe(trials: Trials) -> str:
    """Return what is chosen for each left-out family, as a table."""
    families = sorted(
        {trials.family(shift) for tried in trials.methods.values() for trial in tried for shift in trial.accuracy}
    )
    lines = ["| method | n | " + " | ".join(families) + " |", "|---|---:|" + "---|" * len(families)]
    for method, tried in trials.methods.items():
        for n in sorted({trial.n for trial in tried}):
            cells = [_spelled(trials.best(method, n, family)) for family in families]
            lines.append(f"| {method} | {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spelled(trial: Trial) -> str:
    mean = float(np.mean(list(trial.accuracy.values())))
    return f"{spelled(trial.options)}: {100 * mean:.1f}"


def _task(
    prepared: PreparedBase, shift: str, data: ImageSet, *, n: int, n_test: int, seed: int
) -> tuple[Context, ImageSet]:
    positions = draw_positions(data.labels, data.hashes, n_support=n, n_test=n_test, seed=seed)
    labelled = data.subset(positions.support)
    num_ingredients = len(prepared.manifest.ingredients)
    table = tabulate(prepared, Soups(np.eye(num_ingredients), num_ingredients), labelled)
    context = Context(prepared, as_support(labelled), family_of(shift), seed, table)
    return context, data.subset(positions.test)


def accuracy_of(logits: Tensor, labels: npt.NDArray[np.int64]) -> float:
    """Return the share of logits (n, K) that are largest at the labels (n,)."""
    return float((logits.argmax(dim=1) == torch.from_numpy(labels)).double().mean())
