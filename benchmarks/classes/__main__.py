"""`python -m benchmarks.classes`: labels of some classes only, unseen pictures of all."""

import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from adapt.networks.prepared import PreparedBase
from adapt.rungs.head import PENALTIES
from benchmarks.classes.measure import FITTED, LADDER, PLAIN, WITHOUT, Record, measure
from benchmarks.machine import commit, machine
from benchmarks.shifts.lines import Lines
from benchmarks.shifts.sources import Sources, find_sources
from benchmarks.shifts.words import CIFAR10, counts_of, known_names
from benchmarks.tables import table
from training.bases import load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.devices import thread_count
from training.manifest import Manifest, check_mixable
from training.parameters import Positional

logger = logging.getLogger(__name__)

SHIFTS = ("gaussian_noise", "defocus_blur", "fog", "contrast", "jpeg_compression", "sketch")
ALLOWED_LOSS = 0.01  # of accuracy on all classes, mean over shifts and draws
PARTS = ("every class", "labelled", "others")


class Classes(Command):
    """Fit the last layer to the labels of some classes, and see how pictures of every class are answered.

    Compared are the ladder without a last layer, the ladder as it is, and for every strength of the pull the last layer
    with the rows of labelled classes fitted (as the ladder does), or with every row fitted to the labels alone.

    Example: python -m benchmarks.classes --classes 7 --n 50,100 --json
    """

    name: ClassVar[str] = "classes"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path = Field(default=CIFAR10, description="CIFAR-10, or a folder with test/<class>/<file>")
    shifts: tuple[str, ...] = Field(default=SHIFTS, description="shifts of benchmarks.shifts, with commas")
    classes: int = Field(default=7, ge=2, description="classes with labels, drawn at random for each draw")
    n: tuple[str, ...] = Field(default=("50", "100"), description="labelled pictures, with commas")
    draws: int = Field(default=3, ge=1, description="of each shift, from --seed on")
    n_test: int = Field(default=1000, ge=10, description="unseen pictures of every class together")
    out: Path | None = Field(
        default=None, description="folder of results and REPORT.md, below runs/ if not given; a run there goes on"
    )
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Measure; the claim is that the last layer costs at most a point over all classes."""
        base = load_base_set(self.base)
        check_mixable(base.manifest)
        num_classes = len(base.manifest.class_names)
        if self.classes >= num_classes:
            raise ValueError(f"classes: expected fewer than the {num_classes} of the base set, got {self.classes}")
        counts = counts_of("n", self.n)
        size = num_classes * -(-max(counts) // self.classes) + self.n_test
        sources = find_sources(self.data, None, base.manifest, size=size, seed=self.seed)
        shifts = known_names("shifts", self.shifts, sources.names)
        out = self.out or Path(f"runs/classes-{base.manifest.name}")
        out.mkdir(parents=True, exist_ok=True)
        with thread_count(self.threads):
            found = list(self._measure(PreparedBase(base), sources, shifts, counts, out))
        data = summary(found) | {"machine": machine(), "commit": commit()}
        holds = all(row["loss"] <= ALLOWED_LOSS for row in data["taken"].values())
        text = markdown(data, self, base.manifest, shifts, holds=holds)
        (out / "REPORT.md").write_text(text, encoding="utf-8")
        return Result(data | {"holds": holds}, text, EXIT_DONE if holds else EXIT_CLAIM_FAILED)

    def _measure(
        self, prepared: PreparedBase, sources: Sources, shifts: Sequence[str], counts: Sequence[int], out: Path
    ) -> Iterator[Record]:
        """Yield the record of every draw; those that are there already are not measured again."""
        lines = Lines(out / "classes.jsonl", Record)
        for shift in shifts:
            data = None
            for draw, n in product(range(self.seed, self.seed + self.draws), counts):
                key = (prepared.manifest.digest, shift, self.classes, n, draw, self.n_test)
                if key not in lines.records:
                    data = data or sources.load(shift, seed=self.seed)
                    lines.add(measure(prepared, data, shift, classes=self.classes, n=n, draw=draw, n_test=self.n_test))
                    logger.info("%s, draw %d, n = %d", shift, draw, n)
                yield lines.records[key]


def summary(found: Sequence[Record]) -> dict[str, Any]:
    """Return mean accuracies by number of labels and method, and what taking the ladder's last layer costs."""
    rows: dict[str, dict[str, list[float]]] = {}
    taken: dict[str, dict[str, float]] = {}
    for n in sorted({record.n for record in found}):
        some = [record for record in found if record.n == n]
        rows[str(n)] = {
            name: np.mean([record.accuracy[name] for record in some], axis=0).tolist() for name in some[0].accuracy
        }
        losses = [record.accuracy[WITHOUT][0] - record.accuracy[LADDER][0] for record in some]
        taken[str(n)] = {
            "share": float(np.mean([record.is_taken for record in some])),
            "loss": float(np.mean(losses)),
            "error": float(np.std(losses, ddof=1) / len(losses) ** 0.5) if len(losses) > 1 else 0.0,
        }
    return {"accuracy": rows, "taken": taken, "draws": len(found)}


def markdown(data: dict[str, Any], asked: Classes, manifest: Manifest, shifts: Sequence[str], *, holds: bool) -> str:
    """Return the report."""
    counts, base_set, num_classes = list(data["accuracy"]), manifest.name, len(manifest.class_names)
    lines = [
        "# Labels of some classes only",
        "",
        f"Command: `python -m benchmarks.classes bases/{base_set} --shifts {','.join(shifts)} --classes "
        f"{asked.classes} --n {','.join(counts)} --draws {asked.draws} --n-test {asked.n_test} --seed {asked.seed}`, "
        f"at commit {data['commit']}.",
        "",
        f"{asked.classes} of {num_classes} classes have labels. Accuracy in percent on {asked.n_test} unseen pictures "
        f"of every class, mean over {len(shifts)} shifts and {asked.draws} draws.",
        "",
        f"Machine: {data['machine']}",
        "",
    ]
    for n, row in data["taken"].items():
        lines.append(
            f"- n = {n}: the ladder takes the last layer in {100 * row['share']:.0f} % of draws; over every class that "
            f"is worth {-100 * row['loss']:+.1f} points (standard error {100 * row['error']:.1f})."
        )
    verdict = "Holds" if holds else "**Does not hold**"
    lines += [f"- {verdict}: it costs at most {100 * ALLOWED_LOSS:.0f} point.", ""]
    head = ["last layer", *(f"n = {n}: {part}" for n in counts for part in PARTS)]
    rows = [[_title(name), *_cells(data, name)] for name in data["accuracy"][counts[0]]]
    return "\n".join([*lines, *table(head, rows), ""])


def _cells(data: dict[str, Any], name: str) -> list[str]:
    return [f"{100 * value:.1f}" for rows in data["accuracy"].values() for value in rows[name]]


def _title(name: str) -> str:
    kind, _, number = name.partition(" ")
    titles = {
        WITHOUT: "none fitted",
        LADDER: "the ladder's choice",
        FITTED: "rows of labelled classes",
        PLAIN: "every row",
    }
    return titles[kind] + (f", pull {PENALTIES[int(number)]:g}" if number else "")


if __name__ == "__main__":
    sys.exit(run([Classes], prog="python -m benchmarks.classes", description="Labels of some classes only."))
