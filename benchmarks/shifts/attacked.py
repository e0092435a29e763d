"""`python -m benchmarks.shifts attack`: what was chosen for a shift, attacked on pictures of that shift.

An adaptation may buy accuracy with robustness, and mostly does: its report shows both.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field

from adapt.documents.soup import Soup, default_soup, make_soup
from adapt.images.support import Support
from adapt.networks.prepared import PreparedBase
from adapt.robustness.attack import classifier_of
from adapt.search.config import SearchConfig
from adapt.search.search import search
from benchmarks.machine import commit
from benchmarks.shifts.harness import draw_pictures
from benchmarks.shifts.report import reported, shown_n
from benchmarks.shifts.results import AttackedRow, Results, open_results
from benchmarks.shifts.sets import as_support
from benchmarks.shifts.sources import Sources, find_sources
from training.bases import BaseSet, load_base_set
from training.cli import Command, Result
from training.devices import thread_count
from training.evaluate import evaluation_threats
from training.images import to_input
from training.manifest import Manifest
from training.parameters import Positional
from training.robustness import evaluate_classifier

logger = logging.getLogger(__name__)


class Attack(Command):
    """Attack the soups that a finished run chose on its first draw, and every ingredient, on unseen pictures.

    Each search is repeated, which gives the same soup. Goes on where it stopped; the report then has the numbers.

    Example: python -m benchmarks.shifts attack runs/shifts --base bases/cifar10-small --data .data/cifar10
    """

    name: ClassVar[str] = "attack"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    out: Annotated[Path, Positional] = Field(description="folder of the results")
    base: Path = Field(default=Path("bases/cifar10-small"), description="base set of the results")
    data: Path = Field(default=Path(".data/cifar10"), description="pictures of the results")
    folders: Path | None = Field(default=None, description="folder of real sets, if the results have such")
    n: int = Field(default=100, ge=1, description="unseen pictures that are attacked, of each shift")
    steps: int = Field(default=10, ge=1, description="of APGD, one restart")
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Attack what is missing, and report."""
        results = open_results(self.out)
        base = load_base_set(self.base)
        settings = results.settings
        if settings.base_digest != base.manifest.digest:
            raise ValueError(f"{self.out}: expected results of {self.base}, they are of {settings.base_set!r}")
        size = max(settings.n) + settings.n_test
        sources = find_sources(self.data, self.folders, base.manifest, size=size, seed=settings.seed)
        with thread_count(self.threads):
            self._attack(results, base, sources)
        return reported(results.restricted())

    def _attack(self, results: Results, base: BaseSet, sources: Sources) -> None:
        settings, prepared, checkout = results.settings, PreparedBase(base), commit()
        threats = evaluation_threats(base.manifest)
        for shift in settings.shifts:
            if all((shift, name) in results.attacked.records for name in attacked_names(base.manifest)):
                continue
            data = sources.load(shift, seed=settings.seed)
            draw = draw_pictures(data, settings, settings.seed)
            support = as_support(data.subset(draw.support[shown_n(settings)]))
            unseen = data.subset(draw.test[: self.n])
            x, labels = torch.from_numpy(to_input(unseen.images)), torch.from_numpy(unseen.labels)
            for name, soup in _soups(prepared, support, settings.seed):
                if (shift, name) in results.attacked.records:
                    continue
                found = evaluate_classifier(
                    classifier_of(base, soup).to(memory_format=torch.channels_last),
                    x,
                    labels,
                    threats,
                    num_steps=self.steps,
                    seed=settings.seed,
                )
                row = AttackedRow(
                    shift=shift,
                    method=name,
                    n=found.n,
                    steps=self.steps,
                    accuracy=found.accuracies(),
                    commit=checkout,
                )
                results.attacked.add(row)
            logger.info("%s: attacked", shift)


def attacked_names(manifest: Manifest) -> list[str]:
    """Return the names of what is attacked: two methods, and every ingredient."""
    return ["ladder", "soup_auto", *(f"fixed_{name}" for name in manifest.ingredient_names)]


def _soups(prepared: PreparedBase, support: Support, seed: int) -> Iterator[tuple[str, Soup]]:
    """Yield what `attacked_names` names."""
    manifest = prepared.manifest
    current = default_soup(manifest)
    yield "ladder", search(prepared, support, SearchConfig(seed=seed), current=current).soup
    yield "soup_auto", search(prepared, support, SearchConfig(rungs=(), seed=seed), current=current).soup
    for row, name in zip(np.eye(len(manifest.ingredients)), manifest.ingredient_names, strict=True):
        coefficients: Mapping[str, float] = dict(zip(manifest.ingredient_names, row.tolist(), strict=True))
        yield f"fixed_{name}", make_soup(manifest, coefficients)
