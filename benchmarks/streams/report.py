"""What the records say: settings chosen on some shifts, gains on others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.streams.measure import Record
from benchmarks.streams.variants import IDEAS, VARIANTS, Variant, of_idea
from benchmarks.tables import table

WANTED = 0.005  # mean gain that a rung is worth
ERRORS = 2.0  # standard errors that it must be above nothing
DRAWS = 4  # that it must have been measured on
BORNE = 0.005  # mean loss on a shift that is borne

Tuned = Mapping[str, Variant]  # by idea


def tune(found: Sequence[Record]) -> dict[str, Variant]:
    """Return the setting of greatest mean gain of every idea.

    Only records that have all settings of an idea count for it. An idea that has one setting only is never tuned; one
    that no record has is left out.
    """
    chosen: dict[str, Variant] = {}
    for idea in IDEAS:
        settings = of_idea(idea)
        whole = [record for record in found if record.accuracy.keys() >= {variant.name for variant in settings}]
        if len(settings) == 1:
            chosen[idea] = settings[0]
        elif whole:
            means = [np.mean([record.gain(variant) for record in whole]) for variant in settings]
            chosen[idea] = settings[int(np.argmax(means))]
    return chosen


def summary(tuning: Sequence[Record], reported: Sequence[Record], *, planned: int) -> dict[str, Any]:
    """Return settings, gains with standard errors, and gains by shift; `planned` draws were to be reported."""
    tuned = tune(tuning)
    return {
        "settings": {idea: variant.setting for idea, variant in tuned.items()},
        "tuning": _gains(tuning, tuned),
        "gains": _gains(reported, tuned),
        "shifts": {
            shift: _gains([record for record in reported if record.shift == shift], tuned)
            for shift in dict.fromkeys(record.shift for record in reported)
        },
        "ladder": {
            f"{n}, {m}": float(np.mean([record.ladder for record in reported if (record.n, record.m) == (n, m)]))
            for n, m in _sizes(reported)
        },
        "draws": {"tuning": len(tuning), "reported": len(reported), "planned": planned},
        "worst": _worst(tuning),
        "taken": _taken(reported),
    }


def winners(data: Mapping[str, Any]) -> list[str]:
    """Return ideas and numbers of unlabelled pictures with a clear gain in the mean, and no shift clearly worse."""
    return [
        f"{idea}, {m} unlabelled"
        for m in sorted({size.split(", ")[1] for size in data["gains"]}, key=int)
        for idea, gain in data["gains"][f"any, {m}"].items()
        if gain["mean"] >= max(WANTED, ERRORS * gain["error"])
        and gain["draws"] >= DRAWS
        and _least(data["shifts"], idea, m) >= -BORNE
    ]


def _least(shifts: Mapping[str, Any], idea: str, m: str) -> float:
    """Return the least mean gain of an idea on a shift that it was measured on."""
    sizes = [gains.get(f"any, {m}", {}) for gains in shifts.values()]
    return min(float(found[idea]["mean"]) for found in sizes if idea in found)


def _gains(found: Sequence[Record], tuned: Tuned) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean gain and standard error by numbers of pictures ("any" for all labelled ones) and idea."""
    gains: dict[str, dict[str, dict[str, float]]] = {}
    for m in sorted({record.m for record in found}):
        some = [record for record in found if record.m == m]
        for n in (*sorted({record.n for record in some}), "any"):
            for idea, variant in tuned.items():
                values = [
                    record.gain(variant)
                    for record in some
                    if n in (record.n, "any") and variant.name in record.accuracy
                ]
                if values:
                    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
                    row = {"mean": float(np.mean(values)), "error": error, "draws": len(values)}
                    gains.setdefault(f"{n}, {m}", {})[idea] = row
    return gains


def _taken(found: Sequence[Record]) -> dict[str, float]:
    """Return the share of draws in which the rung was taken, by shift."""
    tried = [record for record in found if record.is_taken is not None]
    return {
        shift: float(np.mean([record.is_taken for record in tried if record.shift == shift]))
        for shift in dict.fromkeys(record.shift for record in tried)
    }


def _worst(found: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return the setting of least mean gain of every idea, over all tuning draws that have it."""
    worst: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        values = [record.gain(variant) for record in found if variant.name in record.accuracy]
        if values and np.mean(values) < worst.get(variant.idea, {"mean": np.inf})["mean"]:
            worst[variant.idea] = {"setting": variant.setting, "mean": float(np.mean(values))}
    return worst


def _sizes(found: Sequence[Record]) -> list[tuple[int, int]]:
    return sorted({(record.n, record.m) for record in found})


def markdown(data: Mapping[str, Any], *, command: str, base_set: str, tuned_on: str, shifts: str) -> str:
    """Return the report.

    Args:
        data: `summary`, with "machine" and "commit".
        command: that made it.
        base_set: its name.
        tuned_on: names of the shifts that settings were chosen on.
        shifts: names of the others.
    """
    won = winners(data)
    verdict = f"Worth a rung: {'; '.join(won)}." if won else "**Nothing here is worth a rung.**"
    lines = [
        "# Images without labels, beyond statistics",
        "",
        f"Command: `{command}`, at commit {data['commit']}.",
        "",
        f"`{base_set}`. What the quick ladder chooses with the unlabelled pictures is the base line; every idea is put",
        "on top of it. Points of accuracy above the base line on unseen pictures, mean and standard error over draws",
        f"and shifts. Settings were chosen on {tuned_on} with the most unlabelled pictures ({data['draws']['tuning']}",
        f"draws); the gains are of other shifts: {shifts} ({data['draws']['reported']} draws). A draw here is one of a",
        "shift, a number of labelled and a number of unlabelled pictures.",
        *_unfinished(data["draws"]),
        "",
        f"Machine: {data['machine']}",
        "",
        f"- {verdict} (Wanted: {100 * WANTED:.1f} points in the mean over all numbers of labelled pictures and "
        f"{ERRORS:.0f} standard errors, on {DRAWS} draws or more, and on no shift a loss of more than "
        f"{100 * BORNE:.1f}.)",
        "",
        *_gain_table(data),
        "",
        "By shift, all numbers of labelled pictures together:",
        "",
        *_shift_table(data),
        "",
        *_taken_line(data),
        "Settings, and what the worst setting of the grid does on the shifts that were tuned on:",
        "",
        *_setting_table(data),
        "",
    ]
    return "\n".join(lines)


def _unfinished(draws: Mapping[str, int]) -> list[str]:
    if draws["reported"] >= draws["planned"]:
        return []
    return [f"**Not finished: {draws['reported']} of {draws['planned']} draws.** The same command goes on."]


def _gain_table(data: Mapping[str, Any]) -> list[str]:
    sizes = list(data["gains"])
    head = ["labelled, unlabelled", *sizes]
    base = [f"{100 * data['ladder'][size]:.1f}" if size in data["ladder"] else "" for size in sizes]
    rows = [["quick ladder, percent", *base]]
    rows += [[idea, *(_spelled(data["gains"][size].get(idea)) for size in sizes)] for idea in IDEAS]
    return table(head, rows)


def _shift_table(data: Mapping[str, Any]) -> list[str]:
    sizes = sorted({size.split(", ")[1] for size in data["gains"]}, key=int)
    columns = [(shift, m) for m in sizes for shift in data["shifts"]]
    head = ["idea", *(f"{shift}, {m}" for shift, m in columns)]
    gains = data["shifts"]
    rows = [[idea, *(_spelled(gains[shift].get(f"any, {m}", {}).get(idea)) for shift, m in columns)] for idea in IDEAS]
    return table(head, rows)


def _taken_line(data: Mapping[str, Any]) -> list[str]:
    if not data["taken"]:
        return []
    shares = ", ".join(f"{shift} {100 * share:.0f} %" for shift, share in data["taken"].items())
    return [f"Held-out labels took the rung in {shares} of the draws that tried it.", ""]


def _setting_table(data: Mapping[str, Any]) -> list[str]:
    head = ["idea", "setting", "worst", "gain of the worst"]
    rows = [
        [
            idea,
            data["settings"].get(idea, ""),
            data["worst"][idea]["setting"],
            f"{100 * data['worst'][idea]['mean']:+.1f}",
        ]
        for idea in IDEAS
        if idea in data["worst"]
    ]
    return table(head, rows)


def _spelled(gain: Mapping[str, float] | None) -> str:
    return "" if gain is None else f"{100 * gain['mean']:+.2f} +- {100 * gain['error']:.2f}"
