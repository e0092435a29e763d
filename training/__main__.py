"""Command line of the offline stage: `python -m training run|import|evaluate|list`."""

import sys
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from pydantic import Field

from training.bases import list_base_sets
from training.cli import Command, Result, run
from training.evaluate import Evaluate
from training.importing import Import
from training.manifest import Manifest
from training.recipe import load_recipe
from training.train import train


class Run(Command):
    """Train the ingredients of a recipe and write them as a base set.

    Example: python -m training run cifar10-small --out bases/mine --data .data/cifar10
    """

    name: ClassVar[str] = "run"
    recipe: Annotated[Path, tyro.conf.Positional] = Field(description="YAML file, or the name of a bundled recipe")
    out: Path = Field(description="folder of the new base set; an interrupted run continues")
    data: Path | None = Field(default=None, description="data folder; default: the recipe's")
    epochs_scale: float = Field(default=1.0, gt=0, description="multiplies every ingredient's epochs, for a quick try")
    device: str = Field(default="cpu", description="torch device: cpu, cuda, cuda:1, ...")

    def execute(self) -> Result:
        """Train."""
        recipe = load_recipe(self.recipe)
        ingredients = tuple(
            spec.model_copy(update={"epochs": spec.epochs * self.epochs_scale}) for spec in recipe.ingredients
        )
        recipe = recipe.model_copy(update={"ingredients": ingredients})
        manifest = train(recipe, self.out, seed=self.seed, data_path=self.data, device=self.device)
        text = f"{_table([manifest])}\nwrote {self.out}; next: python -m adapt default {self.out}"
        return Result(manifest.model_dump(mode="json"), text)


class List(Command):
    """List the base sets below a folder.

    Example: python -m training list bases
    """

    name: ClassVar[str] = "list"
    root: Annotated[Path, tyro.conf.Positional] = Field(default=Path("bases"), description="folder of base sets")

    def execute(self) -> Result:
        """Read every manifest."""
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: expected a folder of base sets, found no such folder")
        manifests = list_base_sets(self.root)
        text = _table(manifests) if manifests else f"no base set below {self.root}"
        return Result({"bases": [manifest.model_dump(mode="json") for manifest in manifests]}, text)


COLUMNS = ("clean", "Linf", "L2", "L1", "union")


def _table(manifests: list[Manifest]) -> str:
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


COMMANDS = (Run, Import, Evaluate, List)

if __name__ == "__main__":
    sys.exit(run(COMMANDS, prog="python -m training", description="Make base sets: the offline stage."))
