"""`python -m benchmarks.shifts tune`: try hyper-parameters of the rivals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from adapt.networks.prepared import PreparedBase
from benchmarks.shifts.domains.tune import TuneRequest, tune_domains
from benchmarks.shifts.grids import grid_for
from benchmarks.shifts.sources import find_sources
from benchmarks.shifts.suite import SUITE
from benchmarks.shifts.tuned import write_trials
from benchmarks.shifts.tuning import SHIFTS, TUNED_N, describe, tune, tune_profile
from benchmarks.shifts.words import CIFAR10, counts_of, known_names, split_words
from training.bases import load_base_set
from training.cli import Command, Result
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.devices import thread_count
from training.parameters import Positional


class Tune(Command):
    """Try hyper-parameters of the rivals on one shift of each family, or on domains, and enter them in tuned.json.

    Example: python -m benchmarks.shifts tune bases/cifar10-small --data .data/cifar10

    Example: python -m benchmarks.shifts tune bases/photos --folders .data/pacs --domains art_painting,cartoon,fog
    """

    name: ClassVar[str] = "tune"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path | None = Field(
        default=None,
        description="CIFAR-10 (.data/cifar10 if not given), or a folder with test/<class>/<file>; with --domains the "
        "base set's own pictures, where its recipe says if not given",
    )
    folders: Path | None = Field(default=None, description="what names of domains are relative to")
    domains: tuple[str, ...] | None = Field(
        default=None, description="with commas: folders, corruptions, or names of corruptions; instead of shifts"
    )
    methods: tuple[str, ...] | None = Field(default=None, description="rivals, with --domains; all if not given")
    shifts: tuple[str, ...] = Field(default=SHIFTS, description="names of shifts, of two families or more")
    n: tuple[str, ...] | None = Field(
        default=None, description=f"labelled pictures; {','.join(map(str, TUNED_N))} if not given, with commas"
    )
    n_test: int = Field(default=500, ge=1, description="unseen pictures of each")
    profile: bool = Field(
        default=False, description="only compare priors of the ladder's channel statistics, and enter nothing"
    )
    threads: int = Field(default=1, ge=1, description="torch CPU threads")
    out: Path | None = Field(
        default=None, description="with --domains: folder of the trials, below runs/ if not given; a second run goes on"
    )
    jobs: int = Field(default=1, ge=1, description="processes, with --domains")
    minutes: float | None = Field(default=None, gt=0, description="begin nothing after this time, with --domains")
    device: DeviceName = Field(default=AUTO, description=f"{DEVICE_HELP}; with --domains")

    def execute(self) -> Result:
        """Tune."""
        if self.domains is not None:
            return tune_domains(self._request(self.domains))
        if self.jobs > 1 or self.out or self.methods or self.minutes is not None or self.device != AUTO:
            raise ValueError("methods, out, jobs, minutes, device: expected only together with --domains")
        return self._tune_suite()

    def _request(self, domains: tuple[str, ...]) -> TuneRequest:
        grid = grid_for(load_base_set(self.base).manifest)
        counts = tuple(sorted({n for by_n in grid.values() for n in by_n}))
        n = None if self.n is None else counts_of("n", self.n)
        if unknown := sorted(set(n or ()) - set(counts)):
            raise ValueError(f"n: expected some of {list(counts)}, got {unknown[0]}")
        return TuneRequest(
            base=self.base,
            data=self.data,
            folders=self.folders,
            domains=tuple(split_words(domains)),
            methods=None if self.methods is None else known_names("methods", self.methods, tuple(grid)),
            n=n,
            n_test=self.n_test,
            out=self.out,
            seed=self.seed,
            threads=self.threads,
            jobs=self.jobs,
            minutes=self.minutes,
            device=self.device,
        )

    def _tune_suite(self) -> Result:
        prepared = PreparedBase(load_base_set(self.base))
        name = prepared.manifest.name
        counts = TUNED_N if self.n is None else counts_of("n", self.n)
        if unknown := sorted(set(counts) - set(TUNED_N)):
            raise ValueError(f"n: expected some of {list(TUNED_N)}, got {unknown[0]}")
        size = max(TUNED_N) + self.n_test
        sources = find_sources(self.data or CIFAR10, None, prepared.manifest, size=size, seed=self.seed)
        shifts = known_names("shifts", self.shifts, tuple(SUITE))
        if len({SUITE[shift].family for shift in shifts}) < 2:
            raise ValueError(f"shifts: expected shifts of two families or more, got {', '.join(shifts)}")
        with thread_count(self.threads):
            if self.profile:
                found = tune_profile(prepared, sources, shifts=shifts, n=(20, 100), n_test=self.n_test, seed=self.seed)
                return _profiles(name, found)
            options = f"--seed {self.seed} --n {','.join(map(str, counts))} --n-test {self.n_test}"
            command = f"python -m benchmarks.shifts tune bases/{name} {options}"
            trials = tune(
                prepared,
                sources,
                command=command,
                shifts=shifts,
                counts=counts,
                n_test=self.n_test,
                seed=self.seed,
            )
        write_trials(name, trials)
        return Result(trials.model_dump(mode="json"), describe(trials))


def _profiles(name: str, found: Mapping[tuple[float, float], Mapping[int, Mapping[str, float]]]) -> Result:
    rows, lines = [], []
    for profile, by_n in found.items():
        for n, accuracy in by_n.items():
            rows.append({"prior_images": profile, "n": n, "accuracy": accuracy})
            lines.append(f"prior {profile}, n = {n}: {100 * float(np.mean(list(accuracy.values()))):.2f}")
    return Result({"base_set": name, "profiles": rows}, "\n".join(lines))
