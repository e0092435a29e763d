"""Pictures of a search, drawn from `report.json`."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from adapt.report import CandidateReport, Report, best

# One per ingredient: Tol's bright colours, then darker and lighter ones.
# fmt: off
COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#994f00", "#555555",
    "#1b2a52", "#8c1c2b", "#0c4a1a", "#7a6b12", "#b8e6f7", "#e0a3c6", "#e0b27a", "#9ab5d9",
)
# fmt: on


def plot_report(report: Report, path: Path) -> None:
    """Draw a search: composition of the best soups, accuracy against tempCE, and accuracy over the ingredients.

    Args:
        report: of the search.
        path: of the picture; the suffix decides the format (.png, .pdf, .svg).

    Raises:
        ValueError: matplotlib knows no such format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late: slow, and few commands draw
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _composition(left, report)
    _scatter(middle, report)
    _map(right, report, figure)
    outcome = report.outcome
    figure.suptitle(f"{report.base_set}: {outcome.state} on {outcome.support.n} labelled images", fontsize=13)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _composition(axes: Any, report: Report) -> None:
    """Stack each soup's coefficients: positive ones upwards, negative ones downwards."""
    shown = [report.candidates[0], *best(report)]
    labels = ["current", *(f"best {rank}" for rank in range(1, len(shown)))]
    up, down = np.zeros(len(shown)), np.zeros(len(shown))
    for position, name in enumerate(report.ingredient_names):
        values = np.asarray([candidate.coefficients[position] for candidate in shown])
        axes.bar(labels, values, bottom=np.where(values >= 0, up, down), label=name, color=_colour(position), width=0.7)
        up, down = up + values.clip(min=0), down + values.clip(max=0)
    for position, candidate in enumerate(shown):
        axes.text(position, up[position] + 0.03, f"{candidate.accuracy:.3f}", ha="center", fontsize=9)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(title="Composition\nabove: accuracy on the support", ylabel="coefficient", ylim=(None, up.max() + 0.2))
    axes.legend(ncols=min(4, len(report.ingredient_names)), loc="upper center", bbox_to_anchor=(0.5, -0.08), fontsize=9)


def _scatter(axes: Any, report: Report) -> None:
    usable = [candidate for candidate in report.candidates if candidate.temp_ce is not None]
    axes.scatter(*_points(usable), s=14, color="#bbbbbb", label="candidates")
    for position, name in enumerate(report.ingredient_names):
        axes.scatter(*_points(_alone(report, position)), s=70, marker="D", color=_colour(position), label=name)
    axes.scatter(*_points(report.candidates[:1]), s=110, marker="s", facecolors="none", edgecolors="k", label="current")
    axes.scatter(*_points(best(report, 1)), s=170, marker="*", color="black", label="chosen")
    axes.set(
        title="All candidates\n", xlabel="tempCE on the support (lower is better)", ylabel="accuracy on the support"
    )
    axes.locator_params(axis="x", nbins=6)
    axes.legend(fontsize=8)


def _points(candidates: Any) -> tuple[list[float], list[float]]:
    shown = [candidate for candidate in candidates if candidate.temp_ce is not None]
    return [candidate.temp_ce for candidate in shown], [candidate.accuracy for candidate in shown]


def _alone(report: Report, position: int) -> list[CandidateReport]:
    row = tuple(float(position == other) for other in range(len(report.ingredient_names)))
    return [candidate for candidate in report.candidates if candidate.coefficients == row][:1]


def _map(axes: Any, report: Report, figure: Any) -> None:
    """Place each soup at the weighted mean of its ingredients' corners; where several fall together, show the best."""
    corners = _corners(len(report.ingredient_names))
    places: dict[tuple[float, float], float] = {}
    for candidate in report.candidates:
        place = np.asarray(candidate.coefficients) @ corners
        key = (round(float(place[0]), 6), round(float(place[1]), 6))
        places[key] = max(places.get(key, 0.0), candidate.accuracy)
    x, y = zip(*places, strict=True)
    outline = np.concatenate([corners, corners[:1]])
    axes.plot(outline[:, 0], outline[:, 1], color="#999999", linewidth=1, zorder=0)
    dots = axes.scatter(x, y, c=list(places.values()), s=55, cmap="viridis")
    for marker, size, candidates in (("s", 140, report.candidates[:1]), ("*", 300, best(report, 1))):
        place = np.asarray(candidates[0].coefficients) @ corners
        axes.scatter(*place, marker=marker, s=size, facecolors="none", edgecolors="black", linewidths=1.5)
    for corner, name in zip(corners, report.ingredient_names, strict=True):
        axes.annotate(
            name,
            corner,
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=10,
            weight="bold",
        )
    figure.colorbar(dots, ax=axes, label="accuracy on the support", shrink=0.8)
    axes.set(title="Between the ingredients\nsquare: current, star: chosen", xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_frame_on(False)
    axes.margins(0.18)


def _corners(count: int) -> Any:
    """Return the corners (count, 2) of a regular polygon; two ingredients lie on a line."""
    if count == 2:
        return np.asarray([[-1.0, 0.0], [1.0, 0.0]])
    angles = math.pi / 2 + 2 * math.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]
