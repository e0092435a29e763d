"""The `list` command: what base sets there are, and how accurate their ingredients are."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from training.bases import list_base_sets
from training.cli import Command, Result
from training.manifest import Manifest
from training.parameters import Positional

BUNDLED = Path(__file__).resolve().parent.parent / "bases"  # beside the code, in a repository or installed
COLUMNS = ("clean", "Linf", "L2", "L1", "union")


class List(Command):
    """List the base sets below a folder; by default those of `bases/` and those that come with Saucier, and where.

    Example: saucier list bases
    """

    name: ClassVar[str] = "list"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    root: Annotated[Path | None, Positional] = Field(
        default=None, description="folder of base sets; default: bases/ here, and those that come with Saucier"
    )

    def execute(self) -> Result:
        """Read every manifest."""
        if self.root is None:
            roots = dict.fromkeys(folder.resolve() for folder in (Path("bases"), BUNDLED) if folder.is_dir())
        elif self.root.is_dir():
            roots = dict.fromkeys([self.root])
        else:
            raise ValueError(f"{self.root}: expected a folder of base sets, found no such folder")
        found = {root: list_base_sets(root) for root in roots}
        texts = [_text(root, manifests) for root, manifests in found.items()]
        data = [manifest.model_dump(mode="json") for manifests in found.values() for manifest in manifests]
        return Result({"bases": data}, "\n\n".join(texts))


def _text(root: Path, manifests: list[Manifest]) -> str:
    return f"{root}\n{table(manifests)}" if manifests else f"no base set below {root}"


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
