"""Many draws, and what they say of level, power, bias, criteria, classes and wrong labels."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adapt.evidence.scores import P_THRESHOLD, TEMPERATURES, balanced_weights, choose
from benchmarks.gate.draws import OLD, OURS, SCENARIOS, TESTS, Drawn, Outcome, adapt, draw
from benchmarks.gate.population import CLEAN, Population, load

logger = logging.getLogger(__name__)

HARMFUL = -0.005  # a gain below this
EDGES = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08)  # of the true gains that power is given for
FALSE = 0.05  # promotions, at most, where candidates are no better
LEVELS = {OLD: 0.05}  # McNemar's test at the level it was used at, all others at that of today
NOISE = (0.0, 0.05, 0.1, 0.2, 0.4)
MIXES = ("even", "20 to 1", "half of the classes")
SUB_N = (20, 100, 300)  # labelled pictures of what is measured on the side

Doubles = npt.NDArray[np.float64]


class Plan(NamedTuple):
    """What is measured."""

    n: tuple[int, ...]
    draws: int  # of each shift for each n, with the default soup served; half as many with other soups, and of criteria
    side_draws: int  # of each shift for each n, mix of classes and share of wrong labels
    shifts: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One draw of one shift."""

    shift: str
    outcome: Outcome

    def promotes(self, test: str) -> bool:
        """Say whether this test would promote the candidate."""
        return self.outcome.changed and self.outcome.p_values[test] < LEVELS.get(test, P_THRESHOLD)


Key = tuple[str, int]


@dataclass(frozen=True)
class Measured:
    """All draws.

    Attributes:
        gate: by scenario and n.
        criteria: true accuracies (draws of all shifts,) by criterion and n; the same draws for all criteria.
        classes: by mix of the classes, n and whether classes are weighted to count alike.
        noise: by scenario, n and share of wrong labels.
    """

    gate: Mapping[Key, list[Row]]
    criteria: Mapping[Key, list[float]]
    classes: Mapping[tuple[str, int, bool], list[Row]]
    noise: Mapping[tuple[str, int, float], list[Row]]


def measure(folder: Path, plan: Plan, *, seed: int) -> Measured:
    """Draw from all populations in `folder`, which `population.tabulate` filled."""
    side = tuple(n for n in plan.n if n in SUB_N)
    found = Measured(
        gate={(scenario, n): [] for scenario in SCENARIOS for n in plan.n},
        criteria={(name, n): [] for name in CRITERIA for n in plan.n},
        classes={(mix, n, balance): [] for mix in MIXES for n in side for balance in (False, True)},
        noise={(scenario, n, share): [] for scenario in ("default", "earlier") for n in side for share in NOISE},
    )
    for number, name in enumerate(plan.shifts):
        started = time.perf_counter()
        population = load(folder, name)
        for n in plan.n:
            for turn in range(plan.draws):
                own = [seed, number, n, turn, 4]
                for scenario in SCENARIOS if turn % 2 == 0 else SCENARIOS[:1]:
                    drawn = draw(population, n, scenario, np.random.default_rng(own))
                    found.gate[scenario, n].append(Row(name, adapt(drawn, seed=turn)))
            for turn in range((plan.draws + 1) // 2):
                drawn = draw(population, n, "default", np.random.default_rng([seed, number, n, turn, 1]))
                brier = population.brier[:, drawn.positions]
                for criterion, choice in CRITERIA.items():
                    found.criteria[criterion, n].append(float(drawn.truth[choice(drawn, brier)]))
        for n in side:
            for turn in range(plan.side_draws):
                _draw_classes(found, population, n, [seed, number, n, turn, 2])
                _draw_noise(found, population, n, [seed, number, n, turn, 3])
        logger.info("%s: %.0f s, %d of %d", name, time.perf_counter() - started, number + 1, len(plan.shifts))
    return found


def _draw_classes(found: Measured, population: Population, n: int, seed: Sequence[int]) -> None:
    num_classes = population.logits.shape[2]
    for mix in MIXES:
        generator = np.random.default_rng(seed)
        drawn = draw(population, n, "default", generator, shares=_shares(mix, num_classes, generator))
        for balance in (False, True):
            weights = balanced_weights(drawn.labels) if balance else None
            found.classes[mix, n, balance].append(Row(population.name, adapt(drawn, seed=seed[-2], weights=weights)))


def _shares(mix: str, num_classes: int, generator: np.random.Generator) -> Doubles:
    """Return how often each class is drawn; which ones are rare changes from draw to draw."""
    if mix == "even":
        return np.ones(num_classes)
    if mix == "20 to 1":
        return np.asarray(generator.permutation(np.geomspace(1, 20, num_classes)))
    return np.asarray(generator.permutation(np.arange(num_classes) < (num_classes + 1) // 2), dtype=np.float64)


def _draw_noise(found: Measured, population: Population, n: int, seed: Sequence[int]) -> None:
    for (scenario, size, share), rows in found.noise.items():
        if size == n:
            drawn = draw(population, n, scenario, np.random.default_rng(seed), noise=share)  # type: ignore[arg-type]
            rows.append(Row(population.name, adapt(drawn, seed=seed[-2])))


def _temp_ce(drawn: Drawn, brier: npt.NDArray[np.float32]) -> int:
    return choose(drawn.scores.losses).candidate


def _plain_ce(drawn: Drawn, brier: npt.NDArray[np.float32]) -> int:
    return int(drawn.scores.losses[:, TEMPERATURES.index(1.0)].mean(axis=1, dtype=np.float64).argmin())


def _accuracy(drawn: Drawn, brier: npt.NDArray[np.float32]) -> int:
    return int(drawn.scores.accuracy.argmax())


def _accuracy_then_ce(drawn: Drawn, brier: npt.NDArray[np.float32]) -> int:
    plain = drawn.scores.losses[:, TEMPERATURES.index(1.0)].mean(axis=1, dtype=np.float64)
    return int(np.lexsort((plain, -drawn.scores.accuracy))[0])


def _brier(drawn: Drawn, brier: npt.NDArray[np.float32]) -> int:
    return int(brier.mean(axis=1, dtype=np.float64).argmin())


CRITERIA: Mapping[str, Callable[[Drawn, npt.NDArray[np.float32]], int]] = {
    "tempCE": _temp_ce,
    "cross-entropy": _plain_ce,
    "accuracy": _accuracy,
    "accuracy, ties by cross-entropy": _accuracy_then_ce,
    "Brier score": _brier,
}


def summary(found: Measured, plan: Plan) -> dict[str, Any]:
    """Return every number of the report; accuracies and rates are fractions."""
    return {
        "level": {scenario: {n: rates(found.gate[scenario, n]) for n in plan.n} for scenario in SCENARIOS}
        | {
            f"{CLEAN}, {scenario}": {
                n: rates([row for row in found.gate[scenario, n] if row.shift == CLEAN]) for n in plan.n
            }
            for scenario in ("default", "earlier")
            if CLEAN in plan.shifts
        },
        "power": {n: power_by_gain(found.gate["default", n]) for n in plan.n},
        "bias": {n: _bias(found.gate["default", n]) for n in plan.n},
        "labels": _labels(found, plan),
        "criteria": {
            n: {name: _against(found.criteria[name, n], found.criteria["tempCE", n]) for name in CRITERIA}
            for n in plan.n
        },
        "classes": [
            {"mix": mix, "n": n, "balance": balance, **_side(rows)} for (mix, n, balance), rows in found.classes.items()
        ],
        "noise": [
            {"scenario": scenario, "n": n, "share": share, **_side(rows)}
            for (scenario, n, share), rows in found.noise.items()
        ],
    }


def rates(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how often each test promotes, falsely and harmfully, of all draws."""
    gains = np.asarray([row.outcome.gain for row in rows])
    rates = {}
    for test in TESTS:
        promoted = np.asarray([row.promotes(test) for row in rows])
        rates[test] = {
            "promoted": _mean(promoted),
            "false": _mean(promoted & (gains <= 0)),
            "harmful": _mean(promoted & (gains < HARMFUL)),
            "served_gain": _mean(np.where(promoted, gains, 0)),
        }
    promoted = np.asarray([row.promotes(OURS) for row in rows])
    lower = promoted & (np.asarray([row.outcome.seen for row in rows]) < 0)
    return {
        "draws": len(rows),
        "null": _mean(gains <= 0),
        "gain": _mean(gains),
        "tests": rates,
        "promoted_with_lower_accuracy": _mean(lower),
        "their_gain": _mean(gains[lower]) if lower.any() else None,
    }


def power_by_gain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return how often each test promotes candidates of each true gain."""
    bins: list[list[Row]] = [[] for _ in range(len(EDGES) + 1)]
    for row in rows:
        bins[int(np.searchsorted(EDGES, row.outcome.gain))].append(row)
    return [
        {"from": low, "draws": len(some), **{test: _mean([row.promotes(test) for row in some]) for test in TESTS}}
        for low, some in zip((None, *EDGES), bins, strict=True)
        if some
    ]


def _bias(rows: Sequence[Row]) -> dict[str, float]:
    """Return how far accuracies of the candidate are above the truth on average.

    The current soup's accuracy on the same pictures has no bias; what it is above its truth is luck of the draw, and
    is taken off.
    """
    reported = np.asarray([row.outcome.seen - row.outcome.gain for row in rows])
    naive = np.asarray([row.outcome.naive_seen - row.outcome.gain for row in rows])
    return {
        "reported": _mean(reported),
        "reported_error": float(reported.std() / np.sqrt(len(reported))),
        "naive": _mean(naive),
        "naive_error": float(naive.std() / np.sqrt(len(naive))),
        "coverage": _mean([row.outcome.covered for row in rows]),
        "draws": len(rows),
    }


def _labels(found: Measured, plan: Plan) -> list[dict[str, Any]]:
    """Return, for shifts where the gate's power passes 80 % within the numbers measured, where; and the estimates."""
    rows = []
    for shift in plan.shifts:
        here = {n: [row for row in found.gate["default", n] if row.shift == shift] for n in plan.n}
        power = [_mean([row.promotes(OURS) for row in here[n]]) for n in plan.n]
        above = next((place for place, value in enumerate(power) if value >= 0.8), None)
        if not above:
            continue
        low, high = power[above - 1 : above + 1]
        share = (0.8 - low) / (high - low)
        logs = np.log(plan.n[above - 1 : above + 1])
        estimates = {n: [row.outcome.needed for row in here[n]] for n in plan.n}
        rows.append(
            {
                "shift": shift,
                "gain": _mean([row.outcome.gain for row in here[plan.n[-1]]]),
                "true": float(np.exp(logs[0] + share * (logs[1] - logs[0]))),
                "estimates": {n: float(np.median(np.nan_to_num(some, nan=np.inf))) for n, some in estimates.items()},
            }
        )
    return rows


def _against(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    difference = np.subtract(values, reference)
    return {
        "accuracy": _mean(values),
        "difference": _mean(difference),
        "error": float(difference.std() / np.sqrt(len(difference))),
    }


def _side(rows: Sequence[Row]) -> dict[str, float]:
    gains = np.asarray([row.outcome.gain for row in rows])
    promoted = np.asarray([row.promotes(OURS) for row in rows])
    return {
        "truth": _mean([row.outcome.truth for row in rows]),
        "reported": _mean([row.outcome.reported for row in rows]),
        "gain": _mean(gains),
        "promoted": _mean(promoted),
        "false": _mean(promoted & (gains <= 0)),
        "harmful": _mean(promoted & (gains < HARMFUL)),
        "served_gain": _mean(np.where(promoted, gains, 0)),
    }


def _mean(values: Any) -> float:
    return float(np.mean(values))


class Claim(NamedTuple):
    """What must hold."""

    name: str
    holds: bool


def claims(data: Mapping[str, Any], plan: Plan) -> list[Claim]:
    """Return what the report claims; a rate may miss its bound by two standard errors."""
    level = data["level"]
    false = all(
        cell["tests"][OURS]["false"] <= FALSE + 2 * (FALSE * (1 - FALSE) / cell["draws"]) ** 0.5
        for cells in level.values()
        for cell in cells.values()
    )
    power = all(
        level["default"][n]["tests"][OURS]["served_gain"] >= level["default"][n]["tests"][OLD]["served_gain"]
        for n in plan.n
    )
    bias = all(abs(cell["reported"]) < 0.005 + 2 * cell["reported_error"] for cell in data["bias"].values())
    return [
        Claim("at most 5 % false promotions in every scenario at every n, within two standard errors", false),
        Claim("serves at least the gain that McNemar's test would, at every n", power),
        Claim("reported accuracy within half a point of the truth at every n", bias),
    ]
