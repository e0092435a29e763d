"""`python -m benchmarks.shifts`, and `python -m benchmarks.shifts report`."""

import logging
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from adapt.networks.prepared import PreparedBase
from benchmarks.shifts.context import STREAM
from benchmarks.shifts.domains.command import Request, photo_methods, run_domains
from benchmarks.shifts.domains.report import reopened
from benchmarks.shifts.harness import known_methods, run_methods
from benchmarks.shifts.report import reported
from benchmarks.shifts.results import COSTLY, Results, Settings, open_results
from benchmarks.shifts.rivals.registry import ON_REQUEST
from benchmarks.shifts.sources import find_sources
from benchmarks.shifts.suite import AT_SEVERITIES, SUITE
from benchmarks.shifts.words import CIFAR10, counts_of, known_names, split_words
from training.bases import load_base_set
from training.cli import Command, Result
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.devices import thread_count
from training.manifest import check_mixable
from training.parameters import Arg, Positional

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

    The pictures are CIFAR-10's, shifted; or with --domains those of folders, and corruptions of the base set's own. A
    run that was interrupted goes on where it stopped; one that is done is only reported again. Subcommands: `report`
    what a run has so far, `attack` what it chose, `tune` rivals, `preview` and `list` the shifts.

    Example: python -m benchmarks.shifts --quick --data .data/cifar10 --out runs/shifts --json

    Example: python -m benchmarks.shifts bases/photos --folders .data/pacs --domains art_painting,cartoon,corruptions
    """

    name: ClassVar[str] = "shifts"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path | None = Field(
        default=None,
        description="CIFAR-10 (.data/cifar10 if not given), or a folder with test/<class>/<file>; with --domains the "
        "base set's own pictures, where its recipe says if not given",
    )
    folders: Path | None = Field(
        default=None,
        description="folder of real sets (natural4, ...): those with enough pictures are added; with --domains what "
        "their names are relative to",
    )
    domains: tuple[str, ...] | None = Field(
        default=None,
        description="with commas: folders of <class>/<file>, or a folder of such folders; corruptions for the 15 "
        "standard ones, or the name of one. Each folder is a domain, all corruptions together are one",
    )
    quick: bool = Field(
        default=False,
        description=f"two shifts of each of five families, n {' and '.join(map(str, QUICK.n))}, {QUICK.seeds} draws, "
        f"{QUICK.n_test} unseen pictures: at most 10 minutes on 2 cores. Other options overrule it",
    )
    severities: bool = Field(
        default=False, description="every shift at every severity, and only methods that look answers up"
    )
    n: tuple[str, ...] | None = Field(
        default=None, description=f"labelled pictures; {','.join(map(str, FULL.n))} if not given"
    )
    seeds: Annotated[int | None, Arg(aliases=("draws",))] = Field(
        default=None, ge=1, description=f"draws, from --seed on; {FULL.seeds} if not given"
    )
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
        default=None,
        description=f"of n, those for {', '.join(COSTLY)}; 20,100,1000 if not given, with --domains all; none for none",
    )
    costly_seeds: int | None = Field(
        default=None, ge=1, description=f"draws for these; {FULL.costly_seeds} if not given, {QUICK.costly_seeds} quick"
    )
    out: Path | None = Field(
        default=None,
        description="folder of the results and of REPORT.md; below runs/, named after what is asked, if not given",
    )
    threads: int = Field(default=1, ge=1, description="torch CPU threads; beside other work, more may be far slower")
    jobs: int = Field(default=1, ge=1, description="processes, with --domains")
    minutes: float | None = Field(default=None, gt=0, description="begin nothing after this time, with --domains")
    device: DeviceName = Field(default=AUTO, description=f"{DEVICE_HELP}; with --domains")

    def execute(self) -> Result:
        """Measure what is missing, and report."""
        if self.domains is not None:
            return run_domains(self._request(self.domains))
        if self.jobs > 1 or self.minutes is not None or self.device != AUTO:
            raise ValueError("jobs, minutes, device: expected only together with --domains")
        return self._run_suite()

    def _run_suite(self) -> Result:
        base = load_base_set(self.base)
        check_mixable(base.manifest)
        prepared = PreparedBase(base)
        known = known_methods(prepared, tabled=self.severities)
        methods = known_names("methods", self.methods or [name for name in known if name not in ON_REQUEST], known)
        plan = self._plan()
        size = max(plan.n) + plan.n_test
        sources = find_sources(
            self.data or CIFAR10, self.folders, base.manifest, size=size, seed=self.seed, spare=STREAM
        )
        wanted = self.shifts or (tuple(AT_SEVERITIES) if self.severities else (*plan.shifts, *sources.folders))
        plan = plan._replace(shifts=known_names("shifts", wanted, (*sources.names, *AT_SEVERITIES)))
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
        redone = () if self.redo is None else known_names("redo", self.redo, methods)
        results = Results(out, settings)
        if redone:
            results.forget(redone)
        with thread_count(self.threads):
            run_methods(prepared, sources, results)
        return reported(results)

    def _request(self, domains: tuple[str, ...]) -> Request:
        """Return what to measure on domains."""
        if self.quick or self.severities or self.shifts is not None:
            raise ValueError("quick, severities, shifts: expected only without --domains, which names what is measured")
        known = photo_methods(load_base_set(self.base).manifest)
        n = FULL.n if self.n is None else counts_of("n", self.n)
        costly = () if self.costly_n and split_words(self.costly_n) == ["none"] else self.costly_n
        return Request(
            base=self.base,
            data=self.data,
            folders=self.folders,
            domains=tuple(split_words(domains)),
            methods=None if self.methods is None else known_names("methods", self.methods, known),
            redo=() if self.redo is None else known_names("redo", self.redo, known),
            n=n,
            draws=self.seeds or FULL.seeds,
            costly_n=n if costly is None else counts_of("costly-n", costly) if costly else (),
            costly_draws=self.costly_seeds or FULL.costly_seeds,
            n_test=self.n_test or FULL.n_test,
            out=self.out,
            seed=self.seed,
            threads=self.threads,
            jobs=self.jobs,
            minutes=self.minutes,
            device=self.device,
        )

    def _plan(self) -> Plan:
        """Return what to measure: the options, and where they are silent the full or the quick plan."""
        plan = QUICK if self.quick else FULL
        n = plan.n if self.n is None else counts_of("n", self.n)
        costly = self.costly_n or ()
        wanted = (
            plan.costly_n
            if self.costly_n is None
            else ()
            if split_words(costly) == ["none"]
            else counts_of("costly-n", costly)
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


class Report(Command):
    """Report what a run has found so far: of the suite whole draws, or whole shifts of the first; of domains all.

    Example: python -m benchmarks.shifts report runs/shifts-cifar10-small
    """

    name: ClassVar[str] = "report"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    out: Annotated[Path, Positional] = Field(description="folder of the results")

    def execute(self) -> Result:
        """Report."""
        if (self.out / "study.json").exists():
            return reopened(self.out)
        return reported(open_results(self.out).restricted())
