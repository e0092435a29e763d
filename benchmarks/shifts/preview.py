"""`python -m benchmarks.shifts preview|list`: what the shifts are and look like."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from benchmarks.shifts.sets import clean_images
from benchmarks.shifts.sheet import contact_sheet
from benchmarks.shifts.suite import SUITE, find_shift
from training.cli import Command, Result
from training.manifest import InputSpec


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
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    def execute(self) -> Result:
        """List."""
        rows = [{"name": s.name, "family": s.family, "core_severity": s.core_severity} for s in SUITE.values()]
        lines = [f"{s.name:18} {s.family:10} core severity {s.core_severity}" for s in SUITE.values()]
        return Result({"shifts": rows}, "\n".join(lines))
