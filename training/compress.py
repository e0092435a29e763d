"""The `compress` command: a base set of a third of the size, and what rounding its weights costs."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from training.bases import BaseSet, StateDict, load_base_set, save_base_set
from training.cli import Command, Result
from training.data import ImageSet
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.devices import pick_device
from training.evaluate import load_images
from training.fit import LOG
from training.manifest import Ingredient, Manifest, Metric, Storage
from training.measure import accuracy_of
from training.parameters import Positional
from training.storage import halve, restore, subtract


class Compress(Command):
    """Write a base set with smaller files: one ingredient in half precision, the others as int8 differences to it.

    Measures what that costs in clean accuracy, and writes nothing where it costs too much.

    Example: saucier compress bases/mine --out bases/mine-compressed --data .data/cifar10
    """

    name: ClassVar[str] = "compress"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    folder: Annotated[Path, Positional] = Field(description="the base set, in float32")
    out: Path = Field(description="folder of the new base set")
    data: Path | None = Field(
        default=None,
        description="the recipe's data folder (its test part is used), or any folder with one folder per class; "
        "default: where the recipe found its data",
    )
    keep: Literal["half", "delta"] = Field(
        default="delta", description="half: all ingredients in half precision, half the size; delta: 30 % of the size"
    )
    parent: str | None = Field(default=None, description="what the others are differences to; default: the first")
    max_loss: float = Field(default=0.2, ge=0, description="points of clean accuracy an ingredient may lose")
    device: DeviceName = Field(default=AUTO, description=DEVICE_HELP)

    def execute(self) -> Result:
        """Round, measure, write."""
        if self.out.exists() and any(self.out.iterdir()):
            raise FileExistsError(f"{self.out}: already exists; choose another --out or remove it")
        base = load_base_set(self.folder)
        parents = self._parents(base.manifest)
        images = load_images(base.manifest, self.data)
        rounded = _round(base.state_dicts, parents)
        costs = {name: self._cost(base, name, weights, images) for name, weights in rounded.items()}
        for name, cost in costs.items():
            if cost.lost > self.max_loss + 1e-9:
                raise ValueError(
                    f"{name}: rounding costs {cost.lost:.2f} points of clean accuracy (n = {len(images)}), more than "
                    f"--max-loss {self.max_loss:g}; nothing was written: try --keep half, or allow it"
                )
        entries = [_described(entry, parents[entry.name], costs[entry.name]) for entry in base.manifest.ingredients]
        manifest = base.manifest.model_copy(update={"ingredients": tuple(entries)})
        manifest = save_base_set(self.out, manifest, base.state_dicts, moments=base.moments)
        if (self.folder / LOG).is_file():
            shutil.copy(self.folder / LOG, self.out / LOG)
        before, after = (_megabytes(folder, manifest) for folder in (self.folder, self.out))
        text = f"wrote {self.out}: {after:.1f} MB instead of {before:.1f} MB; digest {manifest.digest[:12]}"
        return Result(manifest.model_dump(mode="json"), f"{_table(manifest, costs)}\n{text}")

    def _parents(self, manifest: Manifest) -> dict[str, str | None]:
        """Return, by ingredient, what it is stored as the difference to; None for half precision."""
        names = manifest.ingredient_names
        if stored := [entry.name for entry in manifest.ingredients if entry.storage is not None]:
            raise ValueError(f"{self.folder}: {stored[0]} is compressed already; compress the base set in float32")
        if self.parent is not None and self.parent not in names:
            raise ValueError(f"--parent: expected one of {list(names)}, got {self.parent!r}")
        parent = self.parent or names[0]
        return {name: None if self.keep == "half" or name == parent else parent for name in names}

    def _cost(self, base: BaseSet, name: str, rounded: StateDict, images: ImageSet) -> "Cost":
        device = str(pick_device(self.device))
        classifier = base.model(name)
        before = accuracy_of(classifier, images, device=device)
        classifier.net.load_state_dict(rounded)
        after = accuracy_of(classifier, images, device=device)
        return Cost(Metric(value=before, n=len(images)), Metric(value=after, n=len(images)))


class Cost(NamedTuple):
    """Clean accuracy of an ingredient before and after rounding, on the same images."""

    before: Metric
    after: Metric

    @property
    def lost(self) -> float:
        """Points of accuracy lost; negative where rounding gained some."""
        return 100 * (self.before.value - self.after.value)


def _round(state_dicts: Mapping[str, StateDict], parents: Mapping[str, str | None]) -> dict[str, StateDict]:
    """Return the weights by ingredient as they will be read from the new files."""
    rounded = {name: restore(halve(state_dicts[name])) for name, parent in parents.items() if parent is None}
    for name, parent in parents.items():
        if parent is not None:
            rounded[name] = restore(subtract(state_dicts[name], rounded[parent]), rounded[parent])
    return {name: rounded[name] for name in parents}


def _described(entry: Ingredient, parent: str | None, cost: Cost) -> Ingredient:
    storage = Storage(
        kind="half" if parent is None else "delta",
        parent=parent,
        original_sha256=entry.sha256,
        before=cost.before,
        after=cost.after,
    )
    return entry.model_copy(update={"storage": storage})


def _megabytes(folder: Path, manifest: Manifest) -> float:
    return sum((folder / entry.file).stat().st_size for entry in manifest.ingredients) / 1e6


def _table(manifest: Manifest, costs: Mapping[str, Cost]) -> str:
    lines = [f"clean accuracy in percent (n = {next(iter(costs.values())).before.n})"]
    lines.append(f"{'ingredient':12} {'stored as':20} {'float32':>8} {'stored':>8} {'change':>8}")
    for entry in manifest.ingredients:
        cost, parent = costs[entry.name], entry.delta_parent
        kind = "half precision" if parent is None else f"int8 + {parent}"
        before, after = 100 * cost.before.value, 100 * cost.after.value
        lines.append(f"{entry.name:12} {kind:20} {before:8.2f} {after:8.2f} {after - before:+8.2f}")
    return "\n".join(lines)
