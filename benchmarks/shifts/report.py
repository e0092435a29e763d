"""Tables and a picture of what a run found."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adapt.plots import COLOURS
from benchmarks.machine import machine
from benchmarks.shifts.results import Accuracies, Results, Settings
from benchmarks.shifts.sets import FOLDER_SETS

OURS = "soup_auto"  # what the others are compared with

Floats = npt.NDArray[np.float64]


def write_report(folder: Path, results: Results, accuracies: Accuracies) -> list[Path]:
    """Write `REPORT.md` and `accuracy.png` into the folder; older ones are replaced. Return their paths."""
    report, picture = folder / "REPORT.md", folder / "accuracy.png"
    report.write_text(markdown(results, accuracies), encoding="utf-8")
    plot_accuracy(accuracies, results.settings, picture)
    return [report, picture]


def spread(values: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard error over draws, each (n,), of accuracies (shifts, n, draws) averaged over shifts."""
    by_draw = values.mean(axis=0)
    draws = by_draw.shape[1]
    error = by_draw.std(axis=1, ddof=1) / np.sqrt(draws) if draws > 1 else np.full(len(by_draw), np.nan)
    return by_draw.mean(axis=1), error


def markdown(results: Results, accuracies: Accuracies) -> str:
    """Return the report."""
    settings = results.settings
    heads = [f"n = {n}" for n in settings.n]
    shown = max((n for n in settings.n if n <= 100), default=min(settings.n))
    return "\n".join(
        [
            f"# {settings.base_set} on {len(settings.shifts)} shifts",
            "",
            *_description(settings),
            "",
            "## Mean accuracy in percent",
            "",
            *_table(["method", *heads], [[name, *_cells(values)] for name, values in accuracies.items()]),
            "",
            *_gains(accuracies, heads),
            "## Cost of adapting: pictures through the network, and seconds",
            "",
            "Of what was looked up, the seconds are those that the same forwards took when the table was made.",
            "`passes` is the number of networks that a picture goes through afterwards.",
            "",
            *_table(["method", "passes", *heads], _costs(results)),
            "",
            f"## Accuracy in percent by shift, n = {shown}",
            "",
            *_table(["shift", *accuracies], _by_shift(accuracies, settings, shown)),
            "",
            "![accuracy against the number of labelled pictures](accuracy.png)",
            "",
        ]
    )


def plot_accuracy(accuracies: Accuracies, settings: Settings, path: Path) -> None:
    """Draw mean accuracy against the number of labelled pictures, with one standard error either way."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late: slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for number, (name, values) in enumerate(accuracies.items()):
        mean, error = (100 * part for part in spread(values))
        error = np.nan_to_num(error)
        colour, style = COLOURS[number % len(COLOURS)], ":" if name.startswith("fixed_") else "-"
        axes.plot(settings.n, mean, style, color=colour, marker="o", markersize=3, label=name)
        axes.fill_between(settings.n, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(settings.n, [str(n) for n in settings.n])
    axes.minorticks_off()
    axes.set_xlabel("labelled pictures")
    axes.set_ylabel("accuracy on unseen pictures, %")
    axes.set_title(f"{settings.base_set}, mean of {len(settings.shifts)} shifts, {settings.seeds} draws")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)


def command(settings: Settings) -> str:
    """Return what was asked for, with every default spelled out."""
    options: dict[str, object] = {
        "n": ",".join(map(str, settings.n)),
        "seeds": settings.seeds,
        "seed": settings.seed,
        "n-test": settings.n_test,
        "shifts": ",".join(settings.shifts),
        "methods": ",".join(settings.methods),
    }
    if any(name in FOLDER_SETS for name in settings.shifts):
        options["folders"] = "FOLDER"
    spelled = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"python -m benchmarks.shifts bases/{settings.base_set} {spelled}"


def _commit() -> str:
    """Return the checkout's commit, marked if files differ from it."""
    try:
        git = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
        done = subprocess.run(git, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _description(settings: Settings) -> list[str]:
    return [
        f"Command: `{command(settings)}`, at commit {_commit()}.",
        "",
        f"Base set `{settings.base_set}` ({settings.base_digest[:12]}), {settings.seeds} draws from seed "
        f"{settings.seed} on, {settings.n_test} unseen pictures of each shift and draw, none of them labelled in any "
        "shift. All methods see the same draws.",
        "After +- is one standard error over draws. These share their clean pictures: it tells how far luck in drawing "
        "goes, not other data.",
        "",
        f"Machine: {machine()}",
    ]


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _cells(values: Floats, *, signed: bool = False) -> list[str]:
    means, errors = spread(values)
    return [
        f"{100 * mean:{'+' if signed else ''}.2f}" + ("" if np.isnan(error) else f" +- {100 * error:.2f}")
        for mean, error in zip(means, errors, strict=True)
    ]


def _gains(accuracies: Accuracies, heads: list[str]) -> list[str]:
    """Return a table of how far `OURS` is above every other method, draw by draw."""
    if OURS not in accuracies or len(accuracies) < 2:
        return []
    others = {name: accuracies[OURS] - values for name, values in accuracies.items() if name != OURS}
    rows = [[name, *_cells(values, signed=True)] for name, values in others.items()]
    return [f"## Points by which {OURS} is above, paired by draw", "", *_table(["method", *heads], rows), ""]


def _costs(results: Results) -> list[list[str]]:
    rows = []
    for method in results.settings.methods:
        costs = [cost for n in results.settings.n if (cost := results.cost(method, n)) is not None]
        if costs:
            cells = [f"{cost.forwards:,} in {cost.seconds:.2f} s" for cost in costs]
            rows.append([method, str(costs[0].passes), *cells])
    return rows


def _by_shift(accuracies: Accuracies, settings: Settings, shown: int) -> list[list[str]]:
    j = settings.n.index(shown)
    return [
        [shift, *(f"{100 * values[i, j].mean():.1f}" for values in accuracies.values())]
        for i, shift in enumerate(settings.shifts)
    ]
