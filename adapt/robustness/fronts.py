"""The `fronts` command: how robust the soups between ingredients are, measured by attacks and drawn."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from tqdm import tqdm

from adapt.documents.soup import BnMode
from adapt.networks.prepared import PreparedBase
from adapt.reporting.plots import plot_fronts, plot_triangle
from adapt.robustness.robust import (
    STEP,
    BaseFronts,
    Fronts,
    FrontSettings,
    Pair,
    Triangle,
    edge,
    edge_steps,
    inside,
    known_of,
    measure_soups,
    num_missing,
    read_fronts,
    write_fronts,
)
from training.bases import BaseSet, load_base_set
from training.cli import Command, Result
from training.data import ImageSet
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.devices import pick_device
from training.evaluate import APGD_LOSSES, evaluation_threats, load_images
from training.manifest import NORMS, Manifest, check_mixable
from training.parameters import Positional

logger = logging.getLogger(__name__)


class FrontsCommand(Command):
    """Attack the soups between ingredients and draw their accuracy: along every edge, and over a triangle.

    Writes fronts.png, triangle.png and fronts.json with every number; a run that was interrupted continues.

    Example: saucier adapt fronts bases/cifar10-small --data .data/cifar10 --n 500 --out runs/fronts
    """

    name: ClassVar[str] = "fronts"
    bases: Annotated[Path, Positional] = Field(description="base set, bases/<name>")
    data: Path | None = Field(default=None, description="the recipe's data folder, or test images, one folder a class")
    out: Path = Field(description="folder for pictures and numbers")
    n: int = Field(default=500, ge=1, description="test images, balanced over classes")
    compare: Path | None = Field(default=None, description="other base set, drawn dashed: other epochs, say")
    pairs: tuple[str, ...] = Field(default=(), description="edges such as linf:nominal; default: all")
    ingredients: str | None = Field(
        default=None, description="three for the heat maps, such as linf,l2,l1; default: by their threat models"
    )
    step: float = Field(default=STEP, description="of the coefficients; divides 0.25")
    steps: int = Field(default=10, ge=1, description="steps of APGD")
    bn_mode: BnMode = Field(default="folded", description="mix BatchNorm folded into the weights, or raw")
    device: DeviceName = Field(default=AUTO, description=DEVICE_HELP)
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: torch's choice")

    def execute(self) -> Result:
        """Measure what is not measured yet, draw everything."""
        bases = [load_base_set(path) for path in (self.bases, self.compare) if path is not None]
        manifests = [base.manifest for base in bases]
        check_mixable(manifests[0])
        values, pairs = edge_steps(self.step), choose_pairs(manifests, self.pairs)
        triangle = choose_triangle(manifests[0], self.ingredients)
        test = load_images(manifests[0], self.data).balanced(self.n, seed=self.seed)
        settings = FrontSettings(
            n=len(test),
            images=test.digest,
            seed=self.seed,
            num_steps=self.steps,
            losses=APGD_LOSSES,
            threat_models=evaluation_threats(manifests[0]),
            bn_mode=self.bn_mode,
        )
        path = self.out / "fronts.json"
        found = read_fronts(path, settings)
        drawn = tuple(known_of(found, manifest) for manifest in manifests)
        others = tuple(base for base in found if base.digest not in {one.digest for one in drawn})
        results = Fronts(settings=settings, pairs=pairs, steps=values, triangle=triangle, bases=drawn, others=others)
        results = self._measure(results, bases, test, path)
        write_fronts(path, results)
        pictures = plot_fronts(results, self.out / "fronts.png")
        if triangle:
            pictures.append(self.out / "triangle.png")
            plot_triangle(results, pictures[-1], step=self.step)
        data = {"pictures": list(map(str, pictures)), **results.model_dump(mode="json")}
        return Result(data, "\n".join(["wrote", *map(str, [path, *pictures])]))

    def _measure(self, results: Fronts, bases: Sequence[BaseSet], test: ImageSet, path: Path) -> Fronts:
        """Attack every soup that is needed and not known, and write the file after each."""
        edges = [soup for pair in results.pairs for soup in edge(pair, results.steps)]
        surface = inside(results.triangle, self.step) if results.triangle else []
        plans = [edges + surface, edges][: len(bases)]
        device = pick_device(self.device)
        threads = (self.threads or torch.get_num_threads()) if device.type == "cpu" else 1
        total = sum(map(num_missing, plans, results.bases))
        with tqdm(total=total, desc="attacking soups", unit="soup", disable=None) as bar:
            for position, (base, plan) in enumerate(zip(bases, plans, strict=True)):

                def keep(measured: BaseFronts, position: int = position) -> None:
                    nonlocal results
                    results = results.with_base(position, measured)
                    write_fronts(path, results)
                    bar.update()

                measure_soups(
                    PreparedBase(base, device=device),
                    plan,
                    results.bases[position],
                    test,
                    results.settings,
                    num_threads=threads,
                    on_soup=keep,
                )
        return results


def choose_pairs(manifests: Sequence[Manifest], given: Sequence[str]) -> tuple[Pair, ...]:
    """Return the edges to draw: those given as "first:second", or all between ingredients that every base set has.

    Raises:
        ValueError: base sets with other inputs or classes, fewer than two common ingredients, or an unknown one.
    """
    first = manifests[0]
    for other in manifests[1:]:
        ours, theirs = ((one.input.height, one.input.width, one.class_names) for one in (first, other))
        if ours != theirs:
            raise ValueError(f"--compare: expected a base set with the input size and classes of {first.name!r}")
    names = [name for name in first.ingredient_names if all(name in one.ingredient_names for one in manifests)]
    if len(names) < 2:
        raise ValueError(f"--compare: expected two ingredients that both base sets have, found {names}")
    if not given:
        return tuple(itertools.combinations(names, 2))
    pairs = []
    for text in given:
        start, _, end = text.partition(":")
        if start not in names or end not in names or start == end:
            raise ValueError(f"--pairs: expected first:second with two of {names}, got {text!r}")
        pairs.append((start, end))
    return tuple(dict.fromkeys(pairs))


def choose_triangle(manifest: Manifest, given: str | None) -> Triangle | None:
    """Return the corners given as "a,b,c", or the first ingredient trained against each of Linf, L2 and L1.

    Without any of these and none given, there is no triangle.

    Raises:
        ValueError: not three different ingredients.
    """
    names = manifest.ingredient_names
    if given is not None:
        corners = tuple(name.strip() for name in given.split(","))
        if len(corners) != 3 or len(set(corners)) != 3 or not set(corners) <= set(names):
            raise ValueError(f"--ingredients: expected three of {list(names)}, got {given!r}")
        return corners[0], corners[1], corners[2]
    first: dict[str, str] = {}
    for ingredient in manifest.ingredients:
        if ingredient.threat_model is not None:
            first.setdefault(ingredient.threat_model.norm, ingredient.name)
    if missing := [norm for norm in NORMS if norm not in first]:
        logger.info("no heat maps: no ingredient was trained against %s alone", " or ".join(missing))
        return None
    return first["Linf"], first["L2"], first["L1"]
