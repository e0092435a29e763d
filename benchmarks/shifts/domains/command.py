"""`python -m benchmarks.shifts BASE --domains ...`: what is measured, and where."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.machine import commit, machine
from benchmarks.shifts.domains.pictures import Domain, Store, find_domains, keep_pictures, own_folder
from benchmarks.shifts.domains.plan import Plan, missing
from benchmarks.shifts.domains.processes import spread
from benchmarks.shifts.domains.report import reported
from benchmarks.shifts.domains.study import Record, Study, draw_domain, most_labelled, open_study
from benchmarks.shifts.domains.work import Setup, needs_table, run_unit, tabulate_domain
from benchmarks.shifts.lines import Lines
from benchmarks.shifts.methods import HINDSIGHT, methods_of
from training.bases import load_base_set
from training.cli import Result
from training.devices import pick_device
from training.manifest import Manifest, check_mixable

logger = logging.getLogger(__name__)

NOT_BY_DEFAULT = ("ladder_quick", "ladder_full", "ladder_single")  # of the methods for photographs
NEVER = ("soup_grid", *HINDSIGHT)  # these look the whole grid up, hours of forwards for photographs


class Request(NamedTuple):
    """What the command line says."""

    base: Path
    data: Path | None
    folders: Path | None
    domains: tuple[str, ...]
    methods: tuple[str, ...] | None
    redo: tuple[str, ...]
    n: tuple[int, ...]
    draws: int
    costly_n: tuple[int, ...]
    costly_draws: int
    n_test: int
    out: Path | None
    seed: int
    threads: int
    jobs: int
    minutes: float | None
    device: str


def photo_methods(manifest: Manifest) -> tuple[str, ...]:
    """Return the methods that can be asked for on domains, ours first."""
    return tuple(name for name in methods_of(manifest) if name not in NEVER)


def default_methods(manifest: Manifest) -> tuple[str, ...]:
    """Return the methods that are run where none are named."""
    return tuple(name for name in photo_methods(manifest) if name not in NOT_BY_DEFAULT)


def run_domains(request: Request) -> Result:
    """Measure what is missing, as long as there is time, and report all that the folder has.

    Raises:
        ValueError: a folder of other results, no such pictures.
    """
    started = time.monotonic()
    deadline = None if request.minutes is None else started + 60 * request.minutes
    manifest = load_base_set(request.base).manifest
    check_mixable(manifest)
    out = request.out or Path(f"runs/domains-{manifest.name}")
    methods = request.methods or default_methods(manifest)
    domains, store, study, most = prepare(
        manifest,
        out,
        words=request.domains,
        folders=request.folders,
        data=request.data,
        n_test=request.n_test,
        seed=request.seed,
        needs_clean="eata" in methods,
    )
    records = Lines(out / "records.jsonl", Record)
    if request.redo:
        kept = [record for record in records.records.values() if record.method not in request.redo]
        records.replace(kept)
    setup = setup_of(
        request.base, out, request.n_test, seed=request.seed, device=request.device, threads=request.threads
    )
    plan = Plan(
        domains=tuple(domain.name for domain in domains),
        methods=methods,
        n=request.n,
        draws=_seeds(request.seed, request.draws),
        costly_n=request.costly_n,
        costly_draws=_seeds(request.seed, min(request.draws, request.costly_draws)),
        pools=pool_sizes(store, domains, n_test=request.n_test),
    )
    if min(request.n) > max(most.values()):
        raise ValueError(f"n: expected at most {max(most.values())}, as unseen pictures must be left, got {request.n}")
    for domain in domains:
        if too_many := [n for n in request.n if n > most[domain.name]]:
            logger.info("%s: at most %d pictures can be labelled, not %s", domain.name, most[domain.name], too_many)
    measure(plan, records, setup, store, most, jobs=request.jobs, deadline=deadline)
    if not records.records:
        raise ValueError(f"{out}: nothing was measured in the time given; give more --minutes")
    return reported(out, study, records, store)


def measure(
    plan: Plan,
    records: Lines[Record],
    setup: Setup,
    store: Store,
    most: dict[str, int],
    *,
    jobs: int,
    deadline: float | None,
) -> None:
    """Do what is missing: first what soups say about each domain, then the methods."""
    units = list(missing(plan, records, most))
    looked_up = dict.fromkeys(unit.domain for unit in units if any(needs_table(method) for method in unit.methods))
    todo = [domain for domain in looked_up if not store.has_table(domain)]
    for domain, seconds in spread(todo, tabulate_domain, setup, jobs=jobs, deadline=deadline):
        logger.info("%s: ran the ingredients on all pictures, %.0f s", domain, seconds)
    ready = [unit for unit in units if unit.domain not in looked_up or store.has_table(unit.domain)]
    for number, found in enumerate(spread(ready, run_unit, setup, jobs=jobs, deadline=deadline), 1):
        for record in found:
            records.add(record)
        logger.info("%s, %d of %d", _line(found), number, len(units))
    if number_left := len(list(missing(plan, records, most))):
        logger.info("%d pieces of work are left: the same command goes on", number_left)


def prepare(
    manifest: Manifest,
    out: Path,
    *,
    words: Sequence[str],
    folders: Path | None,
    data: Path | None,
    n_test: int,
    seed: int,
    needs_clean: bool,
) -> tuple[tuple[Domain, ...], Store, Study, dict[str, int]]:
    """Have the pictures of some domains in `out`/pictures; return them and how many of each may be labelled."""
    domains = find_domains(words, folders, manifest.class_names, own=own_folder(manifest, data))
    study = Study(base_set=manifest.name, base_digest=manifest.digest, seed=seed, n_test=n_test, data={})
    open_study(out, study)  # before minutes of decoding
    store = Store(out / "pictures")
    digests = keep_pictures(store, domains, manifest, data, seed=seed, needs_clean=needs_clean)
    study = open_study(out, study.model_copy(update={"data": digests}))
    most = {}
    for domain in domains:
        kept = store.load(domain.name)
        most[domain.name] = most_labelled(domain.name, kept.labels, kept.hashes, n_test=n_test)
    return domains, store, study, most


def pool_sizes(store: Store, domains: Sequence[Domain], *, n_test: int) -> dict[str, int]:
    """Return how many different pictures of each domain are not unseen ones of a draw."""
    found = {}
    for name in (domain.name for domain in domains):
        kept = store.load(name)
        found[name] = len(draw_domain(name, kept.labels, kept.hashes, n_test=n_test, seed=0).pool)
    return found


def setup_of(base: Path, out: Path, n_test: int, *, seed: int, device: str, threads: int) -> Setup:
    """Return what all work on the pictures in `out`/pictures has in common."""
    found = pick_device(device)
    gpu = f"{torch.cuda.get_device_name(found)}, " if found.type == "cuda" else ""
    return Setup(base, out / "pictures", n_test, seed, device, threads, commit(), gpu + machine())


def _seeds(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


def _line(found: list[Record]) -> str:
    names = ", ".join(f"{record.method} {100 * record.found.accuracy:.1f}" for record in found[:4])
    seconds = sum(record.found.seconds for record in {record.method: record for record in found}.values())
    head = found[0]
    return f"{head.domain}, draw {head.draw}, n = {head.n}: {names}{' ...' if len(found) > 4 else ''}, {seconds:.0f} s"
