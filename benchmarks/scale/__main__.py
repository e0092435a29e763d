"""`python -m benchmarks.scale`: what networks from 3 to 90 million weights cost on two cores."""

import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from benchmarks.machine import machine
from benchmarks.scale.measure import MANY, Plan, limited_to, measure, memory_of_workers
from benchmarks.scale.networks import ROWS, check_rows, find_base_set, make_small_base_set, row_name
from benchmarks.scale.report import aims, markdown, with_worker
from deploy.bundle import build_bundle
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run

logger = logging.getLogger(__name__)


class Scale(Command):
    """Measure bundle, memory, swap, predictions and an adaptation of several networks on a real server.

    Takes about half an hour and, for vit-b16, about 10 GB of memory and 4 GB of disk.

    Example: python -m benchmarks.scale --rows photos resnet50 --out runs/scale
    """

    name: ClassVar[str] = "scale"
    rows: tuple[str, ...] = Field(default=ROWS, description=f"some of {', '.join(ROWS)}, or folders of base sets")
    out: Path | None = Field(default=None, description="folder for REPORT.md and results.json; none if not given")
    work: Path | None = Field(
        default=None, description="folder for base sets and bundles while they are measured; default: the system's"
    )
    cores: int = Field(default=2, ge=1, description="cores that everything runs on, where there are more")
    seconds: float = Field(default=10, gt=0, description="length of each load, at least")
    answers: int = Field(default=100, ge=1, description="answers in each load, at least")
    swaps: int = Field(default=5, ge=1, description="swaps, and so many under load")
    n: int = Field(default=100, ge=1, description="labelled images of the adaptation")
    adapt_seconds: float = Field(default=900, gt=0, description="after which an adaptation is given up")
    quick: bool = Field(default=False, description="little of everything, to see that it works")

    def execute(self) -> Result:
        """Measure one row after the other."""
        logging.getLogger("httpx").setLevel(logging.WARNING)
        check_rows(self.rows)
        plan = Plan(self.seconds, self.answers, self.swaps, self.n, self.adapt_seconds, self.cores)
        if self.quick:
            plan = plan._replace(seconds=1.0, answers=20, swaps=2, n=20)
        with limited_to(self.cores):
            bare = self._bare_worker()
            rows = {row_name(row): with_worker(self._measure(row, plan), bare) for row in self.rows}
            data: dict[str, Any] = {"rows": rows, "bare_worker_mib": bare, "cores": self.cores, "quick": self.quick}
            data |= {"machine": machine(), "aims": aims(rows)}
        text = markdown(data, self._command())
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "REPORT.md").write_text(text, encoding="utf-8")
            (self.out / "results.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        holds = all(aim["holds"] is not False for aim in data["aims"])
        return Result(data, text, EXIT_DONE if holds else EXIT_CLAIM_FAILED)

    def _bare_worker(self) -> float:
        """Return the private memory of a worker with next to no network, in MiB."""
        with tempfile.TemporaryDirectory(prefix="saucier-", dir=self.work) as name:
            small = make_small_base_set(Path(name), seed=self.seed)
            bundle = build_bundle(small, Path(name) / "bundles")
            return memory_of_workers(small, bundle, Path(name), MANY)["private"]

    def _measure(self, row: str, plan: Plan) -> dict[str, Any]:
        logger.info("measuring %s", row)
        with tempfile.TemporaryDirectory(prefix="saucier-", dir=self.work) as name:
            base = find_base_set(row, Path(name), seed=self.seed)
            return measure(base, Path(name), plan, seed=self.seed)

    def _command(self) -> str:
        if self.quick:
            return f"python -m benchmarks.scale --rows {' '.join(self.rows)} --cores {self.cores} --quick"
        return (
            f"python -m benchmarks.scale --rows {' '.join(self.rows)} --cores {self.cores} --seconds {self.seconds:g} "
            f"--answers {self.answers} --swaps {self.swaps} --n {self.n} --adapt-seconds {self.adapt_seconds:g}"
        )


if __name__ == "__main__":
    sys.exit(run([Scale], prog="python -m benchmarks.scale", description="Cost of networks of other sizes."))
