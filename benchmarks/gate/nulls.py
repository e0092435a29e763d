"""Searches where nothing can be better than what is served: how often are they promoted, and is their accuracy true?"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from adapt.documents.soup import Soup, default_soup
from adapt.evidence.levels import FALSE_PROMOTIONS, attempt_chance, attempt_level, p_threshold
from adapt.evidence.scores import Ints
from adapt.evidence.significance import evidence
from adapt.networks.forward import served_logits
from adapt.rungs.model import judge
from adapt.rungs.registry import LADDER
from adapt.search.config import SearchConfig
from adapt.search.search import Search, search
from benchmarks.gate.records import Row
from benchmarks.gate.simulated import Retrained, Shares, SimulatedNetwork

LADDER[Retrained.name] = Retrained
LADDER[Shares.name] = Shares
NUM_UNSEEN = 1000  # images that say what is true


class Case(NamedTuple):
    """A set of equally good soups, and what a search may try."""

    name: str
    correlation: float  # of two soups' noise
    rungs: tuple[str, ...]
    num_ingredients: int = 4
    is_second: bool = False  # the soup served was found on half of the images, the same and others are searched on
    advantage: float = 0.0  # of the second ingredient over the others


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
    Case("five variants of a training, correlation .9", 0.9, (*CHEAP, Shares.name)),
    Case("five variants of a training, correlation .5", 0.5, (*CHEAP, Shares.name)),
)


# Not null: the second ingredient is better, by about five points of accuracy.
BETTER = Case("a soup is 5 points better", 0.9, ("statistics",), advantage=0.1)


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
    config = SearchConfig(effort="full", rungs=case.rungs, seed=turn)
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
    fresh: tuple[float, ...]  # evidence of the candidate before on the images that have come since; none at first


class Plan(NamedTuple):
    """Labels that come in portions; each time all that there are are searched."""

    name: str
    portion: int
    looks: int


PLANS = (Plan("10 x 20", 20, 10), Plan("5 x 100", 100, 5))


def look(case: Case, plan: Plan, turn: int, *, seed: int) -> list[Look]:
    """Return the searches of a plan, in order, none of them promoted."""
    number = [*CASES, BETTER].index(case)
    network = SimulatedNetwork(
        case.num_ingredients,
        plan.portion * plan.looks,
        correlation=case.correlation,
        seed=(seed, 1000 + number, plan.portion, turn),
        advantage=case.advantage,
    )
    current, found = default_soup(network.manifest), []
    candidate: Soup | None = None
    for k in range(1, plan.looks + 1):
        support = network.support(np.arange(k * plan.portion))
        fresh = np.arange((k - 1) * plan.portion, k * plan.portion)
        gains = () if candidate is None else _gains(network, candidate, current, fresh)
        result = search(network, support, SearchConfig(effort="full", rungs=case.rungs, seed=turn), current=current)
        assert result.outcome.accuracy is not None, "fresh images can judge"
        found.append(Look(not result.is_current, result.outcome.accuracy.p_value, gains))
        candidate = result.soup
    return found


def _gains(network: SimulatedNetwork, soup: Soup, current: Soup, positions: Ints) -> tuple[float, ...]:
    """Return the evidence for a soup on images that it was not chosen on, rounded."""
    labels = network.labels[positions]
    after, before = (
        judge(served_logits(network, one, network.images[positions]) / one.temperature, labels)
        for one in (soup, current)
    )
    return tuple(np.round(evidence(after.losses - before.losses, after.right, before.right), 3).tolist())


# How the chance of a false promotion can be spread over attempts: level of the last one, for all sizes and a total.
OURS = "chances total / (k (k + 1)), nested images"
SPENDING: dict[str, Callable[[tuple[int, ...], float], float]] = {
    OURS: lambda sizes, total: attempt_level(len(sizes), sizes, total=total),
    "total / (k (k + 1))": lambda sizes, total: attempt_chance(len(sizes), total=total),
    "6 total / (pi k)^2": lambda sizes, total: 6 * total / (np.pi * len(sizes)) ** 2,
    "total / 2^k": lambda sizes, total: total / 2 ** len(sizes),
    "total / 2 each time": lambda sizes, total: total / 2,
}


def is_promoted(looks: Sequence[Look], spending: str, *, portion: int, total: float = FALSE_PROMOTIONS) -> bool:
    """Say whether any of the searches would have been promoted."""
    sizes = tuple(portion * k for k in range(1, len(looks) + 1))
    levels = _levels(spending, sizes, total)
    return any(
        look.is_new and look.p_value < p_threshold(level, n)
        for look, level, n in zip(looks, levels, sizes, strict=True)
    )


@cache
def _levels(spending: str, sizes: tuple[int, ...], total: float) -> tuple[float, ...]:
    return tuple(SPENDING[spending](sizes[:k], total) for k in range(1, len(sizes) + 1))


def is_bet_won(looks: Sequence[Look], *, total: float = FALSE_PROMOTIONS) -> bool:
    """Say whether betting on the evidence of fresh images ever multiplies the stake by 1 / total.

    Each image is bet on with the candidate that was found before it came, and a share of the capital that earlier
    evidence suggests. If no candidate is better, the capital is a supermartingale: valid at any number of looks.

    Source: Waudby-Smith & Ramdas 2024 (arXiv:2010.09686), sec. 4; the share as in their aGRAPA, at most a quarter.
    """
    log_capital, seen = 0.0, [0.0]
    for look in looks:
        mean, spread = float(np.mean(seen)), float(np.var(seen)) + 0.25
        share = min(0.25, max(0.0, mean / (spread + mean**2)))
        for gain in look.fresh:  # from -2 to 2
            log_capital += float(np.log1p(share * gain))
            seen.append(gain)
            if log_capital >= -np.log(total):
                return True
    return False


class Series(NamedTuple):
    """The looks of a plan."""

    looks: tuple[Look, ...]
    portion: int  # labelled images that come before each look
    is_bet_won: bool | None  # None where nothing is known of fresh images

    @classmethod
    def of(cls, row: Row, portion: int) -> "Series":
        """Return what a record holds: looks with the evidence of fresh images, or without it and who wins the bet."""
        looks = tuple(Look(look[0], look[1], tuple(look[2]) if len(look) > 2 else ()) for look in row["looks"])
        has_fresh = len(looks) > 1 and bool(looks[1].fresh)
        return cls(looks, portion, is_bet_won(looks) if has_fresh else row.get("is_bet_won"))

    def row(self) -> Row:
        """Return the record without the evidence of fresh images."""
        looks = [[look.is_new, look.p_value] for look in self.looks]
        return {"looks": looks} | ({} if self.is_bet_won is None else {"is_bet_won": self.is_bet_won})


def _accuracy(network: SimulatedNetwork, soup: Soup, positions: np.ndarray) -> float:
    said = served_logits(network, soup, network.images[positions]).argmax(dim=1)
    return float((said == torch.from_numpy(network.labels[positions])).double().mean())
