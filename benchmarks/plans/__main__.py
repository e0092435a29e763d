"""`python -m benchmarks.plans`: ways to train all weights on a few labelled pictures, against each other."""

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from adapt.networks.prepared import PreparedBase
from adapt.rungs.site import SHARES
from benchmarks.machine import commit, machine
from benchmarks.plans.measure import VARIANTS, Record, measure, quick_soup
from benchmarks.shifts.lines import Lines
from benchmarks.shifts.sets import draw, load_folder_set
from benchmarks.tables import table
from training.bases import load_base_set
from training.cli import EXIT_DONE, Command, Result, run
from training.devices import thread_count
from training.parameters import Positional

logger = logging.getLogger(__name__)

QUICK = "quick search"


class Plans(Command):
    """Train all weights in several ways from what a quick search finds; compare them on unseen pictures.

    Example: python -m benchmarks.plans bases/photos --folders .data/pacs/sketch .data/pacs/cartoon --draws 2
    """

    name: ClassVar[str] = "plans"
    base: Annotated[Path, Positional] = Field(default=Path("bases/photos"), description="base set")
    folders: tuple[Path, ...] = Field(description="domains, each a folder of <class>/<file>")
    variants: tuple[str, ...] = Field(default=tuple(VARIANTS), description="ways to train, by name")
    n: int = Field(default=100, ge=10, description="labelled pictures")
    draws: int = Field(default=1, ge=1, description="of each domain, from --seed on")
    n_test: int = Field(default=500, ge=10, description="unseen pictures")
    out: Path = Field(default=Path("runs/plans"), description="folder of results and REPORT.md; a run there goes on")
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Measure what is missing, and report."""
        if unknown := sorted(set(self.variants) - set(VARIANTS)):
            raise ValueError(f"variants: expected some of {', '.join(VARIANTS)}; got {unknown[0]!r}")
        self.out.mkdir(parents=True, exist_ok=True)
        prepared = PreparedBase(load_base_set(self.base))
        with thread_count(self.threads):
            found = list(self._measure(prepared))
        data = summary(found) | {"machine": machine(), "commit": commit()}
        text = markdown(data, self)
        (self.out / "REPORT.md").write_text(text, encoding="utf-8")
        return Result(data, text, EXIT_DONE)

    def _measure(self, prepared: PreparedBase) -> Iterator[Record]:
        """Yield the record of every training; those that are there already are not measured again."""
        lines, manifest = Lines(self.out / "plans.jsonl", Record), prepared.manifest
        for seed in range(self.seed, self.seed + self.draws):
            for folder in self.folders:
                about = {"base_digest": manifest.digest, "domain": folder.name, "draw": seed}
                keys = {
                    variant: (manifest.digest, folder.name, self.n, seed, self.n_test, variant)
                    for variant in self.variants
                }
                if any(key not in lines.records for key in keys.values()):
                    data = load_folder_set(folder, manifest.input, manifest.class_names)
                    support, test = draw(data, n_support=self.n, n_test=self.n_test, seed=seed)
                    soup = quick_soup(prepared, support, seed)
                for variant, key in keys.items():
                    if key not in lines.records:
                        lines.add(measure(prepared, soup, support, test, variant, **about))
                        logger.info("%s, draw %d, %s", folder.name, seed, variant)
                    yield lines.records[key]


def summary(found: Sequence[Record]) -> dict[str, Any]:
    """Return mean accuracies by domain, variant and share."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for domain in dict.fromkeys(record.domain for record in found):
        of_domain = [record for record in found if record.domain == domain]
        rows[domain] = {QUICK: {"0": float(np.mean([record.quick for record in of_domain]))}}
        for variant in dict.fromkeys(record.variant for record in of_domain):
            some = [record.shares for record in of_domain if record.variant == variant]
            rows[domain][variant] = {share: float(np.mean([shares[share] for shares in some])) for share in some[0]}
    return {"accuracy": rows, "trainings": len(found)}


def markdown(data: dict[str, Any], asked: Plans) -> str:
    """Return the report."""
    lines = [
        "# Ways to train all weights",
        "",
        f"Command: `python -m benchmarks.plans {asked.base} --folders {' '.join(map(str, asked.folders))} "
        f"--n {asked.n} --draws {asked.draws} --n-test {asked.n_test} --seed {asked.seed}`, at commit "
        f"{data['commit']}.",
        "",
        f"{asked.n} labelled pictures; accuracy in percent on {asked.n_test} unseen ones, mean over draws. Every "
        "training starts from what a quick search finds; columns are shares of the way to the trained weights.",
        "",
        f"Machine: {data['machine']}",
    ]
    for domain, rows in data["accuracy"].items():
        cells = [
            [name, *(f"{100 * found[f'{share:g}']:.1f}" if f"{share:g}" in found else "" for share in (0, *SHARES))]
            for name, found in rows.items()
        ]
        lines += ["", f"## {domain}", "", *table(("training", *(f"{share:g}" for share in (0, *SHARES))), cells)]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(run([Plans], prog="python -m benchmarks.plans", description="Ways to train all weights."))
