"""`python -m benchmarks.frequencies`: accuracy with and without the rung of class frequencies."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from adapt.networks.prepared import PreparedBase
from benchmarks.frequencies.trials import SHAPES, Trial, draw_pictures, mixture, try_draw
from benchmarks.machine import commit, machine
from benchmarks.shifts.sets import FOLDER_SETS, clean_images, load_folder_set
from benchmarks.shifts.suite import find_shift
from benchmarks.shifts.words import counts_of, split_words
from benchmarks.tables import table
from training.bases import load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.data import ImageSet
from training.devices import thread_count
from training.manifest import Manifest, check_mixable
from training.parameters import Positional

logger = logging.getLogger(__name__)

SHIFTS = ("fog", "gaussian_noise")
MOST_LOST = 0.01  # mean of the cases where frequencies did not change
FIELDS = ("before", "ladder", "frequencies", "served", "is_taken", "is_promoted")
ESTIMATES = ("error_expected", "error_any", "error_fair", "held_any", "held_fair")


class Frequencies(Command):
    """Adapt to pictures whose classes have other frequencies, with draw=any and draw=fair, on the same draws.

    Corrupted sets are drawn with even frequencies, with those of Zipf's law, and with four classes alone; natural sets
    as their folders have them. Exit code 1 unless draw=fair gains in the mean of the cases where frequencies changed,
    and loses at most a point in the mean of those where they did not. A run that was interrupted goes on.

    Example: python -m benchmarks.frequencies --data .data/cifar10 --folders .data --sets natural4,tinyimagenet7
    """

    name: ClassVar[str] = "frequencies"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path = Field(default=Path(".data/cifar10"), description="CIFAR-10, or a folder with test/<class>/<file>")
    folders: Path = Field(default=Path(".data"), description="folder of the natural sets")
    sets: tuple[str, ...] = Field(default=(), description=f"natural sets, with commas: {', '.join(FOLDER_SETS)}")
    shifts: tuple[str, ...] = Field(default=SHIFTS, description="shifts of benchmarks.shifts, with commas")
    n: tuple[str, ...] = Field(default=("20", "100"), description="labelled pictures, with commas")
    unlabelled: tuple[str, ...] = Field(default=("200", "1000"), description="pictures without labels, with commas")
    n_test: int = Field(default=1000, ge=50, description="unseen pictures")
    draws: int = Field(default=3, ge=1, description="of each case, from --seed on")
    work: Path = Field(default=Path("runs/frequencies"), description="folder that keeps finished draws")
    out: Path | None = Field(default=None, description="folder for REPORT.md; none if not given")
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Measure what is missing, and report."""
        base = load_base_set(self.base)
        check_mixable(base.manifest)
        with thread_count(self.threads):
            found = self._measure(PreparedBase(base))
        rows = summary(found)
        data = {"cases": rows, "draws": self.draws, "n_test": self.n_test, "machine": machine()}
        holds = claim(rows)
        text = markdown(data, base.manifest.name)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "REPORT.md").write_text(text, encoding="utf-8")
        return Result(data | {"holds": holds}, text, EXIT_DONE if holds else EXIT_CLAIM_FAILED)

    def _measure(self, prepared: PreparedBase) -> list[Trial]:
        self.work.mkdir(parents=True, exist_ok=True)
        clean = clean_images(self.data, prepared.manifest.input)
        names = [*split_words(self.sets), *split_words(self.shifts)]
        found: list[Trial] = []
        for draw in range(self.seed, self.seed + self.draws):
            for name in names:
                is_folder = name in FOLDER_SETS
                data = _natural(self.folders, name, prepared.manifest) if is_folder else None
                data = find_shift(name).of(clean, seed=self.seed) if data is None else data
                for shape in ("natural",) if is_folder else SHAPES:
                    found += self._cases(prepared, data, name, shape, draw)
        return found

    def _cases(self, prepared: PreparedBase, data: ImageSet, name: str, shape: str, draw: int) -> list[Trial]:
        """Return the trials of one draw of a case."""
        num_classes, found = len(data.class_names), []
        counted = np.bincount(data.labels, minlength=num_classes) / len(data)
        frequencies = counted if shape == "natural" else mixture(shape, num_classes, seed=draw)
        for n in counts_of("n", self.n):
            for m in counts_of("unlabelled", self.unlabelled):
                key = f"{prepared.manifest.digest[:12]}-{name}-{shape}-{n}-{m}-{self.n_test}-{draw}"
                file = self.work / f"{key}.json"
                if not file.exists():
                    pictures = draw_pictures(data, frequencies, n=n, m=m, n_unseen=self.n_test, seed=draw)
                    trial = try_draw(prepared, pictures, case=f"{name}, {shape}", seed=draw)
                    file.write_text(trial.model_dump_json(), encoding="utf-8")
                found.append(Trial.model_validate_json(file.read_text(encoding="utf-8")))
                logger.info("%s, %s, n = %d, m = %d, draw %d", name, shape, n, m, draw)
        return found


def _natural(root: Path, name: str, manifest: Manifest) -> ImageSet:
    return load_folder_set(root / FOLDER_SETS[name].folder, manifest.input, manifest.class_names)


def summary(found: Sequence[Trial]) -> list[dict[str, Any]]:
    """Return the means over the draws, for each case and numbers of pictures."""
    rows = []
    for key in dict.fromkeys((trial.case, trial.n, trial.m) for trial in found):
        some = [trial for trial in found if (trial.case, trial.n, trial.m) == key]
        means = {field: float(np.mean([getattr(trial, field) for trial in some])) for field in (*FIELDS, *ESTIMATES)}
        rows.append({"case": key[0], "n": key[1], "m": key[2], "draws": len(some), **means})
    return rows


def claim(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether frequencies gain in the mean where they changed, and cost about nothing where they did not."""
    changed, unchanged = (
        [_gain(row) for row in rows if ("even" in row["case"]) == is_even] for is_even in (False, True)
    )
    return float(np.mean(changed)) > 0 and float(np.mean(unchanged or [0.0])) >= -MOST_LOST


def _gain(row: Mapping[str, Any]) -> float:
    return float(row["frequencies"] - row["ladder"])


def markdown(data: Mapping[str, Any], base_set: str) -> str:
    """Return the report."""
    rows = data["cases"]
    head = ("case", "labelled", "unlabelled", "as shipped", "draw=any", "draw=fair", "gain", "taken", "promoted")
    gains = [
        (
            row["case"],
            *(str(row[key]) for key in ("n", "m")),
            *(f"{100 * row[key]:.1f}" for key in ("before", "ladder", "frequencies")),
            f"{100 * _gain(row):+.1f}",
            *(f"{100 * row[key]:.0f} %" for key in ("is_taken", "is_promoted")),
        )
        for row in rows
    ]
    titles = ("case", "labelled", "unlabelled", "even", "draw=any", "draw=fair", "held, any", "held, fair")
    estimates = [
        (
            row["case"],
            *(str(row[key]) for key in ("n", "m")),
            *(f"{row[key]:.2f}" for key in ("error_expected", "error_any", "error_fair")),
            *(f"{100 * row[key]:.0f} %" for key in ("held_any", "held_fair")),
        )
        for row in rows
    ]
    unchanged = [_gain(row) for row in rows if "even" in row["case"]]
    worth = f"Where frequencies did not change: {100 * float(np.mean(unchanged)):+.1f} points." if unchanged else ""
    made = f"draws: {data['draws']}, {data['n_test']} unseen pictures; commit {commit()}; {data['machine']}"
    return "\n".join(
        [
            "# Class frequencies",
            "",
            f"`{base_set}`, {made}.",
            "",
            "Accuracy in percent of what a search finds, labels used as any draw and as a fair one, whatever the gate",
            "says. `taken`: draws in which the rung is part of the candidate; `promoted`: what the gate lets through.",
            worth,
            "",
            *table(head, gains),
            "",
            "Error of the estimated frequencies: half the sum of the absolute errors, so 1 is the most. `even`: of",
            "even frequencies, what is known without an estimate. `held`: 95 % intervals that hold the frequency.",
            "",
            *table(titles, estimates),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(run([Frequencies], prog="python -m benchmarks.frequencies", description="Class frequencies."))
