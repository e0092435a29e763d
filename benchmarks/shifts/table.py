"""Every soup that methods choose among, run once on the pictures of a shift: what follows is arithmetic on arrays."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.documents.soup import default_soup
from adapt.evidence.scores import TEMPERATURES, Scores
from adapt.networks.forward import run_soups, score_logits, soup_logits
from adapt.networks.prepared import PreparedBase
from adapt.rungs.pool import SAME, distinct
from adapt.search.grid import Grid, finest
from adapt.search.surrogate import nodes
from benchmarks.shifts.nominal import nominal_of
from training.data import ImageSet
from training.manifest import Manifest

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Soups:
    """The soups of a base set that are compared, none twice.

    Attributes:
        coefficients: (C, M): the default soup, the affine grid, every ingredient, the uniform soup, the nodes of the
            surrogate.
        num_searched: the first so many are what a grid search looks at, in its order.
    """

    coefficients: Grid
    num_searched: int

    def find(self, row: Sequence[float] | npt.NDArray[np.float64]) -> int | None:
        """Return the position of a soup, None if it is not among these."""
        close = np.flatnonzero(np.abs(self.coefficients - np.asarray(row)).max(axis=1) < SAME)
        return int(close[0]) if len(close) else None

    def position(self, row: Sequence[float] | npt.NDArray[np.float64]) -> int:
        """Return the position of a soup that is known to be there."""
        found = self.find(row)
        assert found is not None, "the default soup, ingredients and the uniform soup are always in the table"
        return found

    def ingredients(self) -> list[int]:
        """Return the positions of the ingredients alone, in order."""
        return [self.position(row) for row in np.eye(self.coefficients.shape[1])]

    def uniform(self) -> int:
        """Return the position of the soup of equal parts."""
        num_ingredients = self.coefficients.shape[1]
        return self.position(np.full(num_ingredients, 1 / num_ingredients))


def soups_of(manifest: Manifest) -> Soups:
    """Return the soups to compare; of a large pool the finest grid that is not too large."""
    num_ingredients = len(manifest.ingredients)
    default = np.asarray([default_soup(manifest).vector(manifest)])
    grid = finest("affine", num_ingredients).points(num_ingredients)
    searched = distinct(np.concatenate([default, grid, np.eye(num_ingredients)]))
    uniform = np.full((1, num_ingredients), 1 / num_ingredients)
    return Soups(distinct(np.concatenate([searched, uniform, nodes(num_ingredients)])), len(searched))


@dataclass(frozen=True)
class Table:
    """What C soups say about n labelled pictures.

    Attributes:
        soups: which soups.
        logits: float32 (C, n, K); NaN for a soup that is not usable.
        scores: losses and hits.
        seconds_per_forward: what one picture through the network took.
        cpu_per_forward: how much of that was CPU time.
        features: float32 (n, D), what the last layer of the nominal ingredient is given, if that was kept.
    """

    soups: Soups
    logits: Tensor
    scores: Scores
    seconds_per_forward: float
    cpu_per_forward: float
    features: Tensor | None = None

    def at(self, positions: Positions) -> "Table":
        """Return the table of some of the pictures."""
        scores = Scores(self.scores.losses[:, :, positions], self.scores.correct[:, positions])
        some = torch.from_numpy(positions)
        features = None if self.features is None else self.features[some]
        return replace(self, logits=self.logits[:, some], scores=scores, features=features)


def tabulate(prepared: PreparedBase, soups: Soups, data: ImageSet, *, with_features: bool = False) -> Table:
    """Run every soup on every picture; keep the features of the nominal ingredient, one of the soups, if asked to."""
    started, started_cpu = time.perf_counter(), time.process_time()
    if with_features:
        found = run_soups(prepared, soups.coefficients, data.images)
        logits, features = found.logits, found.features[soups.ingredients()[nominal_of(prepared.manifest)]]
    else:
        logits, features = soup_logits(prepared, soups.coefficients, data.images), None
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    scores, forwards = score_logits(logits, data.labels), len(soups.coefficients) * len(data)
    return Table(soups, logits, scores, seconds / forwards, cpu_seconds / forwards, features)


def empty_table(soups: Soups, data: ImageSet, num_classes: int) -> Table:
    """Return a table of none of the soups, for methods that look nothing up."""
    n = len(data)
    scores = Scores(np.empty((0, len(TEMPERATURES), n), np.float32), np.empty((0, n), np.bool_))
    return Table(Soups(soups.coefficients[:0], 0), torch.empty(0, n, num_classes), scores, 0.0, 0.0)


def write_table(file: Path, table: Table) -> None:
    """Keep the logits of a table."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}")
    arrays: dict[str, Any] = {
        "logits": table.logits.numpy(),
        "seconds": (table.seconds_per_forward, table.cpu_per_forward),
    }
    if table.features is not None:
        arrays["features"] = table.features.numpy()
    np.savez(partial, **arrays)
    partial.replace(file)


def read_table(file: Path, soups: Soups, data: ImageSet) -> Table:
    """Return the table that was kept of these soups and pictures."""
    with np.load(file) as kept:
        logits, (seconds, cpu_seconds) = torch.from_numpy(kept["logits"]), kept["seconds"].tolist()
        features = torch.from_numpy(kept["features"]) if "features" in kept else None
    return Table(soups, logits, score_logits(logits, data.labels), seconds, cpu_seconds, features)
