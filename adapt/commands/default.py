"""`saucier adapt default`."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from adapt.commands.common import BasesArgument, measure, progress_bar
from adapt.documents.soup import Soup, default_soup, make_soup
from adapt.evidence.scores import TEMPERATURES, choose
from adapt.images.support import Support
from adapt.networks.prepared import PreparedBase
from adapt.rungs.task import Progress, Task
from adapt.search.grid import GridKind, lattice
from adapt.search.surrogate import search_surrogate
from training.bases import load_base_set, rewrite_manifest
from training.cli import Command, Result
from training.data import ImageSet, balanced_indices, loaded
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.devices import pick_device, thread_count
from training.manifest import Manifest, check_mixable
from training.splits import DataSpec, find_splits


class DefaultCommand(Command):
    """Make the best soup on clean validation images the base set's default, and write it into its manifest.

    The manifest's digest changes with it: soups and bundles made for the old one no longer fit.

    Example: saucier adapt default bases/cifar10-small --data ~/cifar10
    """

    name: ClassVar[str] = "default"
    bases: BasesArgument = Field(description="base set, bases/<name>; its manifest is rewritten")
    data: Path | None = Field(default=None, description="folder of the training data; default: where the recipe says")
    n: int = Field(default=1000, ge=1, description="validation images to choose by, drawn evenly over the classes")
    grid: GridKind = Field(default="affine", description="affine extrapolates a little, simplex does not")
    step: float | None = Field(default=None, description="grid step; default 0.25 (affine), 0.1 (simplex)")
    device: DeviceName = Field(default=AUTO, description=DEVICE_HELP)
    threads: int | None = Field(default=None, ge=1, description="CPU threads; 1 is fastest beside other load")

    def execute(self) -> Result:
        """Choose, compare, rewrite."""
        base = load_base_set(self.bases)
        manifest = base.manifest
        check_mixable(manifest)
        points = lattice(self.grid, self.step)
        images = _validation_images(manifest, self.data, self.n, self.seed)
        prepared = PreparedBase(base, device=pick_device(self.device))
        before = default_soup(manifest)
        with thread_count(self.threads), progress_bar() as progress:
            pool = search_surrogate(_task(prepared, images, before, self.seed, progress), points)
            choice = choose(pool.scores.losses, pool.eligible)
            after = make_soup(
                manifest,
                dict(zip(manifest.ingredient_names, pool.coefficients[choice.candidate].tolist(), strict=True)),
                temperature=TEMPERATURES[choice.temperature],
            )
            found = measure(prepared, {"before": before, "after": after}, images)
        num_soups = len(pool.coefficients)
        update = {"default_coefficients": after.coefficients, "default_temperature": after.temperature}
        written = rewrite_manifest(self.bases, manifest.model_copy(update=update))
        data: dict[str, Any] = {"n": len(images), "candidates": num_soups, "digest": written.digest}
        lines = [f"best of {num_soups} soups on {len(images)} clean validation images"]
        for key, soup in (("before", before), ("after", after)):
            accuracy, loss = found[key]
            data[key] = {
                "coefficients": soup.coefficients,
                "temperature": soup.temperature,
                "accuracy": accuracy,
                "log_loss": loss,
            }
            mixture = ", ".join(f"{name} {value:g}" for name, value in soup.coefficients.items())
            lines.append(f"{key:<7} accuracy {accuracy:.4f}  log-loss {loss:.4f}  T {soup.temperature:.3g}  {mixture}")
        return Result(data, "\n".join(lines))


def _task(prepared: PreparedBase, images: ImageSet, current: Soup, seed: int, progress: Progress) -> Task:
    """Return the task of choosing among mixtures alone, with nothing held out: the images are many and clean."""
    return Task(
        network=prepared,
        support=Support(images.images, images.labels, images.hashes, images.class_names),
        unlabelled=None,
        current=current,
        bn_mode="folded",
        recalibrate=False,
        folds=None,
        weights=None,
        seed=seed,
        report=progress,
        should_stop=None,
    )


def _validation_images(manifest: Manifest, path: Path | None, n: int, seed: int) -> ImageSet:
    """Return n validation images, drawn evenly over the classes; no other image is decoded."""
    recipe = manifest.provenance.recipe.get("data")
    if not isinstance(recipe, dict):
        raise ValueError(f"base set {manifest.name!r}: its recipe does not say what data it was trained on")
    images = find_splits(DataSpec.model_validate(recipe), manifest.input, path).validation
    if images.class_names != manifest.class_names:
        raise ValueError(f"expected data with the classes {list(manifest.class_names)}, got {list(images.class_names)}")
    return loaded(images.subset(balanced_indices(images.labels, n, seed=seed)))
