"""`python -m benchmarks.shifts tune BASE --domains ...`: rivals' hyper-parameters on domains, one trial at a time."""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.shifts.domains.command import prepare, setup_of
from benchmarks.shifts.domains.processes import spread
from benchmarks.shifts.domains.study import family_of
from benchmarks.shifts.domains.work import Trial as Work
from benchmarks.shifts.domains.work import needs_table, run_trial, tabulate_domain
from benchmarks.shifts.grids import Grid, grid_for
from benchmarks.shifts.lines import Keyed, Lines
from benchmarks.shifts.tuned import Trial, Trials, write_trials
from benchmarks.shifts.tuning import describe
from training.bases import load_base_set
from training.cli import Result
from training.manifest import check_mixable

logger = logging.getLogger(__name__)


class TrialRecord(Keyed):
    """One setting of one rival on the first draw of a domain."""

    domain: str
    n: int
    method: str
    options: dict[str, Any]
    accuracy: float
    seconds: float
    commit: str
    machine: str

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Which setting, where."""
        return key_of(self.domain, self.n, self.method, self.options)


def key_of(domain: str, n: int, method: str, options: Mapping[str, Any]) -> tuple[str, int, str, str]:
    """Return what tells one trial from another."""
    return domain, n, method, json.dumps(options, sort_keys=True)


class TuneRequest(NamedTuple):
    """What the command line says."""

    base: Path
    data: Path | None
    folders: Path | None
    domains: tuple[str, ...]
    methods: tuple[str, ...] | None
    n: tuple[int, ...] | None
    n_test: int
    out: Path | None
    seed: int
    threads: int
    jobs: int
    minutes: float | None
    device: str


def tune_domains(request: TuneRequest) -> Result:
    """Try what is missing, as long as there is time, and enter in tuned.json what is comparable so far.

    A domain counts for a method, at a number of labelled pictures, once every setting was tried on it. Earlier trials
    in the same folder count, whichever methods are asked for now.

    Raises:
        ValueError: a folder of other trials, no such pictures, fewer than two domains that count as different ones.
    """
    deadline = None if request.minutes is None else time.monotonic() + 60 * request.minutes
    manifest = load_base_set(request.base).manifest
    check_mixable(manifest)
    out = request.out or Path(f"runs/tune-{manifest.name}")
    wanted = {
        method: {n: tried for n, tried in by_n.items() if request.n is None or n in request.n}
        for method, by_n in grid_for(manifest).items()
        if request.methods is None or method in request.methods
    }
    domains, store, _, most = prepare(
        manifest,
        out,
        words=request.domains,
        folders=request.folders,
        data=request.data,
        n_test=request.n_test,
        seed=request.seed,
        needs_clean="eata" in wanted,
    )
    names = tuple(domain.name for domain in domains)
    if len({family_of(name) for name in names}) < 2:
        raise ValueError(
            f"domains: expected two or more, got {', '.join(names)}: what suits one is chosen on others; corruptions "
            "count as one"
        )
    records = Lines(out / "trials.jsonl", TrialRecord)
    setup = setup_of(
        request.base, out, request.n_test, seed=request.seed, device=request.device, threads=request.threads
    )
    if any(needs_table(method) for method in wanted):
        todo = [name for name in names if not store.has_table(name)]
        for domain, seconds in spread(todo, tabulate_domain, setup, jobs=request.jobs, deadline=deadline):
            logger.info("%s: ran the ingredients on all pictures, %.0f s", domain, seconds)
    works = [
        work
        for work in _missing(wanted, names, records, most, seed=request.seed)
        if store.has_table(work.domain) or not needs_table(work.method)
    ]
    for number, (work, accuracy, seconds) in enumerate(
        spread(works, run_trial, setup, jobs=request.jobs, deadline=deadline), 1
    ):
        options = work.options.model_dump(mode="json")
        records.add(
            TrialRecord(
                domain=work.domain,
                n=work.n,
                method=work.method,
                options=options,
                accuracy=accuracy,
                seconds=round(seconds, 2),
                commit=setup.commit,
                machine=setup.machine,
            )
        )
        place = f"{work.domain}, n = {work.n}, {work.method}"
        logger.info("%s: %.1f in %.0f s, %d of %d", place, 100 * accuracy, seconds, number, len(works))
    command = _command(request, manifest.name, names)
    trials = gathered(grid_for(manifest), names, records, command=command, n_test=request.n_test)
    if left := len(list(_missing(wanted, names, records, most, seed=request.seed))):
        logger.info("%d trials are left: the same command goes on", left)
    if trials.methods:
        write_trials(manifest.name, trials)
    return Result(trials.model_dump(mode="json"), describe(trials) if trials.methods else "nothing was tried yet")


def _missing(
    grid: Grid, names: Sequence[str], records: Lines[TrialRecord], most: Mapping[str, int], *, seed: int
) -> Iterator[Work]:
    """Yield trials that are not there; a domain leaves out more labelled pictures than it has."""
    for method, by_n in grid.items():
        for n, tried in by_n.items():
            for domain in names:
                for options in tried:
                    key = key_of(domain, n, method, options.model_dump(mode="json"))
                    if n <= most[domain] and key not in records.records:
                        yield Work(domain, seed, n, method, options)


def gathered(grid: Grid, names: Sequence[str], records: Lines[TrialRecord], *, command: str, n_test: int) -> Trials:
    """Return the trials of a grid, with the accuracy on each domain where all settings were tried."""
    methods: dict[str, tuple[Trial, ...]] = {}
    for method, by_n in grid.items():
        rows: list[Trial] = []
        for n, tried in sorted(by_n.items()):
            found = [
                {
                    domain: records.records[key].accuracy
                    for domain in names
                    if (key := key_of(domain, n, method, options.model_dump(mode="json"))) in records.records
                }
                for options in tried
            ]
            everywhere = [domain for domain in names if all(domain in there for there in found)]
            rows += [
                Trial(
                    n=n,
                    options=options.model_dump(mode="json"),
                    accuracy={domain: there[domain] for domain in everywhere},
                )
                for options, there in zip(tried, found, strict=True)
                if everywhere
            ]
        if rows:
            methods[method] = tuple(rows)
    families = {name: family_of(name) for name in names}
    return Trials(command=command, n_test=n_test, methods=methods, families=families)


def _command(request: TuneRequest, base_set: str, names: Sequence[str]) -> str:
    domains = [name if family_of(name) != name else f"FOLDERS/{name}" for name in names]
    return (
        f"python -m benchmarks.shifts tune bases/{base_set} --domains {','.join(domains)} --seed {request.seed} "
        f"--n-test {request.n_test}"
    )
