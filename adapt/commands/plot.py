"""`saucier report`."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from adapt.reporting import report as reports
from adapt.reporting.plots import plot_report
from training.cli import Command, Result
from training.parameters import Positional

ReportArgument = Annotated[Path, Positional]


class PlotCommand(Command):
    """Print what a search found, from its report.json, and draw it again.

    Example: saucier report runs/shifted/report.json --out shifted.png
    """

    name: ClassVar[str] = "plot"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    report: ReportArgument = Field(description="report.json of a search")
    out: Path | None = Field(default=None, description="picture to write; default: beside the report, .png")

    def execute(self) -> Result:
        """Read and draw."""
        path = self.out or self.report.with_suffix(".png")
        report = reports.read_report(self.report)
        plot_report(report, path)
        return Result({"plot": str(path)}, f"{reports.table(report)}\nwrote {path}")
