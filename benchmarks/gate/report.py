"""The report of the gate: tables, a picture, and the numbers as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.evidence.levels import FALSE_PROMOTIONS
from adapt.evidence.posterior import HARM
from benchmarks.gate import nulls
from benchmarks.gate.summary import BETS, EDGES, OLD_THRESHOLD, POLICIES, claims
from benchmarks.machine import commit
from benchmarks.pictures import save_figure
from benchmarks.tables import table

FEW_DRAWS = (
    "Few draws cannot show that a rate is below 5 %: a claim fails here only where they contradict it, by the lower "
    "95 % bound. The full run judges by the upper bound."
)


def write_report(folder: Path, data: Mapping[str, Any], command: str) -> list[Path]:
    """Write REPORT.md, results.json and gate.png into a folder; older ones are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    report, results, picture = folder / "REPORT.md", folder / "results.json", folder / "gate.png"
    report.write_text(markdown(data, command), encoding="utf-8")
    results.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    plot(data, picture)
    return [report, results, picture]


def markdown(data: Mapping[str, Any], command: str) -> str:
    """Return the report."""
    lines = [
        "# How sure is the gate?",
        "",
        f"Command: `{command}`, at commit {commit()}. Machine: {data['machine']}.",
        "",
        *([FEW_DRAWS, ""] if data["bound"] == "lower" else []),
        *(f"- {'Holds' if holds else '**Does not hold**'}: {name}." for name, holds in claims(data).items()),
        "",
    ]
    if data["null"]:
        lines += _null_section(data)
    if data["looks"]:
        lines += _looks_section(data)
    if data["power"]:
        lines += _real_section(data)
    if data["continual"]:
        lines += _continual_section(data)
    return "\n".join(lines)


def _ns(cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return sorted({n for row in cells.values() for n in row}, key=int)


def _null_section(data: Mapping[str, Any]) -> list[str]:
    ns = _ns(data["null"])
    return [
        "## False promotions",
        "",
        "Every draw is a whole search on labelled images for which no candidate is better than the soup that is "
        f"served. Share promoted at the first attempt (level {100 * data['level']:g} %), with its upper 95 % bound; in "
        f"brackets, what p < {OLD_THRESHOLD:g} would promote of the same draws. Percent. In the last row the base set "
        "and the shifts are real: the soup that is served was found on as many other pictures of the shift, and a "
        "promotion is false if the candidate is no better on 1,000 unseen pictures.",
        "",
        *table(
            ["case", *(f"n = {n}" for n in ns)],
            [[case, *(_level_cell(cells.get(n)) for n in ns)] for case, cells in data["null"].items()],
        ),
        "",
        "Draws:",
        "",
        *table(
            ["case", *(f"n = {n}" for n in ns)],
            [
                [case, *(str(cells[n]["draws"]) if n in cells else "" for n in ns)]
                for case, cells in data["null"].items()
            ],
        ),
        "",
        "## Bias of the reported accuracy",
        "",
        "Held-out accuracy of the candidate less its accuracy on 1,000 unseen images; points, with one standard error.",
        "",
        *table(
            ["case", *(f"n = {n}" for n in ns)],
            [
                [case, *(_bias_cell(cells.get(n), data["bias_error"][case].get(n)) for n in ns)]
                for case, cells in data["bias"].items()
            ],
        ),
        "",
    ]


def _level_cell(cell: Mapping[str, float] | None) -> str:
    return "" if cell is None else f"{100 * cell['rate']:.1f} < {100 * cell['high']:.1f} ({100 * cell['old']:.1f})"


def _bias_cell(points: float | None, error: float | None) -> str:
    return "" if points is None or error is None else f"{points:+.2f} +- {error:.2f}"


def _looks_section(data: Mapping[str, Any]) -> list[str]:
    names = [*nulls.SPENDING, BETS]
    return [
        "## Many looks",
        "",
        "Labels come in portions, and each time all labels so far are searched on, against the same soup. Share of "
        f"series with any false promotion, percent; all null cases together. The total is {100 * data['total']:g} %.",
        "",
        *table(
            ["series", "draws", "upper bound", *names],
            [
                [
                    series,
                    str(cell["draws"]),
                    f"{100 * cell['high']:.1f}",
                    *(_percent(cell["spending"].get(name)) for name in names),
                ]
                for series, cell in data["looks"].items()
            ],
        ),
        "",
        "Share of series that promote a soup which is about five points better, percent:",
        "",
        *table(
            ["series", *names],
            [
                [series, *(_percent(cell["power"].get(name)) for name in names)]
                for series, cell in data["looks"].items()
            ],
        ),
        "",
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _real_section(data: Mapping[str, Any]) -> list[str]:
    ns = list(data["power"])
    spans = [("at most 0", -1.0), *((f"over {100 * low:g}", low) for low in EDGES)]
    lines = [
        "## Power",
        "",
        "Real shifts, the default soup served. Share of candidates promoted by their true gain in points: now / with "
        f"p < {OLD_THRESHOLD:g} as before / by McNemar's test at 5 %. Percent, number of draws in brackets.",
        "",
    ]
    rows = []
    for name, low in spans:
        cells = []
        for n in ns:
            cell = next((cell for cell in data["power"][n] if cell["from"] == low), None)
            shares = [] if cell is None else [f"{100 * cell[key]:.0f}" for key in ("now", "before", "mcnemar")]
            cells.append("" if cell is None else f"{' / '.join(shares)} ({cell['draws']})")
        rows.append([name, *cells])
    lines += [*table(["true gain", *(f"n = {n}" for n in ns)], rows), ""]
    lines += [
        "## What each policy serves",
        "",
        "Mean accuracy on unseen pictures over all shifts and draws, percent; in brackets the worst loss of a single "
        "adaptation, points. `never` serves the default soup, `always` every candidate; `before` is p < "
        f"{OLD_THRESHOLD:g}.",
        "",
        *table(
            ["n", "draws", *POLICIES],
            [
                [
                    n,
                    str(cells["draws"]),
                    *(f"{100 * cells[p]['accuracy']:.1f} ({100 * cells[p]['worst']:.1f})" for p in POLICIES),
                ]
                for n, cells in data["served"].items()
            ],
        ),
        "",
        f"The chance of losing more than {100 * HARM:g} points, as `promote=likely` estimates it, and how often it "
        "came true, first and second adaptations together:",
        "",
        *table(
            ["estimated", "mean", "came true", "upper bound", "draws"],
            [
                [
                    f"{100 * cell['from']:g} to {100 * cell['to']:g} %",
                    f"{100 * cell['foretold']:.1f} %",
                    f"{100 * cell['rate']:.1f} %",
                    f"{100 * cell['high']:.1f} %",
                    str(cell["draws"]),
                ]
                for cell in data["calibration"]
            ],
        ),
        "",
        "Bias of the reported accuracy there, points: "
        + ", ".join(f"n = {n}: {points:+.2f}" for n, points in data["real_bias"].items())
        + ".",
        "",
    ]
    return lines


def _continual_section(data: Mapping[str, Any]) -> list[str]:
    return [
        "## Labels in five portions",
        "",
        "After each portion all labels so far are searched on. Accuracy on unseen pictures, percent: at the start, "
        "served after each portion, and after a single adaptation to all labels with `promote=auto`. `behind`: what "
        "portions lose, points, with one standard error. "
        "`refused`: candidates that were better and not promoted, per series, and their mean gain in points.",
        "",
        *table(
            ["labels", "series", "start", "after each", "once", "behind", "refused"],
            [
                [
                    name,
                    str(cell["draws"]),
                    f"{100 * cell['start']:.1f}",
                    " ".join(f"{100 * value:.1f}" for value in cell["served"]),
                    f"{100 * cell['once']:.1f}",
                    f"{100 * cell['behind']:+.1f} +- {100 * cell['behind_error']:.1f}",
                    f"{cell['refused']:.1f} ({100 * cell['refused_gain']:+.1f})",
                ]
                for name, cell in data["continual"].items()
            ],
        ),
        "",
    ]


def plot(data: Mapping[str, Any], path: Path) -> None:
    """Draw false promotions by case, and accuracy served by policy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late: slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    level, served = figure.subplots(1, 2)
    for case, cells in data["null"].items():
        ns = sorted(map(int, cells))
        rates = [100 * cells[str(n)]["rate"] for n in ns]
        bounds = [100 * (cells[str(n)]["high"] - cells[str(n)]["rate"]) for n in ns]
        level.errorbar(ns, rates, yerr=[[0.0] * len(ns), bounds], marker="o", markersize=3, linewidth=0.8, label=case)
    level.axhline(100 * FALSE_PROMOTIONS, color="black", linewidth=0.8)
    level.set(title="False promotions and their upper 95 % bounds", ylabel="percent of draws", ylim=(0, None))
    for policy in POLICIES:
        ns = sorted(map(int, data["served"]))
        values = [100 * data["served"][str(n)][policy]["accuracy"] for n in ns]
        served.plot(ns, values, marker="o", markersize=3, label=policy)
    served.set(title="Accuracy served, mean over shifts", ylabel="percent")
    for axes in (level, served):
        axes.set_xscale("log")
        axes.set_xlabel("labelled images")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6, frameon=False)
    save_figure(figure, path, dpi=90)
