"""Pictures of what a run found."""

from pathlib import Path
from typing import Any

import numpy as np

from adapt.reporting.plots import COLOURS, corners_of
from benchmarks.pictures import save_figure
from benchmarks.shifts.results import Accuracies, Results, Settings, spread

DRAWN = (
    *("ladder", "ladder_served", "soup_auto", "soup_single", "picked", "picked_bn", "picked_head", "picked_bn_head"),
    *("finetune", "surgical", "tent", "ensemble", "ensemble_weighted"),
)
MARKERS = "osD^v<>Pp*hX8"
MAPS_ACROSS = 6
MAPPED_POINTS = 5.0  # where the colours end
NAMED_AT = 2.0  # corners' distances from the middle: beyond every soup of the grid
COMPOSED = ("soup_auto", "ladder")


def plot_accuracy(accuracies: Accuracies, settings: Settings, path: Path) -> None:
    """Draw mean accuracy against the number of labelled pictures, with one standard error either way.

    Of the ingredients as they are only the best one is drawn.
    """
    drawn = {name: accuracies[name] for name in DRAWN if name in accuracies}
    fixed = {name: values for name, values in accuracies.items() if name.startswith("fixed_")}
    if fixed:
        best = max(fixed, key=lambda name: float(fixed[name].mean()))
        drawn[best] = fixed[best]
    figure = new_figure(9.5, 6)
    axes: Any = figure.subplots()
    for number, (name, values) in enumerate(drawn.items()):
        mean, error = (100 * part for part in spread(values))
        there = ~np.isnan(mean)
        x, mean, error = np.asarray(settings.n)[there], mean[there], np.nan_to_num(error[there])
        colour = "#000000" if name == "ladder" else COLOURS[number % len(COLOURS)]
        style = ":" if name.startswith("fixed_") else "--" if name in ("ladder_served", "soup_single") else "-"
        width = 2.4 if name == "ladder" else 1.3
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(x, mean, style, color=colour, marker=marker, markersize=4, linewidth=width, label=name)
        axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(settings.n, [str(n) for n in settings.n])
    axes.minorticks_off()
    axes.set_xlabel("labelled pictures")
    axes.set_ylabel("accuracy on unseen pictures, %")
    axes.set_title(f"{settings.base_set}, mean of {len(settings.shifts)} shifts, {settings.seeds} draws")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    save_figure(figure, path, dpi=120)


def plot_composition(results: Results, n: int, path: Path) -> bool:
    """Draw the mean coefficients that searches chose for each shift; False if none was run."""
    settings = results.settings
    names = [name for name in COMPOSED if name in settings.methods]
    names = names or [name for name in ("soup_grid",) if name in settings.methods]
    if not names:
        return False
    figure = new_figure(2.2 + 3.6 * len(names), 1.6 + 0.27 * len(settings.shifts))
    panels: Any = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        table = np.full((len(settings.shifts), len(settings.ingredients)), np.nan)
        found = results.records(name, n)
        for i, shift in enumerate(settings.shifts):
            rows = [record.coefficients for (other, _), record in found.items() if other == shift]
            table[i] = np.mean(np.asarray(rows, dtype=np.float64), axis=0)
        image = axes.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        for (i, m), value in np.ndenumerate(table):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(m, i, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_xticks(range(len(settings.ingredients)), settings.ingredients)
        axes.set_yticks(range(len(settings.shifts)), settings.shifts)
        axes.set_title(name)
    figure.suptitle(f"{settings.base_set}: mean coefficients, n = {n}, {settings.seeds} draws")
    figure.colorbar(image, ax=list(panels), shrink=0.6)
    save_figure(figure, path, dpi=120)
    return True


def plot_fronts(results: Results, n: int, path: Path) -> None:
    """Draw accuracy under the union of attacks against accuracy, a point for each shift, a cross for each mean."""
    settings = results.settings
    rows = [row for row in results.attacked.records.values() if row.shift in settings.shifts]
    figure = new_figure(7.5, 5.5)
    axes: Any = figure.subplots()
    for number, method in enumerate(dict.fromkeys(row.method for row in rows)):
        points = [(row.accuracy["clean"], row.accuracy["union"]) for row in rows if row.method == method]
        x, y = 100 * np.asarray(points).T
        colour = "#000000" if method == "ladder" else COLOURS[number % len(COLOURS)]
        axes.scatter(x, y, s=14, color=colour, alpha=0.4, linewidths=0)
        mark = f"{method}: {x.mean():.1f}, {y.mean():.1f}"
        axes.scatter(x.mean(), y.mean(), s=90, color=colour, marker="X", edgecolors="white", label=mark)
    axes.set_xlabel("accuracy on unseen pictures of the shift, %")
    axes.set_ylabel("accuracy under attack (union of threat models), %")
    axes.set_title(
        f"{settings.base_set}, chosen on {n} labelled pictures; crosses: means of {len(settings.shifts)} shifts"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)
    save_figure(figure, path, dpi=120)


def plot_landscapes(results: Results, path: Path) -> bool:
    """Draw, shift by shift, what every soup gains over the best ingredient; False if it is not known which they were.

    A soup lies at the weighted mean of its ingredients' corners, outside where a coefficient is negative. Of soups that
    fall together the best is shown, and stars mark the best of all.
    """
    settings, soups = results.settings, results.soups()
    if soups is None:
        return False
    corners = corners_of(len(settings.ingredients))
    places, place_of = np.unique(np.round(soups @ corners, 6), axis=0, return_inverse=True)
    alone = [int(np.abs(soups - row).max(axis=1).argmin()) for row in np.eye(soups.shape[1])]
    columns = min(MAPS_ACROSS, len(settings.shifts))
    rows = -(-len(settings.shifts) // columns)
    figure = new_figure(2.1 * columns, 2.15 * rows + 0.5)
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(settings.shifts) :]:
        axes.set_visible(False)
    for axes, shift in zip(panels.flat, settings.shifts, strict=False):
        found = [results.landscapes.records[shift, seed].test for seed in settings.draws]
        mean = 100 * np.mean(np.asarray(found), axis=0)
        gains = np.full(len(places), -np.inf)
        np.maximum.at(gains, place_of.ravel(), mean - mean[alone].max())
        dots = axes.scatter(*places.T, c=gains, s=16, cmap="RdBu_r", vmin=-MAPPED_POINTS, vmax=MAPPED_POINTS)
        axes.scatter(*places[gains.argmax()], marker="*", s=110, facecolors="none", edgecolors="black")
        outline = np.concatenate([corners, corners[:1]])
        axes.plot(*outline.T, color="#999999", linewidth=0.8, zorder=0)
        for corner, name in zip(corners, settings.ingredients, strict=True):
            axes.annotate(name, NAMED_AT * corner, ha="center", va="center", fontsize=6.5)
        axes.set_title(f"{shift}: {gains.max():+.1f}", fontsize=8.5)
        axes.set(aspect="equal", xlim=(-NAMED_AT - 0.3, NAMED_AT + 0.3), ylim=(-NAMED_AT - 0.1, NAMED_AT + 0.1))
        axes.set_axis_off()
    figure.suptitle(f"{settings.base_set}: points of accuracy over the best ingredient of each shift")
    figure.colorbar(dots, ax=panels, shrink=0.5, extend="both")
    save_figure(figure, path, dpi=110)
    return True


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of this size in inches, for `save_figure`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late: slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
