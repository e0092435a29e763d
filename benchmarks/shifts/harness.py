"""Every method on every shift: the same pictures, the same draws, labelled and unseen ones never the same."""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from adapt.images.support import check_disjoint
from adapt.networks.prepared import PreparedBase
from benchmarks.machine import commit
from benchmarks.shifts.context import STREAM, STREAMS, Context, Method, Predict, Unseen
from benchmarks.shifts.methods import HINDSIGHT, SEARCHES, TABLED, methods_of
from benchmarks.shifts.results import Found, LandscapeRow, Results, Row, Settings, packed
from benchmarks.shifts.sets import as_support, draw_positions, others
from benchmarks.shifts.sources import Sources, family_of
from benchmarks.shifts.table import Positions, Soups, Table, empty_table, read_table, soups_of, tabulate, write_table
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
    results.keep_soups(soups.coefficients)
    prepared.model("folded")
    checkout = commit()
    total = settings.seeds * len(settings.shifts)
    # Draw by draw: what is there of a long run can be reported for all shifts.
    for number, (seed, name) in enumerate(product(settings.draws, settings.shifts), 1):
        if results.is_done(name, seed):
            logger.info("%s, draw %d: done before", name, seed)
            continue
        started = time.perf_counter()
        data = sources.load(name, seed=settings.seed)
        if _is_looked_up(results, name, seed):
            table = _table(results.folder / "tables" / f"{name}.npz", prepared, soups, data)
        else:
            table = empty_table(soups, data, len(prepared.manifest.class_names))
        spare = sources.load_spare(name, seed=settings.seed) if STREAMS.keys() & methods.keys() else None
        draw = draw_pictures(data, settings, seed)
        _run_draw(prepared, name, data, spare, table, draw, methods, results, checkout)
        seconds = time.perf_counter() - started
        logger.info("%s, draw %d: %.0f s, %d of %d", name, seed, seconds, number, total)
    shutil.rmtree(results.folder / "tables", ignore_errors=True)


def _is_looked_up(results: Results, shift: str, seed: int) -> bool:
    """Say whether what is missing of a draw needs the table, which takes minutes to make."""
    missing = {name for n in results.settings.n for name in results.missing(shift, n, seed)}
    return bool(missing - {*SEARCHES}) or (shift, seed) not in results.landscapes.records


def _table(file: Path, prepared: PreparedBase, soups: Soups, data: ImageSet) -> Table:
    """Return the table of a shift; all draws need it, so it lies in a file until the run is done."""
    if file.exists():
        return read_table(file, soups, data)
    table = tabulate(prepared, soups, data)
    write_table(file, table)
    return table


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
    spare: ImageSet | None,
    table: Table,
    draw: Draw,
    methods: dict[str, Method],
    results: Results,
    checkout: str,
) -> None:
    test = data.subset(draw.test)
    tested = table.at(draw.test)
    if (shift, draw.seed) not in results.landscapes.records:
        pool, unseen = table.at(draw.pool).scores.accuracy, tested.scores.accuracy
        results.landscapes.add(
            LandscapeRow(
                shift=shift,
                seed=draw.seed,
                pool=tuple(pool.tolist()),
                test=tuple(unseen.tolist()),
                pictures=tuple(draw.test.tolist()),
            )
        )
    for n, positions in draw.support.items():
        if not (missing := results.missing(shift, n, draw.seed)):
            continue
        support = as_support(data.subset(positions))
        check_disjoint(support, test.hashes)
        stream = _stream(data, spare, draw, positions)
        context = Context(prepared, support, family_of(shift), draw.seed, table.at(positions), stream=stream)
        unseen_pictures = Unseen(test.images, tested.logits)
        found = dict(answers(context, unseen_pictures, test.labels, {name: methods[name] for name in missing}))
        results.rows.add(Row(shift=shift, n=n, seed=draw.seed, methods=found, commit=checkout))


def _stream(data: ImageSet, spare: ImageSet | None, draw: Draw, labelled: Positions) -> npt.NDArray[np.uint8]:
    """Return up to `STREAM` pictures that are neither labelled nor unseen: of the pool first, then spare ones."""
    found = data.images[others(draw.pool, labelled, most=STREAM, seed=draw.seed)]
    if spare is None:
        return found
    more = np.random.default_rng(draw.seed).permutation(len(spare))[: STREAM - len(found)]
    return np.concatenate([found, spare.images[more]])


def answers(
    context: Context, unseen: Unseen, labels: Positions, methods: Mapping[str, Method]
) -> Iterator[tuple[str, Found]]:
    """Yield what each method found; its answers to unseen pictures are held against their labels (t,)."""
    targets = torch.from_numpy(labels)

    def judged(predict: Predict) -> npt.NDArray[np.bool_]:
        logits = predict(unseen)
        right = (logits.argmax(dim=1) == targets) & ~logits.isnan().any(dim=1)
        return np.asarray(right.numpy())

    for name, method in methods.items():
        context.shared.borrowed = context.shared.borrowed_cpu = 0.0
        started, started_cpu = time.perf_counter(), time.process_time()
        answer = method(context)
        seconds = time.perf_counter() - started + context.shared.borrowed
        cpu_seconds = time.process_time() - started_cpu + context.shared.borrowed_cpu
        if answer.is_tabled:
            seconds += answer.forwards * context.table.seconds_per_forward
            cpu_seconds += answer.forwards * context.table.cpu_per_forward
        started = time.perf_counter()
        right = judged(answer.predict)
        answering = time.perf_counter() - started
        evidence = {} if answer.evidence is None else answer.evidence._asdict()
        yield (
            name,
            Found(
                accuracy=float(right.mean()),
                forwards=answer.forwards,
                seconds=round(seconds, 4),
                cpu_seconds=round(cpu_seconds, 4),
                passes=answer.passes,
                answering=round(answering, 4),
                coefficients=answer.coefficients,
                runners_up=tuple(float(judged(predict).mean()) for predict in answer.runners_up),
                hits=packed(right),
                **evidence,
            ),
        )


def known_methods(prepared: PreparedBase, *, tabled: bool = False) -> tuple[str, ...]:
    """Return the names of all methods for a base set, ours first; or of those that look all their answers up."""
    ours = ("ladder", "ladder_served", "soup_grid", "soup_auto", *HINDSIGHT)
    names = tuple(dict.fromkeys((*ours, *methods_of(prepared.manifest))))
    return tuple(name for name in names if not tabled or name in TABLED or name.startswith("fixed_"))
