"""Draw docs/overview.svg, the README's picture: `python docs/overview.py`."""

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

COLOURS = {"nominal": "#ee6677", "linf": "#4477aa", "l2": "#228833", "l1": "#ccbb44"}
BEFORE = {"nominal": 1.0, "linf": 0.0, "l2": 0.0, "l1": 0.0}
AFTER = {"nominal": 0.5, "linf": 0.75, "l2": 0.0, "l1": -0.25}
TRAINED = {"nominal": "clean images", "linf": "Linf attacks", "l2": "L2 attacks", "l1": "L1 attacks"}
INK, GREY = "#222222", "#888888"


def draw(path: Path) -> None:
    """Draw the picture."""
    mpl.rcParams["svg.hashsalt"] = "saucier"  # the same file every time
    figure = Figure(figsize=(11, 4.6))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 110), ylim=(0, 46))
    axes.axis("off")
    _ingredients(axes)
    _soup(axes, 33, 31.5, "soup 1", BEFORE, GREY)
    _soup(axes, 33, 16.5, "soup 2", AFTER, INK)
    _service(axes)
    _adaptation(axes)
    figure.savefig(path, metadata={"Date": None})


def _ingredients(axes: Axes) -> None:
    axes.text(10.5, 43.2, "ingredients", ha="center", fontsize=13, fontweight="bold", color=INK)
    axes.text(10.5, 40.9, "one network, trained four ways", ha="center", fontsize=8.5, color=GREY)
    for place, (name, colour) in enumerate(COLOURS.items()):
        y = 33.4 - 8.2 * place
        _box(axes, 2, y, 17, 6, colour, filled=True)
        axes.text(10.5, y + 3.9, name, ha="center", va="center", fontsize=12, fontweight="bold", color="white")
        axes.text(10.5, y + 1.8, TRAINED[name], ha="center", va="center", fontsize=9, color="white")
    _arrow(axes, (20.2, 24), (31.8, 36), "")
    _arrow(axes, (20.2, 24), (31.8, 21), "")


def _soup(axes: Axes, x: float, y: float, title: str, coefficients: dict[str, float], colour: str) -> None:
    """Show a soup's coefficients as bars around its zero line."""
    _box(axes, x, y, 18, 11.2, colour)
    axes.text(x + 16.8, y + 9.4, title, fontsize=12, fontweight="bold", color=colour, ha="right", va="center")
    axes.plot([x + 1.5, x + 16.5], [y + 3.2, y + 3.2], color=colour, linewidth=0.8)
    for place, (name, value) in enumerate(coefficients.items()):
        left = x + 2 + 3.7 * place
        axes.bar(left, 5 * value, width=2.6, bottom=y + 3.2, align="edge", color=COLOURS[name])
        at = y + 3.2 + 5 * max(value, 0) + 0.9
        axes.text(left + 1.3, at, f"{value:g}", ha="center", va="center", fontsize=8, color=colour)


def _service(axes: Axes) -> None:
    _box(axes, 63, 16.5, 21, 26.2, INK)
    axes.text(73.5, 40.2, "bentoml serve", ha="center", va="center", fontsize=13, fontweight="bold", color=INK)
    for place in range(2):
        _box(axes, 65.5, 30.2 - 8.6 * place, 16, 6.6, INK)
        axes.text(73.5, 34.6 - 8.6 * place, f"worker {place + 1}", ha="center", va="center", fontsize=11, color=INK)
        axes.text(73.5, 32 - 8.6 * place, "one network", ha="center", va="center", fontsize=9, color=GREY)
    axes.text(73.5, 18.9, "all weights memory-mapped once", ha="center", va="center", fontsize=8, color=GREY)
    _arrow(axes, (51.4, 37), (62.6, 33), "", colour=GREY, style="--")
    _arrow(axes, (51.4, 22), (62.6, 27), "swap")
    axes.text(97.5, 40.2, "clients", ha="center", va="center", fontsize=13, fontweight="bold", color=INK)
    _arrow(axes, (106, 34.4), (84.6, 34.4), "POST /predict")
    _arrow(axes, (84.6, 28.6), (106, 28.6), "label, confidence")
    axes.text(95.5, 26.3, "and the soup's version", ha="center", va="center", fontsize=9, color=GREY)


def _adaptation(axes: Axes) -> None:
    _box(axes, 63, 1.5, 21, 9.4, INK)
    axes.text(73.5, 8, "149 soups tried,", ha="center", va="center", fontsize=10, color=INK)
    axes.text(73.5, 5.8, "the best one judged", ha="center", va="center", fontsize=10, color=INK)
    axes.text(73.5, 3.6, "on held-out images", ha="center", va="center", fontsize=10, color=INK)
    _arrow(axes, (106, 6.2), (84.6, 6.2), "POST /adapt")
    axes.text(95.5, 3.8, "100 labelled images", ha="center", va="center", fontsize=9, color=GREY)
    _arrow(axes, (62.6, 6.2), (42, 16.1), "better?  new coefficients", curve=-0.25)


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, *, filled: bool = False) -> None:
    style = "round,pad=0,rounding_size=0.9"
    face = colour if filled else "white"
    axes.add_patch(FancyBboxPatch((x, y), width, height, style, facecolor=face, edgecolor=colour, linewidth=1.3))


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    words: str,
    *,
    colour: str = INK,
    style: str = "-",
    curve: float = 0.0,
) -> None:
    shape = f"arc3,rad={curve}"
    arrow = FancyArrowPatch(
        start, end, connectionstyle=shape, arrowstyle="-|>", mutation_scale=13, color=colour, linestyle=style
    )
    axes.add_patch(arrow)
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 1.5)
    if curve:
        middle = (middle[0] - 3.5, middle[1] - 8.2)
    axes.text(*middle, words, ha="center", va="center", fontsize=10, color=colour)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
