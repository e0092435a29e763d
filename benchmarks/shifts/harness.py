"""Every method on every shift: the same pictures, the same draws, labelled and unseen ones never the same."""

import logging
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from adapt.evaluation import PreparedBase
from adapt.support import check_disjoint
from benchmarks.shifts.methods import HINDSIGHT, Context, Method, Unseen, methods_of
from benchmarks.shifts.results import Found, LandscapeRow, Results, Row, Settings
from benchmarks.shifts.sets import as_support, draw_positions
from benchmarks.shifts.sources import Sources
from benchmarks.shifts.table import Positions, Table, soups_of, tabulate
from training.data import ImageSet, balanced_indices

logger = logging.getLogger(__name__)


class Draw(NamedTuple):
    """Positions of one draw's pictures in their set."""

    seed: int
    pool: Positions  # those that may be labelled
    support: dict[int, Positions]  # by number of labelled pictures
    test: Positions


def run_methods(prepared: PreparedBase, sources: Sources, results: Results) -> None:
    """Add to the results what is missing.

    Args:
        prepared: the base set.
        sources: of each set, at least `n_test` more different pictures than the most labelled ones.
        results: of these settings, so far.

    Raises:
        ValueError: too few pictures.
    """
    settings = results.settings
    methods = {name: method for name, method in methods_of(prepared.manifest).items() if name in settings.methods}
    soups = soups_of(prepared.manifest)
    prepared.model("folded")
    for number, name in enumerate(settings.shifts, 1):
        if results.is_done(name):
            logger.info("%s: done before", name)
            continue
        started = time.perf_counter()
        data = sources.load(name, seed=settings.seed)
        draws = [draw_pictures(data, settings, seed) for seed in settings.draws]
        table = tabulate(prepared, soups, data)
        for draw in draws:
            _run_draw(prepared, name, data, table, draw, methods, results)
        seconds = time.perf_counter() - started
        logger.info("%s: %.0f s, %d of %d shifts", name, seconds, number, len(settings.shifts))


def draw_pictures(data: ImageSet, settings: Settings, seed: int) -> Draw:
    """Draw unseen pictures and a pool of others; smaller numbers of labelled pictures are drawn from the pool.

    The draw depends on the hashes of the clean pictures, so it is the same for all shifts of them.
    """
    most = max(settings.n)
    pool, test = draw_positions(data.labels, data.hashes, n_support=most, n_test=settings.n_test, seed=seed)
    if len(test) < settings.n_test:
        raise ValueError(
            f"expected {most + settings.n_test} different pictures for n = {most} and {settings.n_test} unseen ones, "
            f"got {most + len(test)}"
        )
    support = {n: pool[balanced_indices(data.labels[pool], n, seed=seed)] for n in settings.n}
    return Draw(seed, pool, support, test)


def _run_draw(
    prepared: PreparedBase,
    shift: str,
    data: ImageSet,
    table: Table,
    draw: Draw,
    methods: dict[str, Method],
    results: Results,
) -> None:
    test = data.subset(draw.test)
    tested = table.at(draw.test)
    if (shift, draw.seed) not in results.landscapes.records:
        pool, unseen = table.at(draw.pool).scores.accuracy, tested.scores.accuracy
        results.landscapes.add(
            LandscapeRow(shift=shift, seed=draw.seed, pool=tuple(pool.tolist()), test=tuple(unseen.tolist()))
        )
    for n, positions in draw.support.items():
        if not (missing := results.missing(shift, n, draw.seed)):
            continue
        support = as_support(data.subset(positions))
        check_disjoint(support, test.hashes)
        context = Context(prepared, support, draw.seed, table.at(positions))
        unseen_pictures = Unseen(test.images, tested.logits)
        found = dict(_answers(context, unseen_pictures, test.labels, {name: methods[name] for name in missing}))
        results.rows.add(Row(shift=shift, n=n, seed=draw.seed, methods=found))


def _answers(
    context: Context, unseen: Unseen, labels: Positions, methods: dict[str, Method]
) -> Iterator[tuple[str, Found]]:
    """Yield what each method found."""
    targets = torch.from_numpy(labels)
    for name, method in methods.items():
        started = time.perf_counter()
        answer = method(context)
        seconds = time.perf_counter() - started
        if answer.is_tabled:
            seconds += answer.forwards * context.table.seconds_per_forward
        logits = answer.predict(unseen)
        right = (logits.argmax(dim=1) == targets) & ~logits.isnan().any(dim=1)
        yield (
            name,
            Found(
                accuracy=float(np.mean(right.numpy())),
                forwards=answer.forwards,
                seconds=round(seconds, 4),
                passes=answer.passes,
                coefficients=answer.coefficients,
            ),
        )


def known_methods(prepared: PreparedBase) -> tuple[str, ...]:
    """Return the names of all methods for a base set, ours first."""
    ours = ("soup_grid", "soup_auto", *HINDSIGHT)
    return tuple(dict.fromkeys((*ours, *methods_of(prepared.manifest))))
