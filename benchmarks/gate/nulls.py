"""Searches where nothing can be better than what is served: how often are they promoted, and is their accuracy true?"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from adapt.documents.soup import Soup, default_soup
from adapt.evidence.levels import FALSE_PROMOTIONS, attempt_level, p_threshold
from adapt.networks.forward import served_logits
from adapt.rungs.registry import LADDER
from adapt.search.config import SearchConfig
from adapt.search.search import Search, search
from benchmarks.gate.simulated import Retrained, SimulatedNetwork

LADDER[Retrained.name] = Retrained
NUM_UNSEEN = 1000  # images that say what is true


class Case(NamedTuple):
    """A set of equally good soups, and what a search may try."""

    name: str
    correlation: float  # of two soups' noise
    rungs: tuple[str, ...]
    num_ingredients: int = 4
    is_second: bool = False  # the soup served was found on half of the images, the same and others are searched on


COEFFICIENTS: tuple[str, ...] = ()
CHEAP = ("statistics", "head")
ALL = (*CHEAP, Retrained.name)
CASES = (
    Case("coefficients, correlation .9", 0.9, COEFFICIENTS),
    Case("coefficients, correlation .5", 0.5, COEFFICIENTS),
    Case("two ingredients, statistics, correlation .5", 0.5, ("statistics",), num_ingredients=2),
    Case("eight ingredients, statistics, correlation .9", 0.9, ("statistics",), num_ingredients=8),
    Case("statistics, correlation .9", 0.9, ("statistics",)),
    Case("statistics, correlation .5", 0.5, ("statistics",)),
    Case("statistics and head, correlation .9", 0.9, CHEAP),
    Case("statistics and head, correlation .5", 0.5, CHEAP),
    Case("all rungs, correlation .9", 0.9, ALL),
    Case("all rungs, correlation .5", 0.5, ALL),
    Case("second adaptation, old and new images, correlation .9", 0.9, CHEAP, is_second=True),
    Case("second adaptation, old and new images, correlation .5", 0.5, ALL, is_second=True),
)


class Drawn(NamedTuple):
    """One search of a null case. Accuracies are fractions."""

    is_new: bool  # the candidate is another network than the current one
    p_value: float
    reported: float  # accuracy of the candidate, held out
    reported_current: float
    truth: float  # accuracy of the candidate on unseen images
    truth_current: float


def draw(case: Case, n: int, turn: int, *, seed: int) -> Drawn:
    """Draw n labelled images and search on them."""
    network = SimulatedNetwork(
        case.num_ingredients, n + NUM_UNSEEN, correlation=case.correlation, seed=(seed, CASES.index(case), n, turn)
    )
    config = SearchConfig(rungs=case.rungs, seed=turn)
    current = default_soup(network.manifest)
    if case.is_second:
        half = network.support(np.arange(n // 2))
        current = search(network, half, config, current=current).soup
    found = search(network, network.support(np.arange(n)), config, current=current)
    return drawn(network, found, current, np.arange(n, n + NUM_UNSEEN))


def drawn(network: SimulatedNetwork, found: Search, current: Soup, unseen: np.ndarray) -> Drawn:
    """Return what a search says, beside what is true."""
    accuracy = found.outcome.accuracy
    assert accuracy is not None, "fresh images can judge"
    return Drawn(
        is_new=not found.is_current,
        p_value=accuracy.p_value,
        reported=accuracy.candidate,
        reported_current=accuracy.current,
        truth=_accuracy(network, found.soup, unseen),
        truth_current=_accuracy(network, current, unseen),
    )


class Look(NamedTuple):
    """The k-th of several searches against the same soup."""

    is_new: bool
    p_value: float


class Plan(NamedTuple):
    """Labels that come in portions; each time all that there are are searched."""

    name: str
    portion: int
    looks: int


PLANS = (Plan("10 x 20", 20, 10), Plan("5 x 100", 100, 5))


def look(case: Case, plan: Plan, turn: int, *, seed: int) -> list[Look]:
    """Return the searches of a plan, in order, none of them promoted."""
    number = [*CASES].index(case)
    network = SimulatedNetwork(
        case.num_ingredients,
        plan.portion * plan.looks,
        correlation=case.correlation,
        seed=(seed, 1000 + number, plan.portion, turn),
    )
    current, found = default_soup(network.manifest), []
    for k in range(1, plan.looks + 1):
        support = network.support(np.arange(k * plan.portion))
        result = search(network, support, SearchConfig(rungs=case.rungs, seed=turn), current=current)
        assert result.outcome.accuracy is not None, "fresh images can judge"
        found.append(Look(not result.is_current, result.outcome.accuracy.p_value))
    return found


# How the chance of a false promotion can be spread over attempts: level of the k-th, for a total.
OURS = "total / (k (k + 1))"
SPENDING: dict[str, Callable[[int, float], float]] = {
    OURS: lambda k, total: attempt_level(k, total=total),
    "6 total / (pi k)^2": lambda k, total: 6 * total / (np.pi * k) ** 2,
    "total / 2^k": lambda k, total: total / 2**k,
    "total / 2 each time": lambda k, total: total / 2,
}


def is_promoted(looks: Sequence[Look], spending: str, *, portion: int, total: float = FALSE_PROMOTIONS) -> bool:
    """Say whether any of the searches would have been promoted."""
    level = SPENDING[spending]
    return any(
        look.is_new and look.p_value < p_threshold(level(k, total), k * portion) for k, look in enumerate(looks, 1)
    )


def _accuracy(network: SimulatedNetwork, soup: Soup, positions: np.ndarray) -> float:
    said = served_logits(network, soup, network.images[positions]).argmax(dim=1)
    return float((said == torch.from_numpy(network.labels[positions])).double().mean())
