"""What the demo's adaptation gains, over seeds and cameras: the same search and decision, without the servers."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from adapt.documents.soup import Soup, default_soup, make_soup
from adapt.images.support import Support, from_images
from adapt.networks.forward import served_logits
from adapt.networks.prepared import PreparedBase
from adapt.search.config import SearchConfig
from adapt.search.search import search
from benchmarks.machine import machine
from service.demo.camera import CAMERAS, DEMO_CAMERA
from service.demo.digits import photograph_digits, train_digits
from service.demo.story import Pictures
from training.bases import load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.devices import thread_count


class Gain(Command):
    """Repeat the demo's adaptation with other seeds of training, split and noise, and with other cameras.

    Example: python -m benchmarks.gain --seeds 10 --json > runs/gain.json

    Example: python -m benchmarks.gain --recipe digits-vit --cameras dull-day haze
    """

    name: ClassVar[str] = "gain"
    seeds: int = Field(default=10, ge=1, description="how many, from --seed on; each trains its own ingredients")
    cameras: tuple[str, ...] = Field(default=tuple(CAMERAS), description="names in service/demo/camera.py")
    recipe: Literal["digits", "digits-vit"] = Field(default="digits", description="what is trained")
    work: Path = Field(default=Path("runs/gain"), description="folder that keeps the trained base sets")
    threads: int = Field(default=1, ge=1, description="CPU threads of the search")

    def execute(self) -> Result:
        """Measure; the claim is that the demo's camera gains on every seed."""
        if unknown := sorted(set(self.cameras) - set(CAMERAS)):
            raise ValueError(f"cameras: expected some of {list(CAMERAS)}, got {unknown}")
        rows: dict[str, list[Row]] = {camera: [] for camera in self.cameras}
        for seed in range(self.seed, self.seed + self.seeds):
            folder = self.work / f"{self.recipe}-{seed}"
            if not folder.exists():
                train_digits(folder, recipe=self.recipe, seed=seed)
            prepared = PreparedBase(load_base_set(folder))
            for camera in self.cameras:
                with thread_count(self.threads):
                    rows[camera].append(measure(prepared, photograph_digits(camera, seed=seed), seed=seed))
        cameras = {camera: _columns(found) for camera, found in rows.items()}
        n_test = {"n_support": rows[self.cameras[0]][0].n_support, "n_test": rows[self.cameras[0]][0].n_test}
        data = {"recipe": self.recipe, "cameras": cameras, "seeds": self.seeds, **n_test, "machine": machine()}
        holds = all(row.served > row.before for row in rows.get(DEMO_CAMERA, []))
        return Result(data, _text(data), EXIT_DONE if holds else EXIT_CLAIM_FAILED)


@dataclass(frozen=True)
class Row:
    """Accuracy on the unseen pictures of one seed: all numbers but `p_value` and the counts are fractions."""

    before: float  # the default soup
    candidate: float  # what the search found
    served: float  # what is served after the decision
    picked: float  # the ingredient with the best accuracy on the support pictures
    best_ingredient: float  # the one best on the unseen pictures themselves, which nobody can know
    is_promoted: bool
    p_value: float
    n_support: int
    n_test: int


def measure(prepared: PreparedBase, pictures: Pictures, *, seed: int) -> Row:
    """Search on the support pictures and measure on the others."""
    manifest = prepared.manifest
    support = _at_input_size(pictures, pictures.support, prepared)
    unseen = _at_input_size(pictures, pictures.test, prepared)
    current = default_soup(manifest)
    found = search(prepared, support, SearchConfig(seed=seed), current=current)
    outcome = found.outcome
    ingredients = [
        make_soup(manifest, {name: float(name == alone) for name in manifest.ingredient_names})
        for alone in manifest.ingredient_names
    ]

    def accuracy(soup: Soup) -> float:
        found = served_logits(prepared, soup, unseen.images).argmax(dim=1).numpy()
        return float((found == unseen.labels).mean())

    alone = {name: accuracy(soup) for name, soup in zip(manifest.ingredient_names, ingredients, strict=True)}
    before, candidate = accuracy(current), accuracy(found.soup)
    is_promoted = outcome.state == "promoted"
    assert outcome.accuracy is not None
    return Row(
        before=before,
        candidate=candidate,
        served=candidate if is_promoted else before,
        picked=alone[max(outcome.ingredients, key=lambda name: outcome.ingredients[name])],
        best_ingredient=max(alone.values()),
        is_promoted=is_promoted,
        p_value=outcome.accuracy.p_value,
        n_support=len(support),
        n_test=len(unseen),
    )


def _at_input_size(pictures: Pictures, chosen: npt.NDArray[np.int64], prepared: PreparedBase) -> Support:
    return from_images([pictures.files[i] for i in chosen], pictures.labels(chosen), prepared.manifest)


COLUMNS = ("before", "candidate", "served", "picked", "best_ingredient", "is_promoted", "p_value")


TITLES = ("before", "candidate", "served", "gain", "least gain", "promoted", "picked", "best alone")


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    return {column: [getattr(row, column) for row in rows] for column in COLUMNS}


def _text(data: dict[str, Any]) -> str:
    """Lay out mean and standard deviation over the seeds, in percent."""
    lines = [
        f"accuracy on {data['n_test']} unseen pictures, {data['n_support']} labelled ones; mean and std over "
        f"{data['seeds']} seeds; {data['machine']}",
        f"{'camera':10}" + "".join(f"{title:>12}" for title in TITLES),
    ]
    for camera, found in data["cameras"].items():
        gains = np.subtract(found["served"], found["before"])
        cells = [_cell(found[column]) for column in ("before", "candidate", "served")]
        cells += [_cell(gains), f"{100 * gains.min():.1f}", f"{sum(found['is_promoted'])} of {data['seeds']}"]
        cells += [_cell(found[column]) for column in ("picked", "best_ingredient")]
        lines.append(f"{camera:10}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def _cell(values: Any) -> str:
    array = 100 * np.asarray(values, dtype=np.float64)
    spread = array.std(ddof=1) if len(array) > 1 else 0.0
    return f"{array.mean():.1f} ({spread:.1f})"


if __name__ == "__main__":
    sys.exit(run([Gain], prog="python -m benchmarks.gain", description="Gain of the demo's adaptation."))
