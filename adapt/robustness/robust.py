"""Many soups under attack: which ones a picture needs, their accuracy, and the file that keeps the numbers."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from adapt.documents.soup import BnMode
from adapt.networks.forward import BATCH_PIXELS, MIN_BATCH
from adapt.networks.prepared import PreparedBase
from adapt.search.grid import simplex
from training.data import ImageSet
from training.documents import Frozen
from training.files import replace_file
from training.manifest import NORMS, Manifest, Norm, ThreatModel
from training.models import Classifier
from training.robustness import LogitsNotFinite, as_input, evaluate_classifier

LOW, HIGH = -0.25, 1.25  # of the coefficient along an edge
STEP = 0.125  # along edges and in the triangle, so that soups on the triangle's edges are measured once
Pair = tuple[str, str]
Triangle = tuple[str, str, str]
Fraction = Annotated[float, Field(ge=0, le=1)]


class FrontSettings(Frozen):
    """The settings that decide an accuracy, besides base set and soup."""

    n: int = Field(description="number of test images")
    images: str = Field(description="digest of them")
    seed: int = Field(description="of the choice of images and of the attacks' random starts")
    num_steps: int = Field(description="steps of APGD, in evaluation mode with one restart")
    losses: dict[Norm, str]
    threat_models: tuple[ThreatModel, ...]
    bn_mode: BnMode


class SoupAccuracy(Frozen):
    """One soup under attack."""

    coefficients: dict[str, float]
    accuracy: dict[str, Fraction] | None = Field(
        description='"clean", each norm and "union", fractions; null where the soup cannot be used'
    )


class BaseFronts(Frozen):
    """All soups of a base set that were attacked."""

    base_set: str
    digest: str
    epochs: dict[str, float] = Field(description="of each ingredient's training, where its recipe says")
    soups: tuple[SoupAccuracy, ...] = ()

    def at(self, coefficients: dict[str, float]) -> dict[str, float] | None:
        """Return the accuracies of a soup, by what its ingredients have; null where not measured or not usable."""
        wanted = _key(coefficients)
        return next((soup.accuracy for soup in self.soups if _key(soup.coefficients) == wanted), None)


class Fronts(Frozen):
    """`fronts.json`: every number of the pictures. A run that was interrupted goes on from it."""

    format_version: Literal[1] = 1
    settings: FrontSettings
    pairs: tuple[Pair, ...] = Field(description="edges that are drawn: (1 - c) of the first, c of the second")
    steps: tuple[float, ...] = Field(description="the values of c")
    triangle: Triangle | None = Field(description="corners of the heat maps; null for none")
    bases: tuple[BaseFronts, ...] = Field(description="the base set; then the one it is compared with, if any")
    others: tuple[BaseFronts, ...] = Field(default=(), description="measured by earlier runs and not drawn now")

    def with_base(self, position: int, measured: BaseFronts) -> "Fronts":
        """Return a copy with other results of the base set at this position."""
        return self.model_copy(update={"bases": (*self.bases[:position], measured, *self.bases[position + 1 :])})


def edge(pair: Pair, steps: Iterable[float]) -> list[dict[str, float]]:
    """Return the soups  (1 - c) first + c second."""
    return [{pair[0]: 1 - c, pair[1]: c} for c in steps]


def edge_steps(step: float = STEP) -> tuple[float, ...]:
    """Return c from -0.25 to 1.25, 0 and 1 among them.

    Raises:
        ValueError: the step does not divide 0.25.
    """
    parts = round(0.25 / step) if 0 < step <= 0.25 else 0
    if not parts or abs(parts * step - 0.25) > 1e-9:
        raise ValueError(f"expected a step that divides 0.25 (0.25, 0.125, 0.05, ...), got {step:g}")
    return tuple(index / (4 * parts) for index in range(-parts, 5 * parts + 1))


def inside(corners: Triangle, step: float = STEP) -> list[dict[str, float]]:
    """Return the soups of a simplex lattice over three ingredients."""
    return [dict(zip(corners, row, strict=True)) for row in simplex(3, step).tolist()]


def known_of(found: Sequence[BaseFronts], manifest: Manifest) -> BaseFronts:
    """Return what was found of this base set earlier, or an empty record of it."""
    empty = BaseFronts(base_set=manifest.name, digest=manifest.digest, epochs=epochs_of(manifest))
    return next((base for base in found if base.digest == manifest.digest), empty)


def epochs_of(manifest: Manifest) -> dict[str, float]:
    """Return how many epochs each ingredient was trained, where the recipe says."""
    specs = manifest.provenance.recipe.get("ingredients")
    found = {}
    for spec in specs if isinstance(specs, list) else []:
        if isinstance(spec, dict) and isinstance(epochs := spec.get("epochs"), int | float):
            found[str(spec.get("name"))] = float(epochs)
    return {name: found[name] for name in manifest.ingredient_names if name in found}


def read_fronts(path: Path, settings: FrontSettings) -> tuple[BaseFronts, ...]:
    """Return what an earlier run measured with the same settings; nothing if there was none.

    Raises:
        ValueError: malformed, or of other settings.
    """
    try:
        found = Fronts.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected the results of `fronts`, {' '.join(str(error).split())[:200]}") from None
    for name in FrontSettings.model_fields:
        theirs, ours = getattr(found.settings, name), getattr(settings, name)
        if theirs != ours:
            raise ValueError(f"{path}: has results for {name} {theirs}, not {ours}; choose another --out or remove it")
    return (*found.bases, *found.others)


def write_fronts(path: Path, fronts: Fronts) -> None:
    """Write `fronts.json`; an older one stays intact until the new one is whole on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda partial: partial.write_text(fronts.model_dump_json(indent=1) + "\n", encoding="utf-8"))


def measure_soups(
    prepared: PreparedBase,
    wanted: Sequence[dict[str, float]],
    known: BaseFronts,
    images: ImageSet,
    settings: FrontSettings,
    *,
    num_threads: int = 1,
    on_soup: Callable[[BaseFronts], None],
) -> BaseFronts:
    """Attack the soups that are not yet known and return them with those that are.

    Every soup meets the same random starts, so that neighbours on a front differ by their weights only.

    Args:
        prepared: the base set.
        wanted: coefficients by ingredient; those left out are 0. Repeats are measured once.
        known: what was measured before.
        images: at the network's input size.
        settings: of the attack.
        num_threads: batches attacked at a time, each on one core. Changes no result.
        on_soup: called after each soup with everything known so far.
    """
    names = prepared.manifest.ingredient_names
    model = prepared.model(settings.bn_mode)
    classifier = Classifier(model.net, prepared.manifest.input)
    x, y = as_input(images)
    seen = {_key(soup.coefficients) for soup in known.soups}
    for coefficients in wanted:
        if _key(coefficients) in seen:
            continue
        seen.add(_key(coefficients))
        full = {name: float(coefficients.get(name, 0.0)) for name in names}
        accuracy = None
        if model.usable(torch.tensor([list(full.values())], dtype=torch.float64))[0]:
            model.set(list(full.values()))
            with suppress(LogitsNotFinite):
                accuracy = evaluate_classifier(
                    classifier,
                    x,
                    y,
                    settings.threat_models,
                    num_steps=settings.num_steps,
                    device=str(prepared.device),
                    batch_size=_batch_size(prepared, images),
                    num_threads=num_threads,
                    seed=settings.seed,
                    random_starts=random_starts,
                ).accuracies()
        soups = (*known.soups, SoupAccuracy(coefficients=full, accuracy=accuracy))
        known = known.model_copy(update={"soups": soups})
        on_soup(known)
    return known


def num_missing(wanted: Iterable[dict[str, float]], known: BaseFronts) -> int:
    """Return how many soups `measure_soups` would have to attack."""
    return len({_key(coefficients) for coefficients in wanted} - {_key(soup.coefficients) for soup in known.soups})


def _key(coefficients: dict[str, float]) -> frozenset[tuple[str, float]]:
    return frozenset((name, round(value, 9)) for name, value in coefficients.items() if abs(value) > 1e-9)


def random_starts(seed: int, norm: Norm, start: int, number: int) -> int:
    """Return the seed of the random starts on a batch: not the one of `training`, but that of results already kept."""
    return int(np.random.SeedSequence([seed, NORMS.index(norm), start]).generate_state(1)[0])


def _batch_size(prepared: PreparedBase, images: ImageSet) -> int:
    height, width = images.images.shape[1:3]
    size: int = max(MIN_BATCH, BATCH_PIXELS["cuda" if prepared.device.type == "cuda" else "cpu"] // (height * width))
    return size
