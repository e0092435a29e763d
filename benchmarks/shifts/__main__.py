"""`python -m benchmarks.shifts`, and `python -m benchmarks.shifts preview|list`."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import tyro
from pydantic import Field

from adapt.networks.prepared import PreparedBase
from benchmarks.shifts.attacked import Attack
from benchmarks.shifts.harness import known_methods, run_methods
from benchmarks.shifts.report import reported
from benchmarks.shifts.results import COSTLY, Results, Settings, open_results
from benchmarks.shifts.rivals.registry import ON_REQUEST
from benchmarks.shifts.sets import clean_images
from benchmarks.shifts.sheet import contact_sheet
from benchmarks.shifts.sources import find_sources
from benchmarks.shifts.suite import AT_SEVERITIES, SUITE, find_shift
from benchmarks.shifts.tuned import write_trials
from benchmarks.shifts.tuning import SHIFTS as TUNED_SHIFTS
from benchmarks.shifts.tuning import TUNED_N, describe, tune, tune_profile
from training.bases import load_base_set
from training.cli import Command, Result, run
from training.devices import thread_count
from training.manifest import InputSpec, check_mixable

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What is measured where the command line does not say."""

    n: tuple[int, ...]
    seeds: int
    n_test: int
    costly_n: tuple[int, ...]
    costly_seeds: int
    shifts: tuple[str, ...]


FULL = Plan(
    n=(20, 50, 100, 300, 1000),
    seeds=5,
    n_test=1000,
    costly_n=(20, 100, 1000),
    costly_seeds=3,
    shifts=tuple(SUITE),
)
QUICK = Plan(
    n=(20, 100),
    seeds=3,
    n_test=400,
    costly_n=(20, 100),
    costly_seeds=1,
    shifts=(
        *("gaussian_noise", "impulse_noise", "defocus_blur", "motion_blur", "fog", "low_light", "contrast"),
        *("jpeg_compression", "sketch", "inversion"),
    ),
)


class Shifts(Command):
    """Compare ways to adapt to shifted pictures from few labelled ones, on unseen ones.

    A run that was interrupted goes on where it stopped; one that is done is only reported again. Subcommands: `report`
    what a run has so far, `attack` what it chose, `tune` rivals, `preview` and `list` the shifts.

    Example: python -m benchmarks.shifts --quick --data .data/cifar10 --out runs/shifts --json
    """

    name: ClassVar[str] = "shifts"
    base: Annotated[Path, tyro.conf.Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path = Field(default=Path(".data/cifar10"), description="CIFAR-10, or a folder with test/<class>/<file>")
    folders: Path | None = Field(
        default=None, description="folder of real sets (natural4, ...): those with enough pictures are added"
    )
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(
        default=False,
        description=f"two shifts of each of five families, n {' and '.join(map(str, QUICK.n))}, {QUICK.seeds} draws, "
        f"{QUICK.n_test} unseen pictures: at most 10 minutes on 2 cores. Other options overrule it",
    )
    severities: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(
        default=False, description="every shift at every severity, and only methods that look answers up"
    )
    n: tuple[str, ...] | None = Field(
        default=None, description=f"labelled pictures; {','.join(map(str, FULL.n))} if not given"
    )
    seeds: int | None = Field(default=None, ge=1, description=f"draws, from --seed on; {FULL.seeds} if not given")
    shifts: tuple[str, ...] | None = Field(
        default=None, description="names, with commas, at another severity as fog@3; all if not given"
    )
    methods: tuple[str, ...] | None = Field(
        default=None, description=f"names, with commas; all but {', '.join(ON_REQUEST)} if not given"
    )
    redo: tuple[str, ...] | None = Field(
        default=None, description="methods, with commas, whose results are dropped and measured again"
    )
    n_test: int | None = Field(default=None, ge=1, description=f"unseen pictures; {FULL.n_test} if not given")
    costly_n: tuple[str, ...] | None = Field(
        default=None, description=f"of n, those for {', '.join(COSTLY)}; 20,100,1000 if not given; none for none"
    )
    costly_seeds: int | None = Field(
        default=None, ge=1, description=f"draws for these; {FULL.costly_seeds} if not given, {QUICK.costly_seeds} quick"
    )
    out: Path | None = Field(
        default=None,
        description="folder of the results and of REPORT.md; below runs/, named after what is asked, if not given",
    )
    threads: int = Field(default=1, ge=1, description="torch CPU threads; beside other work, more may be far slower")

    def execute(self) -> Result:
        """Measure what is missing, and report."""
        base = load_base_set(self.base)
        check_mixable(base.manifest)
        prepared = PreparedBase(base)
        known = known_methods(prepared, tabled=self.severities)
        methods = _known("methods", self.methods or [name for name in known if name not in ON_REQUEST], known)
        plan = self._plan()
        size = max(plan.n) + plan.n_test
        sources = find_sources(self.data, self.folders, base.manifest, size=size, seed=self.seed)
        wanted = self.shifts or (tuple(AT_SEVERITIES) if self.severities else (*plan.shifts, *sources.folders))
        plan = plan._replace(shifts=_known("shifts", wanted, (*sources.names, *AT_SEVERITIES)))
        settings = Settings(
            base_set=base.manifest.name,
            base_digest=base.manifest.digest,
            data=sources.digests(plan.shifts),
            seed=self.seed,
            methods=methods,
            ingredients=base.manifest.ingredient_names,
            **plan._asdict(),
        )
        quick = "-severities" if self.severities else "-quick" if self.quick else ""
        out = self.out or Path(f"runs/shifts{quick}-{base.manifest.name}")
        redone = () if self.redo is None else _known("redo", self.redo, methods)
        results = Results(out, settings)
        if redone:
            results.forget(redone)
        with thread_count(self.threads):
            run_methods(prepared, sources, results)
        return reported(results)

    def _plan(self) -> Plan:
        """Return what to measure: the options, and where they are silent the full or the quick plan."""
        plan = QUICK if self.quick else FULL
        n = plan.n if self.n is None else _counts("n", self.n)
        costly = self.costly_n or ()
        wanted = (
            plan.costly_n
            if self.costly_n is None
            else ()
            if _split(costly) == ["none"]
            else _counts("costly-n", costly)
        )
        seeds = self.seeds or plan.seeds
        return Plan(
            n=n,
            seeds=seeds,
            n_test=self.n_test or plan.n_test,
            costly_n=tuple(count for count in n if count in wanted),
            costly_seeds=min(seeds, self.costly_seeds or plan.costly_seeds),
            shifts=plan.shifts,
        )


def _counts(option: str, words: Sequence[str]) -> tuple[int, ...]:
    """Return different numbers from 1, ascending."""
    parts = _split(words)
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option}: expected whole numbers from 1, as 20,100, got {','.join(words)!r}")
    return tuple(sorted({int(part) for part in parts}))


def _known(option: str, words: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names asked for in the order of `known`; all if none were."""
    names = known if words is None else _split(words)
    if not names or (unknown := [name for name in names if name not in known]):
        raise ValueError(f"{option}: expected some of {', '.join(known)}, got {unknown if names else 'none'}")
    return tuple(name for name in known if name in names)


def _split(words: Sequence[str]) -> list[str]:
    """Return what stands between commas and blanks."""
    return [part for word in words for part in word.replace(",", " ").split()]


class Report(Command):
    """Report what a run has found so far: whole draws, or before there is one, whole shifts of the first.

    Example: python -m benchmarks.shifts report runs/shifts-cifar10-small
    """

    name: ClassVar[str] = "report"
    out: Annotated[Path, tyro.conf.Positional] = Field(description="folder of the results")

    def execute(self) -> Result:
        """Report."""
        return reported(open_results(self.out).restricted())


class Tune(Command):
    """Try hyper-parameters of the rivals on one shift of each family, and enter them in tuned.json.

    Example: python -m benchmarks.shifts tune bases/cifar10-small --data .data/cifar10
    """

    name: ClassVar[str] = "tune"
    base: Annotated[Path, tyro.conf.Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path = Field(default=Path(".data/cifar10"), description="CIFAR-10, or a folder with test/<class>/<file>")
    shifts: tuple[str, ...] = Field(default=TUNED_SHIFTS, description="names of shifts, of two families or more")
    n: tuple[str, ...] | None = Field(
        default=None, description=f"labelled pictures; {','.join(map(str, TUNED_N))} if not given, with commas"
    )
    n_test: int = Field(default=500, ge=1, description="unseen pictures of each")
    profile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(
        default=False, description="only compare priors of the ladder's channel statistics, and enter nothing"
    )
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Tune."""
        prepared = PreparedBase(load_base_set(self.base))
        name = prepared.manifest.name
        counts = TUNED_N if self.n is None else _counts("n", self.n)
        if unknown := sorted(set(counts) - set(TUNED_N)):
            raise ValueError(f"n: expected some of {list(TUNED_N)}, got {unknown[0]}")
        size = max(TUNED_N) + self.n_test
        sources = find_sources(self.data, None, prepared.manifest, size=size, seed=self.seed)
        shifts = _known("shifts", self.shifts, tuple(SUITE))
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


class Preview(Command):
    """Write one picture of every shift at every severity; the core severity is framed.

    Example: python -m benchmarks.shifts preview --data .data/cifar10 --out runs/shifts
    """

    name: ClassVar[str] = "preview"
    data: Path = Field(description="folder with test/<class>/<file>, or torchvision's CIFAR-10")
    out: Path = Field(description="folder for shifts.png")
    shifts: tuple[str, ...] | None = Field(default=None, description="names of shifts; all if not given")
    n: int = Field(default=3, ge=1, le=20, description="pictures side by side")
    size: int = Field(default=32, ge=8, le=512, description="height and width that pictures are brought to")
    scale: int = Field(default=2, ge=1, le=8, description="enlargement")

    def execute(self) -> Result:
        """Draw."""
        rows = [find_shift(name) for name in self.shifts or SUITE]
        spec = InputSpec(height=self.size, width=self.size, mean=(0, 0, 0), std=(1, 1, 1))
        images = clean_images(self.data, spec, n=self.n, seed=self.seed).images
        sheet = contact_sheet(images, rows, seed=self.seed, scale=self.scale)
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / "shifts.png"
        sheet.save(file)
        data = {"file": str(file), "shifts": [shift.name for shift in rows], "n": len(images)}
        return Result(data, f"{file}: {len(rows)} shifts")


class List(Command):
    """Name the shifts of the suite, their families and core severities.

    Example: python -m benchmarks.shifts list --json
    """

    name: ClassVar[str] = "list"

    def execute(self) -> Result:
        """List."""
        rows = [{"name": s.name, "family": s.family, "core_severity": s.core_severity} for s in SUITE.values()]
        lines = [f"{s.name:18} {s.family:10} core severity {s.core_severity}" for s in SUITE.values()]
        return Result({"shifts": rows}, "\n".join(lines))


SUBCOMMANDS: tuple[type[Command], ...] = (Report, Attack, Tune, Preview, List)


def main(args: Sequence[str]) -> int:
    """Run a subcommand if there is one, else the comparison."""
    if args and args[0] in {command.name for command in SUBCOMMANDS}:
        return run(SUBCOMMANDS, prog="python -m benchmarks.shifts", description="The shift suite.", args=args)
    return run([Shifts], prog="python -m benchmarks.shifts", description="Methods on shifts.", args=args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
