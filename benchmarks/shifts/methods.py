"""What is compared: each method turns a few labelled pictures into answers about unseen ones.

To add one, write a function from `Context` to `Answer` and enter it in `METHODS`. No method is shown the labels of
unseen pictures. What cannot be told from one shift's labelled pictures is in `HINDSIGHT`, chosen afterwards.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.documents.soup import Soup, default_soup
from adapt.evidence.scores import temp_ce
from adapt.networks.forward import served_logits
from adapt.rungs.early import FirstLayers
from adapt.rungs.head import LastLayer
from adapt.search.config import SearchConfig
from adapt.search.search import Search, search
from benchmarks.shifts.context import STREAMS, Answer, Context, Evidence, Method, Unseen
from benchmarks.shifts.rivals.registry import RIVALS
from benchmarks.shifts.table import Soups
from training.manifest import Manifest

EM_STEPS = 2000
EM_TOLERANCE = 1e-7  # largest change of a weight at which the fit has settled


def soup_grid(context: Context) -> Answer:
    """Choose the soup of the whole grid with the least tempCE."""
    table = context.table
    searched = table.soups.num_searched
    values = temp_ce(table.scores.losses[:searched])[0]
    position, *others = np.argsort(values, kind="stable")[:3].tolist()
    best = _tabled(table.soups, position, forwards=searched * len(context.support))
    return replace(best, runners_up=tuple(_tabled(table.soups, other).predict for other in others))


def soup_auto(context: Context) -> Answer:
    """Search the coefficients alone as the service does, and take the candidate whatever the gate says.

    The search runs for real, not on the table: its cost is measured, and its choice is what a user would get.
    """
    manifest = context.prepared.manifest
    config = SearchConfig(rungs=(), seed=context.seed)
    found = search(context.prepared, context.support, config, current=default_soup(manifest))
    return _searched(context, found, found.soup)


def ladder(context: Context) -> Answer:
    """Search coefficients and all rungs, and take the candidate whatever the gate says."""
    found = _climbed(context)
    return _searched(context, found, found.soup)


def ladder_quick(context: Context) -> Answer:
    """Search without the rungs that train weights, as `effort=quick` does; take the candidate."""
    current = default_soup(context.prepared.manifest)
    found = search(context.prepared, context.support, SearchConfig(seed=context.seed), current=current)
    return _searched(context, found, found.soup)


def ladder_served(context: Context) -> Answer:
    """Take what would be served after that search: the default soup where the gate keeps it."""
    found = _climbed(context)
    promoted = found.outcome.state == "promoted"
    return _searched(context, found, found.soup if promoted else default_soup(context.prepared.manifest))


def ladder_stream(context: Context, *, most: int) -> Answer:
    """Search as `ladder` does, with up to `most` unlabelled pictures of the shift as well; take the candidate."""
    current = default_soup(context.prepared.manifest)
    stream = context.stream[:most] if context.stream is not None and len(context.stream) else None
    config = SearchConfig(effort="full", seed=context.seed)
    found = search(context.prepared, context.support, config, current=current, unlabelled=stream)
    return _searched(context, found, found.soup)


def ladder_single(context: Context) -> Answer:
    """Climb the ladder with one ingredient at a time, nothing mixed: what is left tells what mixing adds."""
    found = search(
        context.prepared,
        context.support,
        SearchConfig(effort="full", strategy="grid", grid="simplex", step=1.0, seed=context.seed),  # the corners alone
        current=default_soup(context.prepared.manifest),
    )
    return _searched(context, found, found.soup)


def soup_uniform(context: Context) -> Answer:
    """Mix all ingredients in equal parts."""
    return _tabled(context.table.soups, context.table.soups.uniform())


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
    "ladder": ladder,
    "ladder_served": ladder_served,
    "ladder_quick": ladder_quick,
    "ladder_full": ladder,
    **{name: partial(ladder_stream, most=most) for name, most in STREAMS.items()},
    "ladder_single": ladder_single,
    "soup_grid": soup_grid,
    "soup_auto": soup_auto,
    "soup_uniform": soup_uniform,
    **RIVALS,
    "ensemble": ensemble,
    "ensemble_weighted": ensemble_weighted,
}


LADDERS = ("ladder", "ladder_served", "ladder_quick", "ladder_full", *STREAMS, "ladder_single")
SEARCHES = ("soup_auto", *LADDERS)  # look nothing up
# Those that look up what soups say and run no network; beside them the ingredients as they are.
TABLED = ("soup_grid", "soup_single", "soup_oracle", "soup_uniform", "picked", "ensemble", "ensemble_weighted")


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


def _climbed(context: Context) -> Search:
    config, current = SearchConfig(effort="full", seed=context.seed), default_soup(context.prepared.manifest)
    return context.shared.get("ladder", lambda: search(context.prepared, context.support, config, current=current))


def _searched(context: Context, found: Search, soup: Soup) -> Answer:
    """Return the answers of a soup that a search found or kept, and what the search says of its candidate."""
    row = tuple(soup.vector(context.prepared.manifest))
    # The table has soups of folded weights.
    position = context.table.soups.find(row) if soup.bn_mode == "folded" and soup.patch is None else None

    def predict(unseen: Unseen) -> Tensor:
        if position is not None:
            return unseen.logits[position]
        return served_logits(context.prepared, soup, unseen.images)

    return Answer(predict, found.outcome.search.image_forwards, coefficients=row, evidence=_evidence(found))


def _evidence(found: Search) -> Evidence:
    accuracy, patch = found.outcome.accuracy, found.outcome.patch
    rungs = () if patch is None else patch.rungs
    return Evidence(
        cross_fitted=None if accuracy is None else accuracy.candidate,
        current=None if accuracy is None else accuracy.current,
        p_value=None if accuracy is None else accuracy.p_value,
        recalibrated=0 if patch is None else patch.recalibrated,
        has_head=LastLayer.name in rungs,
        has_early=FirstLayers.name in rungs,
        is_promoted=found.outcome.state == "promoted",
        unlabelled=found.outcome.support.unlabelled,
    )


def _tabled(soups: Soups, position: int, *, forwards: int = 0) -> Answer:
    row = tuple(float(value) for value in soups.coefficients[position])
    return Answer(lambda unseen: unseen.logits[position], forwards, is_tabled=True, coefficients=row)


def _mixture(members: list[int], weights: npt.NDArray[np.float64], *, forwards: int) -> Answer:
    shares = torch.from_numpy(weights).view(-1, 1, 1)

    def predict(unseen: Unseen) -> Tensor:
        return (shares * unseen.logits[members].double().softmax(dim=2)).sum(dim=0).log()

    return Answer(predict, forwards, is_tabled=True, passes=len(members))


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
