"""One piece of work: some methods on one draw of one domain."""

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from adapt.images.support import check_disjoint
from adapt.networks.prepared import PreparedBase
from benchmarks.shifts.context import STREAM, Context, Unseen
from benchmarks.shifts.domains.pictures import CLEAN, Store
from benchmarks.shifts.domains.study import CORRUPTIONS, Draw, Record, draw_domain, family_of
from benchmarks.shifts.harness import answers
from benchmarks.shifts.methods import TABLED, methods_of
from benchmarks.shifts.options import Options
from benchmarks.shifts.rivals.registry import WITHOUT_LABELS
from benchmarks.shifts.sets import as_support, others
from benchmarks.shifts.table import Soups, Table, empty_table
from benchmarks.shifts.tuning import accuracy_of, answer_with
from training.bases import load_base_set
from training.data import ImageSet
from training.devices import pick_device

NUM_SOURCE = 200  # pictures of the base set's own kind, without labels
FREE = (*WITHOUT_LABELS, "soup_uniform", "ensemble")  # the same for any number of labelled pictures


class Setup(NamedTuple):
    """What all work of a run has in common."""

    base: Path
    store: Path  # folder of the pictures
    n_test: int
    seed: int  # of the study
    device: str
    threads: int
    commit: str
    machine: str


class Unit(NamedTuple):
    """Methods on a draw. With several n the methods are those whose answers do not depend on it."""

    domain: str
    draw: int
    n: tuple[int, ...]
    methods: tuple[str, ...]


class Trial(NamedTuple):
    """One setting of one rival on a draw."""

    domain: str
    draw: int
    n: int
    method: str
    options: Options


def is_free(method: str) -> bool:
    """Say whether a method answers alike whatever number of pictures is labelled."""
    return method in FREE or method.startswith("fixed_")


def needs_table(method: str) -> bool:
    """Say whether a method looks up what ingredients say, or the features of the nominal one."""
    return method in TABLED or method in ("probe", "t3a") or method.startswith("fixed_")


def tabulate_domain(domain: str, setup: Setup) -> tuple[str, float]:
    """Have what soups say about a domain on disk; return its name and the seconds that took."""
    started = time.perf_counter()
    store = Store(setup.store)
    store.table(domain, prepared_base(setup.base, setup.device, setup.threads), store.load(domain))
    return domain, time.perf_counter() - started


def run_unit(unit: Unit, setup: Setup) -> list[Record]:
    """Return what the methods found."""
    n = max(unit.n)
    context, unseen, test = given(unit.domain, unit.draw, n, unit.methods, setup)
    methods = {name: methods_of(context.prepared.manifest)[name] for name in unit.methods}
    return [
        Record(
            domain=unit.domain,
            n=count,
            draw=unit.draw,
            method=name,
            unseen=len(test),
            found=found,
            commit=setup.commit,
            machine=setup.machine,
            device=context.prepared.device.type,
        )
        for name, found in answers(context, unseen, test.labels, methods)
        for count in unit.n
    ]


def run_trial(trial: Trial, setup: Setup) -> tuple[Trial, float, float]:
    """Return a trial with its accuracy and the seconds it took."""
    context, unseen, test = given(trial.domain, trial.draw, trial.n, [trial.method], setup)
    started = time.perf_counter()
    logits = answer_with(context, trial.method, trial.options).predict(unseen)
    return trial, accuracy_of(logits, test.labels), time.perf_counter() - started


def given(domain: str, seed: int, n: int, methods: Sequence[str], setup: Setup) -> tuple[Context, Unseen, ImageSet]:
    """Return what methods are given: labelled and unseen pictures of a draw, with what is on disk about them."""
    prepared, store = prepared_base(setup.base, setup.device, setup.threads), Store(setup.store)
    data = store.load(domain)
    draw = draw_domain(domain, data.labels, data.hashes, n_test=setup.n_test, seed=seed)
    labelled = draw.support(data.labels, n, seed=seed)
    support, test = as_support(data.subset(labelled)), data.subset(draw.test)
    check_disjoint(support, test.hashes)
    table = _table(store, domain, prepared, data, methods)
    tested = table.at(draw.test)
    stream = others(draw.pool, labelled, most=STREAM, seed=seed)
    context = Context(
        prepared,
        support,
        family_of(domain),
        seed,
        table.at(labelled),
        stream=data.images[stream],
        source=_source(store, domain, draw, seed=seed),
    )
    return context, Unseen(test.images, tested.logits, tested.features), test


def _table(store: Store, domain: str, prepared: PreparedBase, data: ImageSet, methods: Sequence[str]) -> Table:
    if any(needs_table(name) for name in methods):
        return store.table(domain, prepared, data)
    num_ingredients = len(prepared.manifest.ingredients)
    return empty_table(Soups(np.eye(num_ingredients), 0), data, len(prepared.manifest.class_names))


def _source(store: Store, domain: str, draw: Draw, *, seed: int) -> npt.NDArray[np.uint8] | None:
    """Return some clean pictures, (s, H, W, 3); of a corruption not those whose corrupted versions are unseen ones."""
    if not store.has(CLEAN):
        return None
    clean = store.load(CLEAN)
    pool = draw.pool if family_of(domain) == CORRUPTIONS else np.arange(len(clean))
    return np.asarray(clean.images[np.random.default_rng(seed).permutation(pool)[:NUM_SOURCE]])


@cache
def prepared_base(base: Path, device: str, threads: int) -> PreparedBase:
    """Return a base set; each process loads it once and keeps to this many threads."""
    torch.set_num_threads(threads)
    return PreparedBase(load_base_set(base), device=pick_device(device))
