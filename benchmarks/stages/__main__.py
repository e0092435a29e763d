"""`python -m benchmarks.stages`: coefficients for each stage of the network against one vector for all of it."""

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from adapt.networks.prepared import PreparedBase
from benchmarks.machine import commit, machine
from benchmarks.shifts.lines import Lines
from benchmarks.shifts.sources import Sources, find_sources
from benchmarks.shifts.words import CIFAR10, known_names
from benchmarks.stages.measure import LADDER, PULLS, START, TOGETHER, Record, measure, stagewise
from benchmarks.tables import table
from training.bases import load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.devices import thread_count
from training.manifest import check_mixable
from training.parameters import Positional

logger = logging.getLogger(__name__)

SHIFTS = ("gaussian_noise", "defocus_blur", "fog", "contrast", "jpeg_compression", "sketch")
WANTED = 0.01  # of accuracy over the quick ladder: what a rung is worth


class Stages(Command):
    """Find coefficients for each stage, drawn to the global ones, and compare them on unseen pictures.

    All soups have channel statistics of the labelled pictures, with and without a fitted last layer on top.

    Example: python -m benchmarks.stages bases/cifar10-small-ln --n 100 --draws 3 --json
    """

    name: ClassVar[str] = "stages"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small-ln"), description="base set")
    data: Path = Field(default=CIFAR10, description="CIFAR-10, or a folder with test/<class>/<file>")
    shifts: tuple[str, ...] = Field(default=SHIFTS, description="shifts of benchmarks.shifts, with commas")
    n: int = Field(default=100, ge=10, description="labelled pictures")
    draws: int = Field(default=3, ge=1, description="of each shift, from --seed on")
    n_test: int = Field(default=1000, ge=10, description="unseen pictures")
    out: Path | None = Field(
        default=None, description="folder of results and REPORT.md, below runs/ if not given; a run there goes on"
    )
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Measure; the claim is that some pull gains a point over the quick ladder."""
        base = load_base_set(self.base)
        check_mixable(base.manifest)
        sources = find_sources(self.data, None, base.manifest, size=self.n + self.n_test, seed=self.seed)
        shifts = known_names("shifts", self.shifts, sources.names)
        out = self.out or Path(f"runs/stages-{base.manifest.name}")
        out.mkdir(parents=True, exist_ok=True)
        with thread_count(self.threads):
            found = list(self._measure(PreparedBase(base), sources, shifts, out))
        data = summary(found) | {"machine": machine(), "commit": commit()}
        holds = max(data["gains"][stagewise(pull)]["mean"] for pull in PULLS) >= WANTED
        text = markdown(data, self, base.manifest.name, shifts, holds=holds)
        (out / "REPORT.md").write_text(text, encoding="utf-8")
        return Result(data | {"holds": holds}, text, EXIT_DONE if holds else EXIT_CLAIM_FAILED)

    def _measure(self, prepared: PreparedBase, sources: Sources, shifts: Sequence[str], out: Path) -> Iterator[Record]:
        """Yield the record of every draw; those that are there already are not measured again."""
        lines = Lines(out / "stages.jsonl", Record)
        for shift in shifts:
            data = None
            for seed in range(self.seed, self.seed + self.draws):
                key = (prepared.manifest.digest, shift, self.n, seed, self.n_test)
                if key not in lines.records:
                    data = data or sources.load(shift, seed=self.seed)
                    lines.add(measure(prepared, data, shift, n=self.n, seed=seed, n_test=self.n_test))
                    logger.info("%s, draw %d", shift, seed)
                yield lines.records[key]


def summary(found: Sequence[Record]) -> dict[str, Any]:
    """Return mean accuracies by coefficients, and the gains over the quick ladder, paired by draw."""
    rows = {LADDER: {"fitted layer": float(np.mean([record.ladder for record in found]))}}
    gains = {}
    for name in (START, TOGETHER, *map(stagewise, PULLS)):
        fitted = [record.fitted_layer[name] for record in found]
        rows[name] = {
            "own layer": float(np.mean([record.own_layer[name] for record in found])),
            "fitted layer": float(np.mean(fitted)),
        }
        differences = np.asarray(fitted) - [record.ladder for record in found]
        error = differences.std(ddof=1) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
        gains[name] = {"mean": float(differences.mean()), "error": float(error)}
    shifts = {
        shift: {
            name: float(np.mean([r.fitted_layer[name] - r.ladder for r in found if r.shift == shift])) for name in gains
        }
        for shift in dict.fromkeys(record.shift for record in found)
    }
    return {"accuracy": rows, "gains": gains, "shifts": shifts, "draws": len(found)}


def markdown(data: dict[str, Any], asked: Stages, base_set: str, shifts: Sequence[str], *, holds: bool) -> str:
    """Return the report."""
    lines = [
        "# Coefficients for each stage",
        "",
        f"Command: `python -m benchmarks.stages bases/{base_set} --shifts {','.join(shifts)} --n {asked.n} --draws "
        f"{asked.draws} --n-test {asked.n_test} --seed {asked.seed}`, at commit {data['commit']}.",
        "",
        f"{asked.n} labelled pictures; accuracy in percent on {asked.n_test} unseen ones, mean over {len(shifts)} "
        f"shifts and {asked.draws} draws. All have channel statistics of the labelled pictures.",
        "",
        f"Machine: {data['machine']}",
        "",
        f"- {'Holds' if holds else '**Does not hold**'}: with a fitted last layer some pull gains "
        f"{100 * WANTED:.0f} point over the quick ladder.",
        "",
    ]
    head = ("coefficients", "own last layer", "fitted last layer", "over the quick ladder", "standard error")
    rows = [[LADDER, "", f"{100 * data['accuracy'][LADDER]['fitted layer']:.1f}", "", ""]]
    for name, gain in data["gains"].items():
        row = data["accuracy"][name]
        figures = (f"{100 * row['own layer']:.1f}", f"{100 * row['fitted layer']:.1f}")
        rows.append([name, *figures, f"{100 * gain['mean']:+.1f}", f"{100 * gain['error']:.1f}"])
    by_shift = [[shift, *(f"{100 * gain:+.1f}" for gain in gains.values())] for shift, gains in data["shifts"].items()]
    lines += [*table(head, rows), "", "Over the quick ladder by shift, points:", ""]
    return "\n".join([*lines, *table(("shift", *data["gains"]), by_shift), ""])


if __name__ == "__main__":
    sys.exit(run([Stages], prog="python -m benchmarks.stages", description="Coefficients for each stage."))
