"""The `moments` command: what a base set without BatchNorm needs before its channels can be recalibrated."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from training.bases import add_moments, load_base_set
from training.cli import Command, Result
from training.evaluate import load_images
from training.measure import moments_of
from training.parameters import Positional


class AddMoments(Command):
    """Measure how the channels of an existing base set usually look, so that it can be recalibrated without BatchNorm.

    New base sets of networks without BatchNorm have this already. The digest changes: bundle the base set again.

    Example: saucier moments bases/mine --data .data/cifar10
    """

    name: ClassVar[str] = "moments"
    folder: Annotated[Path, Positional] = Field(description="the base set; its manifest is rewritten")
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
