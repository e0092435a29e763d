"""The `list` command: what base sets there are, and how accurate their ingredients are."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from training.bases import list_base_sets
from training.cli import Command, Result
from training.manifest import Manifest
from training.parameters import Positional

COLUMNS = ("clean", "Linf", "L2", "L1", "union")


class List(Command):
    """List the base sets below a folder.

    Example: saucier list bases
    """

    name: ClassVar[str] = "list"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    root: Annotated[Path, Positional] = Field(default=Path("bases"), description="folder of base sets")

    def execute(self) -> Result:
        """Read every manifest."""
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: expected a folder of base sets, found no such folder")
        manifests = list_base_sets(self.root)
        text = table(manifests) if manifests else f"no base set below {self.root}"
        return Result({"bases": [manifest.model_dump(mode="json") for manifest in manifests]}, text)


def table(manifests: list[Manifest]) -> str:
    """Lay out what the manifests say of their ingredients; n is that of the attacks, clean has its own."""
    titles = "".join(f"{column:>8}" for column in (*COLUMNS, "n"))
    rows = [f"{'base set':16} {'ingredient':12} {'trained against':15}{titles}"]
    for manifest in manifests:
        for ingredient in manifest.ingredients:
            threat, metrics = ingredient.threat_model, ingredient.metrics
            against = f"{threat.norm} {threat.eps:.3g}" if threat else "nothing"
            cells = [f"{metrics[column].value:8.3f}" if column in metrics else f"{'-':>8}" for column in COLUMNS]
            n = metrics["union"].n if "union" in metrics else "-"
            rows.append(f"{manifest.name:16} {ingredient.name:12} {against:15}{''.join(cells)}{n:>8}")
    return "\n".join(rows)
