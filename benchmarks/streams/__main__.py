"""`python -m benchmarks.streams`: what unlabelled pictures are worth beyond channel statistics."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from adapt.networks.prepared import PreparedBase
from benchmarks.machine import commit, machine
from benchmarks.shifts.lines import Lines
from benchmarks.shifts.sources import Sources, find_sources
from benchmarks.shifts.words import CIFAR10, counts_of, known_names
from benchmarks.streams.measure import Record, measure
from benchmarks.streams.report import markdown, summary, tune, winners
from benchmarks.streams.robust import MedianBase
from benchmarks.streams.start import NUM_SOURCE, draw_pictures
from benchmarks.streams.variants import GATED, TUNED, Variant
from training.bases import BaseSet, load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.data import ImageSet
from training.devices import thread_count
from training.manifest import check_mixable
from training.parameters import Positional

logger = logging.getLogger(__name__)

TUNED_ON = ("gaussian_noise", "contrast")
SHIFTS = ("defocus_blur", "fog", "jpeg_compression", "sketch")


class Case(NamedTuple):
    """A draw to be measured."""

    shift: str
    n: int
    m: int
    draw: int


class Streams(Command):
    """Put what learns from unlabelled pictures on top of the quick ladder, and compare on unseen ones.

    EATA's and ROID's objectives over norm affines, a shift of the mean feature, medians as channel statistics, and a
    class-balanced pick of the stream. Settings are chosen on some shifts and reported on others. Exit code 1 unless
    some idea is worth a rung. A run that was interrupted goes on.

    Example: python -m benchmarks.streams bases/cifar10-small --draws 2 --json
    """

    name: ClassVar[str] = "streams"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path = Field(default=CIFAR10, description="CIFAR-10, or a folder with test/<class>/<file>")
    tuned_on: tuple[str, ...] = Field(default=TUNED_ON, description="shifts that settings are chosen on, with commas")
    shifts: tuple[str, ...] = Field(default=SHIFTS, description="shifts that are reported, with commas")
    n: tuple[str, ...] = Field(default=("20", "100"), description="labelled pictures, with commas")
    unlabelled: tuple[str, ...] = Field(default=("200", "1000"), description="pictures without labels, with commas")
    tune_draws: int = Field(default=1, ge=1, description="of each shift that is tuned on, from --seed on")
    draws: int = Field(default=2, ge=1, description="of each shift that is reported")
    n_test: int = Field(default=1000, ge=10, description="unseen pictures")
    gated: bool = Field(
        default=False, description="also search with the rung of adapt, which held-out labels decide about"
    )
    minutes: float | None = Field(default=None, gt=0, description="begin no draw after this time")
    out: Path | None = Field(
        default=None, description="folder of results and REPORT.md, below runs/ if not given; a run there goes on"
    )
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Measure what is missing, and report."""
        base = load_base_set(self.base)
        check_mixable(base.manifest)
        size = self._most() + self.n_test + NUM_SOURCE
        sources = find_sources(self.data, None, base.manifest, size=size, seed=self.seed)
        tuned_on, shifts = (
            known_names(name, words, sources.names)
            for name, words in (("tuned-on", self.tuned_on), ("shifts", self.shifts))
        )
        if both := set(tuned_on) & set(shifts):
            raise ValueError(f"shifts: expected others than are tuned on, got {', '.join(sorted(both))} in both")
        out = self.out or Path(f"runs/streams-{base.manifest.name}")
        out.mkdir(parents=True, exist_ok=True)
        with thread_count(self.threads):
            bench = _Bench(self, base, sources, Lines(out / "records.jsonl", Record))
            tuning = bench.measure(self._cases(tuned_on, self._counts()[-1:], self.tune_draws), TUNED)
            chosen = [variant for idea, variant in tune(tuning).items() if idea != GATED or self.gated]
            cases = self._cases(shifts, self._counts(), self.draws)
            reported = bench.measure(cases, chosen)
        data = summary(tuning, reported, planned=len(cases)) | {"machine": machine(), "commit": commit()}
        holds = bool(winners(data))
        text = markdown(
            data,
            command=self._command(base.manifest.name),
            base_set=base.manifest.name,
            tuned_on=", ".join(tuned_on),
            shifts=", ".join(shifts),
        )
        (out / "REPORT.md").write_text(text, encoding="utf-8")
        (out / "results.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        return Result(data | {"holds": holds}, text, EXIT_DONE if holds else EXIT_CLAIM_FAILED)

    def _counts(self) -> tuple[int, ...]:
        return counts_of("unlabelled", self.unlabelled)

    def _most(self) -> int:
        return max(counts_of("n", self.n)) + max(self._counts())

    def _cases(self, shifts: Sequence[str], counts: Sequence[int], draws: int) -> list[Case]:
        """Return the draws of these shifts, whole rounds first: what is there of a long run is even."""
        numbers = range(self.seed, self.seed + draws)
        return [
            Case(shift, n, m, draw) for draw, shift, m, n in product(numbers, shifts, counts, counts_of("n", self.n))
        ]

    def _command(self, base_set: str) -> str:
        """Return the command line that measures this."""
        gated = " --gated" if self.gated else ""
        return (
            f"python -m benchmarks.streams bases/{base_set} --tuned-on {','.join(self.tuned_on)} --shifts "
            f"{','.join(self.shifts)} --n {','.join(self.n)} --unlabelled {','.join(self.unlabelled)} --tune-draws "
            f"{self.tune_draws} --draws {self.draws} --n-test {self.n_test} --seed {self.seed}{gated}"
        )


class _Bench:
    """Measures cases that are not on record."""

    def __init__(self, asked: Streams, base: BaseSet, sources: Sources, lines: Lines[Record]) -> None:
        self._asked, self._sources, self._lines = asked, sources, lines
        self._prepared, self._medians = PreparedBase(base), MedianBase(base)
        self._shifted: tuple[str, ImageSet] | None = None
        self._started = time.monotonic()

    def measure(self, cases: Sequence[Case], wanted: Sequence[Variant]) -> list[Record]:
        """Return what is on record of the cases, with the variants wanted as far as there was time."""
        found = []
        for number, case in enumerate(cases, 1):
            missing = self._missing(case, wanted)
            if missing and not self._is_late():
                self._add(case, missing)
                logger.info("%s, n = %d, m = %d, draw %d; %d of %d", *case, number, len(cases))
            if (record := self._lines.records.get(self._key(case))) is not None:
                found.append(record)
        if left := sum(bool(self._missing(case, wanted)) for case in cases):
            logger.warning("time is up: %d of %d draws are left; the same command goes on", left, len(cases))
        return found

    def _missing(self, case: Case, wanted: Sequence[Variant]) -> list[Variant]:
        record = self._lines.records.get(self._key(case))
        there = set() if record is None else record.accuracy.keys()
        return [variant for variant in wanted if variant.name not in there]

    def _add(self, case: Case, missing: Sequence[Variant]) -> None:
        asked = self._asked
        pictures = draw_pictures(
            self._data(case.shift),
            self._sources.clean,
            n=case.n,
            m=case.m,
            most=asked._most(),
            n_test=asked.n_test,
            seed=case.draw,
        )
        self._lines.add(measure(self._prepared, self._medians, pictures, missing, shift=case.shift, draw=case.draw))

    def _data(self, shift: str) -> ImageSet:
        if self._shifted is None or self._shifted[0] != shift:
            self._shifted = shift, self._sources.load(shift, seed=self._asked.seed)
        return self._shifted[1]

    def _key(self, case: Case) -> tuple[str, str, int, int, int, int]:
        return self._prepared.manifest.digest, case.shift, case.n, case.m, case.draw, self._asked.n_test

    def _is_late(self) -> bool:
        minutes = self._asked.minutes
        return minutes is not None and time.monotonic() - self._started > 60 * minutes


if __name__ == "__main__":
    sys.exit(run([Streams], prog="python -m benchmarks.streams", description="Unlabelled pictures."))
