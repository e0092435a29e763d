"""The offline stage: `python -m training data|init|run|import|convert|evaluate|moments|compress|list`."""

import sys
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import Field

from training.bases import add_moments, list_base_sets, load_base_set
from training.cli import EXIT_DONE, Command, Result, run
from training.compress import Compress
from training.compute import Compute, Tracker
from training.convert import Convert
from training.drafting import Init
from training.estimate import estimate
from training.evaluate import Evaluate, load_images
from training.fetching import Fetch
from training.importing import Import
from training.manifest import Manifest
from training.measure import moments_of
from training.recipe import load_recipe
from training.train import train


class Run(Command):
    """Train the ingredients of a recipe and write them as a base set.

    Example: python -m training run cifar10-small --out bases/mine --data .data/cifar10

    On several GPUs: accelerate launch --multi_gpu --num_processes 8 -m training run cifar10-wrn28-10 --out bases/wide
    """

    name: ClassVar[str] = "run"
    recipe: Annotated[Path, tyro.conf.Positional] = Field(description="YAML file, or the name of a bundled recipe")
    out: Path | None = Field(default=None, description="folder of the new base set; an interrupted run continues")
    data: Path | None = Field(default=None, description="data folder; default: the recipe's")
    start: Annotated[Path | None, tyro.conf.arg(name="from")] = Field(
        default=None, description="base set whose ingredients come first and may be parents of the recipe's"
    )
    weights: Path | None = Field(
        default=None, description="file of the weights to start from; default: that of the recipe's start"
    )
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(
        default=False, description="train nothing; print parameters, memory and time, measured on a few steps"
    )
    epochs_scale: float = Field(default=1.0, gt=0, description="multiplies every ingredient's epochs, for a quick try")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is one")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast, weights stay fp32")
    micro_batch: int | None = Field(
        default=None, ge=1, description="images per process and pass, to save memory; default: the process's share"
    )
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(
        default=False, description="compile the network by torch.compile; pays on GPUs and in long runs"
    )
    threads: int | None = Field(default=None, ge=1, description="torch CPU threads; default: torch's choice")
    tracker: Tracker | None = Field(default=None, description="where loss and accuracy are also sent")
    log_dir: Path = Field(default=Path("runs"), description="folder of the tracker")

    def execute(self) -> Result:
        """Train, or estimate."""
        recipe = load_recipe(self.recipe)
        ingredients = tuple(
            spec.model_copy(update={"epochs": spec.epochs * self.epochs_scale}) for spec in recipe.ingredients
        )
        recipe = recipe.model_copy(update={"ingredients": ingredients})
        compute = Compute(
            device=self.device,
            precision=self.precision,
            micro_batch=self.micro_batch,
            compiled=self.compile,
            threads=self.threads,
            tracker=self.tracker,
            log_dir=str(self.log_dir),
        )
        if self.dry_run:
            plan = estimate(recipe, data_path=self.data, weights=self.weights, compute=compute, seed=self.seed)
            return Result(plan.data(), plan.text())
        if self.out is None:
            raise ValueError("--out: expected a folder for the new base set")
        manifest = train(
            recipe,
            self.out,
            seed=self.seed,
            data_path=self.data,
            start=self.start,
            weights=self.weights,
            compute=compute,
        )
        if manifest is None:  # this process is not the first of several
            sys.exit(EXIT_DONE)
        text = f"{_table([manifest])}\nwrote {self.out}; next: python -m adapt default {self.out}"
        return Result(manifest.model_dump(mode="json"), text)


class AddMoments(Command):
    """Measure how the channels of an existing base set usually look, so that it can be recalibrated without BatchNorm.

    New base sets of networks without BatchNorm have this already. The digest changes: bundle the base set again.

    Example: python -m training moments bases/mine --data .data/cifar10
    """

    name: ClassVar[str] = "moments"
    folder: Annotated[Path, tyro.conf.Positional] = Field(description="the base set; its manifest is written anew")
    data: Path | None = Field(
        default=None,
        description="the recipe's data folder (its validation part is used), or any folder of unshifted images with "
        "one folder per class; default: where the recipe found its data",
    )

    def execute(self) -> Result:
        """Measure and write."""
        base = load_base_set(self.folder)
        images = load_images(base.manifest, self.data, part="validation")
        if (found := moments_of(base.manifest, base.state_dicts, images, seed=self.seed)) is None:
            raise ValueError(f"{self.folder}: has BatchNorm, whose statistics say this already, or no layer to move")
        manifest = add_moments(base, *found)
        assert manifest.moments is not None
        layers = len(found[0][manifest.ingredient_names[0]])
        text = (
            f"{self.folder}: moments of {layers} layers on {manifest.moments.n} images; digest {manifest.digest[:12]}"
        )
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


COMMANDS = (Fetch, Init, Run, Import, Convert, Evaluate, AddMoments, Compress, List)

if __name__ == "__main__":
    sys.exit(run(COMMANDS, prog="python -m training", description="Make base sets: the offline stage."))
