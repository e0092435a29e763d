"""What is compared: each method turns a few labelled pictures into answers about unseen ones.

To add one, write a function from `Context` to `Answer` and enter it in `METHODS`. No method is shown the labels of
unseen pictures. What cannot be told from one shift's labelled pictures is in `HINDSIGHT`, chosen afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.evaluation import PreparedBase, soup_logits
from adapt.score import choose
from adapt.search import search
from adapt.soup import default_soup
from adapt.support import Support
from benchmarks.shifts.table import Soups, Table
from training.manifest import Manifest

EM_STEPS = 2000
EM_TOLERANCE = 1e-7  # largest change of a weight at which the fit has settled


@dataclass(frozen=True)
class Context:
    """What a method may use.

    Attributes:
        prepared: the base set.
        support: the labelled pictures.
        seed: of the method's own random choices.
        table: the logits and scores of many soups on the labelled pictures.
    """

    prepared: PreparedBase
    support: Support
    seed: int
    table: Table


class Unseen(NamedTuple):
    """Pictures to answer: uint8 (t, H, W, 3), and what the table's soups say about them, (C, t, K)."""

    images: npt.NDArray[np.uint8]
    logits: Tensor


@dataclass(frozen=True)
class Answer:
    """What a method made of the labelled pictures, and what that cost.

    Attributes:
        predict: returns logits, or log-probabilities, (t, K).
        forwards: pictures through the network for adapting.
        is_tabled: these forwards were looked up: the time they would have taken is to be added.
        passes: networks that each unseen picture goes through.
        coefficients: of the soup, if it is one.
    """

    predict: Callable[[Unseen], Tensor]
    forwards: int = 0
    is_tabled: bool = True
    passes: int = 1
    coefficients: tuple[float, ...] | None = None


Method = Callable[[Context], Answer]


def soup_grid(context: Context) -> Answer:
    """Choose the soup of the whole grid with the least tempCE."""
    table = context.table
    searched = table.soups.num_searched
    position = choose(table.scores.losses[:searched]).candidate
    return _tabled(table.soups, position, forwards=searched * len(context.support))


def soup_auto(context: Context) -> Answer:
    """Search as the service does, and take the candidate whatever the gate says.

    The search runs for real, not on the table: its cost is measured, and its choice is what a user would get.
    """
    manifest = context.prepared.manifest
    found = search(
        context.prepared, context.support, current=default_soup(manifest), strategy="auto", seed=context.seed
    )
    row = tuple(found.soup.vector(manifest))
    position = context.table.soups.find(row)

    def predict(unseen: Unseen) -> Tensor:
        if position is not None:
            return unseen.logits[position]
        return soup_logits(context.prepared, np.asarray([row]), unseen.images)[0]

    return Answer(predict, found.outcome.search.image_forwards, is_tabled=False, coefficients=row)


def soup_uniform(context: Context) -> Answer:
    """Mix all ingredients in equal parts."""
    return _tabled(context.table.soups, context.table.soups.uniform())


def picked(context: Context) -> Answer:
    """Pick the ingredient with the least tempCE."""
    ingredients = context.table.soups.ingredients()
    best = choose(context.table.scores.losses[ingredients]).candidate
    return _tabled(context.table.soups, ingredients[best], forwards=len(ingredients) * len(context.support))


def fixed(context: Context, *, ingredient: int) -> Answer:
    """Take an ingredient as it is."""
    return _tabled(context.table.soups, context.table.soups.ingredients()[ingredient])


def ensemble(context: Context) -> Answer:
    """Average the probabilities of all ingredients."""
    ingredients = context.table.soups.ingredients()
    return _mixture(ingredients, np.full(len(ingredients), 1 / len(ingredients)), forwards=0)


def ensemble_weighted(context: Context) -> Answer:
    """Average the ingredients' probabilities with the weights of least log-loss on the labelled pictures."""
    ingredients = context.table.soups.ingredients()
    log_probabilities = context.table.logits[ingredients].double().log_softmax(dim=2).numpy()
    of_labels = log_probabilities[:, np.arange(len(context.support)), context.support.labels]
    return _mixture(ingredients, fit_mixture(of_labels), forwards=len(ingredients) * len(context.support))


METHODS: Mapping[str, Method] = {
    "soup_grid": soup_grid,
    "soup_auto": soup_auto,
    "soup_uniform": soup_uniform,
    "picked": picked,
    "ensemble": ensemble,
    "ensemble_weighted": ensemble_weighted,
}


def methods_of(manifest: Manifest) -> dict[str, Method]:
    """Return the methods for a base set by name, with one for each ingredient taken as it is."""
    alone = {f"fixed_{name}": partial(fixed, ingredient=index) for index, name in enumerate(manifest.ingredient_names)}
    return {**METHODS, **alone}


def fit_mixture(log_probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the weights (M,) on the simplex with the greatest  sum_i log sum_m w_m p_m(y_i).

    A concave problem; expectation and maximisation climb to its top from equal weights, and never step down.

    Args:
        log_probabilities: (M, n) log p_m(y_i) of every image's label.

    Source: Dempster, Laird, Rubin, J. R. Statist. Soc. B 39, 1977, sec. 4.3, with the components held fixed.
    """
    likelihoods = np.exp(log_probabilities - log_probabilities.max(axis=0))
    weights = np.full(len(likelihoods), 1 / len(likelihoods))
    for _ in range(EM_STEPS):
        shares = weights[:, None] * likelihoods
        updated = np.asarray((shares / shares.sum(axis=0)).mean(axis=1))
        if np.abs(updated - weights).max() < EM_TOLERANCE:
            return updated
        weights = updated
    return weights


def _tabled(soups: Soups, position: int, *, forwards: int = 0) -> Answer:
    row = tuple(float(value) for value in soups.coefficients[position])
    return Answer(lambda unseen: unseen.logits[position], forwards, coefficients=row)


def _mixture(members: list[int], weights: npt.NDArray[np.float64], *, forwards: int) -> Answer:
    shares = torch.from_numpy(weights).view(-1, 1, 1)

    def predict(unseen: Unseen) -> Tensor:
        return (shares * unseen.logits[members].double().softmax(dim=2)).sum(dim=0).log()

    return Answer(predict, forwards, passes=len(members))


class Landscape(NamedTuple):
    """Accuracy (C,) of every soup of the table on one shift, for one draw."""

    family: str
    pool: npt.NDArray[np.float64]  # on all pictures that may be labelled
    test: npt.NDArray[np.float64]  # on the unseen ones


def soup_single(here: Landscape, everywhere: Sequence[Landscape]) -> float | None:
    """Return the accuracy of one soup for all: the best on average over the shifts of other families.

    None where all shifts are of one family.
    """
    others = [landscape.pool for landscape in everywhere if landscape.family != here.family]
    return float(here.test[np.mean(others, axis=0).argmax()]) if others else None


def soup_oracle(here: Landscape, everywhere: Sequence[Landscape]) -> float | None:
    """Return the accuracy of the soup that is best on the very test pictures: no choice of a soup can beat it."""
    return float(here.test.max())


HINDSIGHT: Mapping[str, Callable[[Landscape, Sequence[Landscape]], float | None]] = {
    "soup_single": soup_single,
    "soup_oracle": soup_oracle,
}
