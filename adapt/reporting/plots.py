"""Pictures: of a search, drawn from `report.json`; of robustness between ingredients, drawn from `fronts.json`."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from adapt.reporting.report import CandidateReport, Report, best
from adapt.robustness.robust import BaseFronts, Fronts, Triangle, edge, inside
from training.manifest import ThreatModel

# One per ingredient: Tol's bright colours, then darker and lighter ones.
# fmt: off
COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#994f00", "#555555",
    "#1b2a52", "#8c1c2b", "#0c4a1a", "#7a6b12", "#b8e6f7", "#e0a3c6", "#e0b27a", "#9ab5d9",
)
# fmt: on
# What is measured: colour and marker, so that no line is told by its colour alone. Dashes are for the other base set.
SERIES = {
    "clean": ("#000000", "o"),
    "Linf": ("#4477aa", "s"),
    "L2": ("#228833", "^"),
    "L1": ("#ee6677", "D"),
    "union": ("#aa3377", "v"),
}
RECALIBRATED = "\N{DAGGER}"
MANY = 6  # ingredients: with more, a legend has no room for each
PANELS = 12  # edges in a picture; further ones go into further pictures


def plot_report(report: Report, path: Path) -> None:
    """Draw a search: composition of the best soups, accuracy against tempCE, and accuracy over the ingredients.

    Args:
        report: of the search.
        path: of the picture; the suffix decides the format (.png, .pdf, .svg).

    Raises:
        ValueError: matplotlib knows no such format.
    """
    figure = _figure(15, 4.8 if len(report.ingredient_names) <= MANY else 6.4)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _composition(left, report)
    _scatter(middle, report)
    _map(right, report, figure)
    outcome = report.outcome
    figure.suptitle(f"{report.base_set}: {outcome.state} on {outcome.support.n} labelled images", fontsize=13)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late: slow, and few commands draw
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def plot_fronts(fronts: Fronts, path: Path) -> list[Path]:
    """Draw accuracy along every edge, one panel each; a second base set dashed.

    Args:
        fronts: the numbers.
        path: of the picture; with more than 12 edges, of the first of several (`fronts.png`, `fronts-2.png`, ...).

    Returns:
        The pictures written.
    """
    pages = [fronts.pairs[start : start + PANELS] for start in range(0, len(fronts.pairs), PANELS)]
    written = []
    for number, pairs in enumerate(pages, 1):
        columns = min(3, len(pairs))
        rows = math.ceil(len(pairs) / columns)
        figure = _figure(max(7.5, 5.0 * columns), 3.9 * rows + 1.5)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, pair in zip(grid.flat, pairs, strict=False):
            _edge(axes, fronts, pair)
        for axes in grid.flat[len(pairs) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy (%)")
        figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)
        figure.suptitle(f"{fronts.bases[0].base_set}: accuracy between ingredients\n{_attack(fronts)}", fontsize=12)
        figure.legend(*_legend(fronts, grid[0, 0]), loc="outside lower center", ncols=5, fontsize=10)
        page = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        _save(figure, page)
        written.append(page)
    return written


def _edge(axes: Any, fronts: Fronts, pair: tuple[str, str]) -> None:
    for base, style in zip(fronts.bases, ("-", "--"), strict=False):
        soups = [base.at(soup) or {} for soup in edge(pair, fronts.steps)]
        for name, (colour, marker) in SERIES.items():
            values = [100 * soup.get(name, math.nan) for soup in soups]
            if not all(map(math.isnan, values)):
                size = 5 if style == "-" else 3
                line = axes.plot(fronts.steps, values, style, color=colour, marker=marker, markersize=size)[0]
                if name == "union":  # broad and behind, as it often lies on its worst threat model
                    line.set(linewidth=5, alpha=0.4, zorder=1.5)
    for outside in ((fronts.steps[0], 0), (1, fronts.steps[-1])):
        axes.axvspan(*outside, color="#eeeeee", zorder=0)
    ticks = [-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25]
    names = {0: f"0\n{pair[0]}", 1: f"1\n{pair[1]}"}
    axes.set_xticks(ticks, [names.get(int(tick) if tick in (0, 1) else -1, f"{tick:g}") for tick in ticks])
    axes.set(
        title=f"{pair[0]} to {pair[1]}",
        xlabel=f"c: (1 \N{MINUS SIGN} c) {pair[0]} + c {pair[1]}",
        xlim=(fronts.steps[0], fronts.steps[-1]),
        ylim=(0, 100),
    )
    axes.grid(color="#dddddd", linewidth=0.6)


def _legend(fronts: Fronts, axes: Any) -> tuple[list[Any], list[str]]:
    """Return handles and labels: what is measured, then which base set."""
    radii: dict[str, str] = {threat.norm: describe(threat) for threat in fronts.settings.threat_models}
    shown = [name for name in SERIES if name in ("clean", "union") or name in radii]
    lines = [axes.plot([], [], color=SERIES[name][0], marker=SERIES[name][1])[0] for name in shown]
    lines[shown.index("union")].set(linewidth=5, alpha=0.4)
    labels: list[str] = [{"union": "union (survives all)"}.get(name, radii.get(name, name)) for name in shown]
    if len(fronts.bases) > 1:
        lines += [axes.plot([], [], style, color="#555555")[0] for style in ("-", "--")]
        labels += [_named(base) for base in fronts.bases]
    return lines, labels


def _named(base: BaseFronts) -> str:
    epochs = ", ".join(f"{name} {count:g}" for name, count in base.epochs.items())
    return f"{base.base_set} (epochs: {epochs})" if epochs else base.base_set


def _attack(fronts: Fronts) -> str:
    settings = fronts.settings
    losses: dict[str, list[str]] = {}
    for threat in settings.threat_models:
        losses.setdefault(settings.losses[threat.norm].upper(), []).append(threat.norm)
    how = "; ".join(f"{', '.join(norms)}: {loss}" for loss, norms in losses.items())
    return (
        f"n = {settings.n} test images (2 standard errors: at most {100 / settings.n**0.5:.1f} points), "
        f"APGD-{settings.num_steps}, 1 restart ({how}), BatchNorm {settings.bn_mode}"
    )


def describe(threat: ThreatModel) -> str:
    """Return a threat model as people write it: Linf 8/255, L2 0.5."""
    levels = threat.eps * 255
    if threat.norm == "Linf" and abs(levels - round(levels, 1)) < 1e-6:
        return f"{threat.norm} {levels:.3g}/255"
    return f"{threat.norm} {threat.eps:.3g}"


def plot_triangle(fronts: Fronts, path: Path, *, step: float) -> None:
    """Draw accuracy over the simplex of three ingredients: clean, under each threat model, and their union.

    Args:
        fronts: the numbers, with a triangle.
        path: of the picture.
        step: of the lattice.
    """
    assert fronts.triangle is not None
    radii: dict[str, str] = {threat.norm: describe(threat) for threat in fronts.settings.threat_models}
    shown = [name for name in SERIES if name in ("clean", "union") or name in radii]
    figure = _figure(15, 9)
    grid = figure.subplots(2, 3)
    for axes, name in zip(grid.flat, shown, strict=False):
        _heat_map(figure, axes, fronts, fronts.triangle, name, radii.get(name, name), step)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    grid.flat[-1].text(
        0.02,
        0.55,
        "Each point of a triangle is a soup of the three ingredients\nat its corners, the closer to a corner the more "
        "of it.\n\ndots: soups measured, colours between them interpolated\nnumbers: the ingredients alone\n"
        "star: the best soup, with its coefficients below",
        fontsize=11,
        va="center",
    )
    title = f"{fronts.bases[0].base_set}: accuracy over the soups of {', '.join(fronts.triangle)}"
    figure.suptitle(f"{title}\n{_attack(fronts)}", fontsize=12)
    _save(figure, path)


def _heat_map(figure: Any, axes: Any, fronts: Fronts, corners: Triangle, name: str, title: str, step: float) -> None:
    soups = [(soup, fronts.bases[0].at(soup)) for soup in inside(corners, step)]
    usable = [(soup, 100 * found[name]) for soup, found in soups if found is not None]
    rows = np.asarray([list(soup.values()) for soup, _ in usable])
    values = np.asarray([value for _, value in usable])
    x, y = (rows @ corners_of(3)).T
    colours = axes.tripcolor(x, y, values, shading="gouraud", cmap="viridis")
    axes.plot(x, y, ".", color="white", markersize=2.5)
    for place, corner, row in zip(corners_of(3), corners, np.eye(3), strict=True):
        own = fronts.bases[0].at(dict(zip(corners, row.tolist(), strict=True)))
        label = f"{corner} {100 * own[name]:.1f}" if own else corner
        above = place[1] > 0
        axes.annotate(
            label,
            place,
            xytext=(0, 6 if above else -6),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=11,
            weight="bold",
        )
    top = int(values.argmax())
    axes.plot(x[top], y[top], "*", markersize=17, markerfacecolor="white", markeredgecolor="black")
    mixture = ", ".join(f"{corner} {value:g}" for corner, value in usable[top][0].items() if value)
    ties = int((values == values[top]).sum()) - 1
    best = f"best: {values[top]:.1f} at {mixture}{f' (tied with {ties} more)' if ties else ''}"
    figure.colorbar(colours, ax=axes, label="accuracy (%)", shrink=0.8)
    axes.set(title=title, xlabel=best, xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.set_frame_on(False)
    axes.margins(0.15, 0.12)


def _composition(axes: Any, report: Report) -> None:
    """Stack each soup's coefficients: positive ones upwards, negative ones downwards."""
    shown = [report.candidates[0], *best(report)]
    labels = ["current", *(f"best {rank}{RECALIBRATED * soup.recalibrated}" for rank, soup in enumerate(shown[1:], 1))]
    up, down = np.zeros(len(shown)), np.zeros(len(shown))
    for position, name in enumerate(report.ingredient_names):
        values = np.asarray([candidate.coefficients[position] for candidate in shown])
        axes.bar(labels, values, bottom=np.where(values >= 0, up, down), label=name, color=_colour(position), width=0.7)
        up, down = up + values.clip(min=0), down + values.clip(max=0)
    for position, candidate in enumerate(shown):
        axes.text(position, up[position] + 0.03, f"{candidate.accuracy:.3f}", ha="center", fontsize=9)
    axes.axhline(0, color="black", linewidth=0.8)
    note = f"; {RECALIBRATED} recalibrated" if any(soup.recalibrated for soup in shown) else ""
    axes.set(
        title=f"Composition\nabove: accuracy on the support{note}", ylabel="coefficient", ylim=(None, up.max() + 0.2)
    )
    axes.legend(ncols=min(4, len(report.ingredient_names)), loc="upper center", bbox_to_anchor=(0.5, -0.08), fontsize=9)


def _scatter(axes: Any, report: Report) -> None:
    usable = [candidate for candidate in report.candidates if candidate.temp_ce is not None]
    plain, anew = ([soup for soup in usable if soup.recalibrated == kind] for kind in (False, True))
    axes.scatter(*_points(plain), s=14, color="#bbbbbb", label="candidates")
    if anew:
        axes.scatter(*_points(anew), s=24, marker="+", color="#777777", label="recalibrated")
    many = len(report.ingredient_names) > MANY
    for position, name in enumerate(report.ingredient_names):
        label = "_" if many else name  # matplotlib leaves labels with an underscore out
        axes.scatter(*_points(_alone(report, position)), s=70, marker="D", color=_colour(position), label=label)
    if many:
        axes.scatter([], [], s=70, marker="D", color="#555555", label="ingredients")
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
    plain = [candidate for candidate in report.candidates if not candidate.recalibrated]
    return [candidate for candidate in plain if candidate.coefficients == row][:1]


def _map(axes: Any, report: Report, figure: Any) -> None:
    """Place each soup at the weighted mean of its ingredients' corners; where several fall together, show the best.

    Only soups of the chosen one's kind, recalibrated or not: the two kinds are two landscapes.
    """
    chosen = best(report, 1)
    kind = bool(chosen) and chosen[0].recalibrated
    corners = corners_of(len(report.ingredient_names))
    places: dict[tuple[float, float], float] = {}
    for candidate in (soup for soup in report.candidates if soup.recalibrated == kind):
        place = np.asarray(candidate.coefficients) @ corners
        key = (round(float(place[0]), 6), round(float(place[1]), 6))
        places[key] = max(places.get(key, 0.0), candidate.accuracy)
    x, y = zip(*places, strict=True)
    outline = np.concatenate([corners, corners[:1]])
    axes.plot(outline[:, 0], outline[:, 1], color="#999999", linewidth=1, zorder=0)
    dots = axes.scatter(x, y, c=list(places.values()), s=55 if len(corners) <= MANY else 12, cmap="viridis")
    for marker, size, candidates in (("s", 140, report.candidates[:1]), ("*", 300, best(report, 1))):
        place = np.asarray(candidates[0].coefficients) @ corners
        axes.scatter(*place, marker=marker, s=size, facecolors="none", edgecolors="black", linewidths=1.5)
    for corner, name in zip(corners, report.ingredient_names, strict=True):
        _name_corner(axes, corner if len(corners) > MANY else np.asarray([0.0, 1.0]), corner, name)
    figure.colorbar(dots, ax=axes, label="accuracy on the support", shrink=0.8)
    what = "recalibrated soups" if kind else "soups"
    axes.set(title=f"Between the ingredients: {what}\nsquare: current, star: chosen", xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_frame_on(False)
    axes.margins(0.18)


def _name_corner(axes: Any, direction: Any, corner: Any, name: str) -> None:
    """Write a name beside a corner: above if there is room between soups, else outside of the polygon."""
    x, y = (0 if abs(value) < 0.2 else int(np.sign(value)) for value in direction)
    axes.annotate(
        name,
        corner,
        xytext=(6 * x, 6 * y),
        textcoords="offset points",
        ha={-1: "right", 0: "center", 1: "left"}[x],
        va={-1: "top", 0: "center", 1: "bottom"}[y],
        fontsize=10,
        weight="bold",
    )


def corners_of(count: int) -> Any:
    """Return the corners (count, 2) of a regular polygon; two ingredients lie on a line."""
    if count == 2:
        return np.asarray([[-1.0, 0.0], [1.0, 0.0]])
    angles = math.pi / 2 + 2 * math.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]
