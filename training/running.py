"""The `run` command: train a recipe, or say what that would take."""

import sys
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from training.cli import EXIT_DONE, Command, Result
from training.compute import Compute, Tracker
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.estimate import estimate
from training.listing import table
from training.parameters import Arg, Positional
from training.recipe import load_recipe
from training.train import train


class Run(Command):
    """Train the ingredients of a recipe and write them as a base set.

    Example: saucier train cifar10-small --out bases/mine --data .data/cifar10

    On several GPUs: accelerate launch --multi_gpu --num_processes 8 -m training run cifar10-wrn28-10 --out bases/wide
    """

    name: ClassVar[str] = "run"
    recipe: Annotated[Path, Positional] = Field(description="YAML file, or the name of a bundled recipe")
    out: Path | None = Field(default=None, description="folder of the new base set; an interrupted run continues")
    data: Path | None = Field(default=None, description="data folder; default: the recipe's")
    start: Annotated[Path | None, Arg(name="from")] = Field(
        default=None, description="base set whose ingredients come first and may be parents of the recipe's"
    )
    weights: Path | None = Field(
        default=None, description="file of the weights to start from; default: that of the recipe's start"
    )
    dry_run: bool = Field(
        default=False, description="train nothing; print parameters, memory and time, measured on a few steps"
    )
    epochs_scale: float = Field(default=1.0, gt=0, description="multiplies every ingredient's epochs, for a quick try")
    device: DeviceName = Field(default=AUTO, description=DEVICE_HELP)
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast, weights stay fp32")
    micro_batch: int | None = Field(
        default=None, ge=1, description="images per process and pass, to save memory; default: the process's share"
    )
    compile: bool = Field(
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
        text = f"{table([manifest])}\nwrote {self.out}; next: saucier adapt default {self.out}"
        return Result(manifest.model_dump(mode="json"), text)
