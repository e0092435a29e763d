"""`python -m benchmarks.gate`: false promotions, power, bias of what is reported, criteria, classes, wrong labels."""

import logging
import sys
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from pydantic import Field

from adapt.networks.prepared import PreparedBase
from adapt.networks.devices import thread_count
from benchmarks.gate.measure import Plan, claims, measure, summary
from benchmarks.gate.population import CLEAN, tabulate
from benchmarks.gate.report import markdown, write_report
from benchmarks.machine import machine
from benchmarks.shifts.sources import find_sources
from benchmarks.shifts.suite import SUITE
from training.bases import load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.manifest import check_mixable

logger = logging.getLogger(__name__)

FULL = Plan(n=(20, 50, 100, 300, 1000), draws=80, side_draws=10, shifts=(CLEAN, *SUITE))
QUICK = Plan(n=(20, 100), draws=20, side_draws=3, shifts=(CLEAN, "gaussian_noise", "fog", "contrast", "sketch"))


class Gate(Command):
    """Simulate thousands of adaptations on logits that are kept, and hold what they report against the truth.

    Example: python -m benchmarks.gate --quick --data .data/cifar10 --json
    """

    name: ClassVar[str] = "gate"
    base: Annotated[Path, tyro.conf.Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path = Field(default=Path(".data/cifar10"), description="CIFAR-10, or a folder with test/<class>/<file>")
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(
        default=False, description=f"{len(QUICK.shifts)} populations, n {' and '.join(map(str, QUICK.n))}, few draws"
    )
    draws: int | None = Field(default=None, ge=2, description=f"of each population and n; {FULL.draws} if not given")
    pictures: int | None = Field(default=None, ge=20, description="of each population; 2,000, quick 500")
    work: Path = Field(default=Path("runs/gate"), description="folder that keeps the logits")
    out: Path | None = Field(
        default=None, description="folder for REPORT.md and gate.png; none are written if not given"
    )
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Compute what logits are missing, draw, and report; what is claimed is in `measure.claims`."""
        base = load_base_set(self.base)
        check_mixable(base.manifest)
        plan = QUICK if self.quick else FULL
        plan = plan._replace(draws=self.draws or plan.draws)
        pictures = self.pictures or (500 if self.quick else 2000)
        sources = find_sources(self.data, None, base.manifest, size=pictures, seed=self.seed)
        folder = self.work / f"{base.manifest.name}-{base.manifest.digest[:12]}-{sources.clean.digest[:12]}"
        with thread_count(self.threads):
            tabulate(PreparedBase(base), sources, plan.shifts, folder, seed=self.seed)
            data = summary(measure(folder, plan, seed=self.seed), plan) | {"pictures": pictures, "machine": machine()}
        checked = claims(data, plan)
        options = f"{' --quick' if self.quick else ''} --pictures {pictures} --draws {plan.draws} --seed {self.seed}"
        command = f"python -m benchmarks.gate bases/{base.manifest.name}{options}"
        if self.out is not None:
            written = write_report(self.out, data, plan, checked, command)
            logger.info("wrote %s", ", ".join(str(path) for path in written))
        data["claims"] = {claim.name: claim.holds for claim in checked}
        holds = all(claim.holds for claim in checked)
        text = markdown(data, plan, checked, command)
        return Result(data, text, EXIT_DONE if holds else EXIT_CLAIM_FAILED)


if __name__ == "__main__":
    sys.exit(run([Gate], prog="python -m benchmarks.gate", description="What adaptations report, and their gate."))
