"""`python -m benchmarks.gate`: false promotions, many looks, power and bias of the gate, through `search` itself."""

import logging
import sys
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from benchmarks.gate.draws import read_draws, write_draws
from benchmarks.gate.measure import Plan, measure
from benchmarks.gate.records import Origin, Records
from benchmarks.gate.report import markdown, write_report
from benchmarks.gate.summary import claims, summary
from benchmarks.shifts.suite import SUITE
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.parameters import Positional

logger = logging.getLogger(__name__)

Part = Literal["null", "looks", "real", "continual"]
PARTS: tuple[Part, ...] = ("null", "looks", "real", "continual")
FULL = Plan(
    n=(20, 50, 100, 300, 1000),
    draws=2000,
    looks=600,
    shifts=tuple(SUITE),
    real_n=(20, 50, 100, 300, 1000),
    real_draws=4,
    portions=(20, 100),
    portion_shifts=("gaussian_noise", "defocus_blur", "fog", "contrast", "pixelate"),
)
QUICK = Plan(
    n=(20, 100),
    draws=100,
    looks=25,
    shifts=("gaussian_noise", "fog", "contrast", "inversion", "sketch"),
    real_n=(20, 100),
    real_draws=1,
    portions=(20,),
    portion_shifts=("fog",),
)
DRAWS = Path(__file__).parents[2] / "docs/results/gate/draws.jsonl.xz"  # the committed draws of the full run


class Gate(Command):
    """Simulate adaptations through the search itself, and hold what they report against the truth.

    Only the parts real and continual need pictures. A run continues where an earlier one with the same --work stopped.
    Without one, a full run starts from docs/results/gate/draws.jsonl.xz, if its base set and seed are the same.

    Example: python -m benchmarks.gate --quick --data .data/cifar10 --json
    """

    name: ClassVar[str] = "gate"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path = Field(default=Path(".data/cifar10"), description="CIFAR-10, or a folder with test/<class>/<file>")
    parts: tuple[Part, ...] = Field(default=PARTS, description="what to draw; everything drawn before is reported, too")
    quick: bool = Field(default=False, description="few draws: at most five minutes with --jobs 2")
    minutes: float | None = Field(default=None, gt=0, description="start no new draws after this time")
    jobs: int = Field(default=1, ge=1, description="processes, each with one thread")
    work: Path = Field(default=Path("runs/gate"), description="folder that keeps the draws")
    out: Path | None = Field(
        default=None, description="folder for REPORT.md, results.json and gate.png; of a full run also draws.jsonl.xz"
    )

    def execute(self) -> Result:
        """Draw what is missing, and report; what is claimed is in `summary.claims`."""
        plan = QUICK if self.quick else FULL
        origin = Origin(self.base.name, self.seed)
        records = Records(self.work / ("quick.jsonl" if self.quick else "full.jsonl"), origin)
        if not self.quick and not len(records) and (drawn := read_draws(DRAWS, origin)):
            logger.info("starting from the %d draws of %s", len(drawn), DRAWS)
            records.add(drawn)
        measure(
            plan,
            records,
            self.parts,
            base=self.base,
            data=self.data,
            seed=self.seed,
            jobs=self.jobs,
            minutes=self.minutes,
        )
        data = summary(records, bound="lower" if self.quick else "upper")
        command = f"python -m benchmarks.gate {self.base}{' --quick' if self.quick else ''} --seed {self.seed}"
        if self.out is not None:
            paths = write_report(self.out, data, command)
            if not self.quick:
                paths.append(self.out / DRAWS.name)
                write_draws(paths[-1], records, origin)
            for path in paths:
                logger.info("wrote %s", path)
        checked = claims(data)
        holds = bool(checked) and all(checked.values())
        return Result({**data, "claims": checked}, markdown(data, command), EXIT_DONE if holds else EXIT_CLAIM_FAILED)


if __name__ == "__main__":
    sys.exit(run([Gate], prog="python -m benchmarks.gate", description="How sure the gate is."))
