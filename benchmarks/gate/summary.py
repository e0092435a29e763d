"""What the draws say of level, bias, power and policies, in numbers; `benchmarks.gate.report` shows them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from adapt.evidence.decision import HARM_CHANCE
from adapt.evidence.levels import FALSE_PROMOTIONS, attempt_level, p_threshold
from adapt.evidence.posterior import HARM, Posterior, posterior_of_gain
from benchmarks.gate import nulls
from benchmarks.gate.records import Records, Row
from benchmarks.machine import machine
from training.intervals import wilson

OLD_THRESHOLD = 0.025  # p-value below which earlier versions promoted
MAX_BIAS = 0.5  # points
EDGES = (0.0, 0.01, 0.02, 0.04, 0.08)  # of true gains, for the power
REAL_NULL = "an adapted soup served, other pictures of the shift"
BETS = "bets on fresh images"
Bound = Literal["upper", "lower"]  # of a rate: the full run judges by the upper one, few draws by the lower one
JUDGED_BY: dict[Bound, tuple[str, int]] = {"upper": ("high", 2), "lower": ("low", 3)}  # key; standard errors of a bias
POLICIES = ("never", "auto", "before", "likely", "always")


def summary(records: Records, *, bound: Bound = "upper") -> dict[str, Any]:
    """Return all numbers of the report. Shares are fractions; biases are points of accuracy.

    Args:
        records: all draws.
        bound: which 95 % bound of a rate `claims` judges by.
    """
    null, first, second = records.of("null"), records.of("first"), records.of("second")
    level: dict[str, dict[str, Any]] = {}
    bias: dict[str, dict[str, float]] = {}
    errors: dict[str, dict[str, float]] = {}
    for (case, n), rows in null.items():
        promoted = [_is_promoted(row, n) for row in rows]
        level.setdefault(case, {})[str(n)] = _share(promoted) | {
            "old": _mean([row["is_new"] and row["p_value"] < OLD_THRESHOLD for row in rows])
        }
        off = [100 * (row["reported"] - row["truth"]) for row in rows]
        bias.setdefault(case, {})[str(n)] = _mean(off)
        errors.setdefault(case, {})[str(n)] = float(np.std(off) / len(off) ** 0.5)
    for n, rows in _by_n(second).items():
        false = [row for row in rows if "p_value" in row]
        level.setdefault(REAL_NULL, {})[str(n)] = _share(
            [_is_promoted(row, n) and row["candidate"] <= row["current"] for row in false]
        ) | {"old": _mean([row["is_new"] and row["p_value"] < OLD_THRESHOLD for row in false])}
    return {
        "null": level,
        "bias": bias,
        "bias_error": errors,
        "looks": _looks(records),
        "power": _power(first),
        "served": _served(first),
        "calibration": _calibration([*_all(first), *_all(second)]),
        "real_bias": {
            str(n): _mean([100 * (row["reported"] - row["candidate"]) for row in rows if "reported" in row])
            for n, rows in _by_n(first).items()
        },
        "continual": _continual(records),
        "total": FALSE_PROMOTIONS,
        "level": attempt_level(1),
        "bound": bound,
        "machine": machine(),
    }


def claims(data: Mapping[str, Any]) -> dict[str, bool]:
    """Return what is claimed of the parts that were drawn, and whether it holds.

    By the upper bound the draws show that a rate is at most 5 %. That takes many draws; of few ones, the lower bound
    says whether they contradict it.
    """
    bound, key, allowed = data["bound"], *JUDGED_BY[data["bound"]]
    rates = [cell[key] for cells in data["null"].values() for cell in cells.values()]
    biases = [
        abs(points) <= MAX_BIAS + allowed * data["bias_error"][case][n]
        for case, cells in data["bias"].items()
        for n, points in cells.items()
    ]
    looks = [cell[key] for cell in data["looks"].values()]
    found = {
        f"false promotions: {bound} 95 % bound at most 5 % in every cell": [rate <= 0.05 for rate in rates],
        f"bias of the reported accuracy: at most 0.5 points in every cell, {allowed} standard errors allowed": biases,
        f"many looks: {bound} 95 % bound of any false promotion at most 5 %": [rate <= 0.05 for rate in looks],
    }
    return {name: all(cells) for name, cells in found.items() if cells}


def _is_promoted(row: Row, n: int, attempt: int = 1) -> bool:
    return bool(row["is_new"] and row["p_value"] < p_threshold(attempt_level(attempt), n))


def _is_likely(row: Row) -> bool:
    posterior = _posterior(row)
    return bool(row["is_new"] and posterior.mean > 0 and posterior.chance_of_harm < HARM_CHANCE)


def _posterior(row: Row) -> Posterior:
    return posterior_of_gain(row["gain_seen"], row["error"])


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    count = sum(hits)
    low, high = wilson(count, len(hits))
    return {"rate": count / len(hits), "low": low, "high": high, "draws": len(hits)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _by_n(found: Mapping[tuple[str, int], list[Row]]) -> dict[int, list[Row]]:
    rows: dict[int, list[Row]] = {}
    for (_, n), some in sorted(found.items(), key=lambda item: item[0][1]):
        rows.setdefault(n, []).extend(some)
    return rows


def _all(found: Mapping[tuple[str, int], list[Row]]) -> list[Row]:
    return [row for rows in found.values() for row in rows if "p_value" in row]


def _looks(records: Records) -> dict[str, Any]:
    """Return the chance of any promotion by plan: false ones, all null cases together, and right ones."""
    null: dict[str, list[nulls.Series]] = {}
    better: dict[str, list[nulls.Series]] = {}
    for (name, portion), rows in records.of("looks").items():
        plan, _, case = name.partition(": ")
        found = better if case == nulls.BETTER.name else null
        found.setdefault(plan, []).extend(nulls.Series.of(row, portion) for row in rows)
    return {
        plan: _share([nulls.is_promoted(one.looks, nulls.OURS, portion=one.portion) for one in found])
        | {"spending": _spent(found), "power": _spent(better[plan]) if plan in better else {}}
        for plan, found in null.items()
    }


def _spent(found: Sequence[nulls.Series]) -> dict[str, float]:
    """Return the share of series with any promotion, by how the level is spent, and with bets."""
    shares = {
        name: _mean([nulls.is_promoted(one.looks, name, portion=one.portion) for one in found])
        for name in nulls.SPENDING
    }
    bets = [one.is_bet_won for one in found if one.is_bet_won is not None]
    return shares | ({BETS: _mean(bets)} if bets else {})


def _power(first: Mapping[tuple[str, int], list[Row]]) -> dict[str, Any]:
    """Return the share of candidates promoted by true gain, now and by the threshold before, by n."""
    found: dict[str, Any] = {}
    for n, rows in _by_n(first).items():
        usable = [row for row in rows if "p_value" in row]
        bins = []
        for low, high in zip((-1.0, *EDGES), (*EDGES, 1.0), strict=True):
            some = [row for row in usable if low < row["candidate"] - row["current"] <= high]
            if some:
                bins.append(
                    {
                        "from": low,
                        "to": high,
                        "draws": len(some),
                        "now": _mean([_is_promoted(row, n) for row in some]),
                        "before": _mean([row["is_new"] and row["p_value"] < OLD_THRESHOLD for row in some]),
                        "mcnemar": _mean([row["is_new"] and row["mcnemar"] < FALSE_PROMOTIONS for row in some]),
                    }
                )
        found[str(n)] = bins
    return found


def _served(first: Mapping[tuple[str, int], list[Row]]) -> dict[str, Any]:
    """Return the mean accuracy served under each policy, and the worst loss of any adaptation, by n."""
    found: dict[str, Any] = {}
    for n, rows in _by_n(first).items():
        found[str(n)] = {policy: _under(policy, rows, n) for policy in POLICIES} | {"draws": len(rows)}
    return found


def _under(policy: str, rows: Sequence[Row], n: int) -> dict[str, float]:
    taken = [_takes(policy, row, n) for row in rows]
    return {
        "accuracy": _mean([row["candidate" if takes else "current"] for row, takes in zip(rows, taken, strict=True)]),
        "worst": min(
            [0.0, *(row["candidate"] - row["current"] for row, takes in zip(rows, taken, strict=True) if takes)]
        ),
        "promoted": _mean(taken),
    }


def _takes(policy: str, row: Row, n: int) -> bool:
    """Say whether the candidate of a row would be promoted; where too little could be judged only by "always"."""
    if policy in ("never", "always") or "p_value" not in row:
        return policy == "always"
    if policy == "before":
        return bool(row["is_new"] and row["p_value"] < OLD_THRESHOLD)
    return _is_promoted(row, n) or (policy == "likely" and _is_likely(row))


def _calibration(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return how often a loss beyond `HARM` came true, by the chance that the posterior gave it."""
    found, new = [], [row for row in rows if row["is_new"]]
    chances = [_posterior(row).chance_of_harm for row in new]
    for low, high in ((0.0, 0.01), (0.01, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 1.0)):
        some = [(row, chance) for row, chance in zip(new, chances, strict=True) if low <= chance < high]
        if some:
            harmed = [row["candidate"] - row["current"] < -HARM for row, _ in some]
            found.append({"from": low, "to": high, "foretold": _mean([chance for _, chance in some])} | _share(harmed))
    return found


def _continual(records: Records) -> dict[str, Any]:
    """Return what labels in portions lead to, by size of the portions and kind: drifting or not, and the policy."""
    kinds: dict[str, list[Row]] = {}
    for (case, portion), rows in records.of("continual").items():
        _, *kind = case.split(", ")
        kinds.setdefault(", ".join([f"5 x {portion}", *kind]), []).extend(rows)
    return {
        name: {
            "draws": len(rows),
            "start": _mean([row["start"] for row in rows]),
            "served": [_mean([row["served"][k] for row in rows]) for k in range(len(rows[0]["served"]))],
            "once": _mean([row["once"] for row in rows]),
            "behind": _mean([row["once"] - row["served"][-1] for row in rows]),
            "behind_error": float(np.std([row["once"] - row["served"][-1] for row in rows]) / len(rows) ** 0.5),
            "refused": _mean([sum(gain > 0 for gain in row["refused"]) for row in rows]),
            "refused_gain": _mean([gain for row in rows for gain in row["refused"] if gain > 0] or [0.0]),
        }
        for name, rows in sorted(kinds.items(), key=lambda item: (item[0].count(","), item[0]))
    }
