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
    """Draw a search again from its report.json.

    Example: saucier report runs/shifted/report.json --out shifted.png
    """

    name: ClassVar[str] = "plot"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    report: ReportArgument = Field(description="report.json of a search")
    out: Path | None = Field(default=None, description="picture to write; default: beside the report, .png")

    def execute(self) -> Result:
        """Read and draw."""
        path = self.out or self.report.with_suffix(".png")
        plot_report(reports.read_report(self.report), path)
        return Result({"plot": str(path)}, str(path))
