"""A demo's picture: what was shown, what the soups answered, how one replaced the other."""

from pathlib import Path
from typing import Any

import numpy as np

from adapt.reporting.plots import COLOURS
from service.demo.story import Pictures, Story
from training.images import decode

MOST_SHOWN = 10
MOST_BINS = 60
RIGHT, WRONG = "#228833", "#cc3311"
BEFORE, AFTER = "#bbbbbb", "#4477aa"


def draw(story: Story, pictures: Pictures, path: Path, *, title: str) -> None:
    """Draw the story; the suffix of `path` decides the format, `title` says what the pictures are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late: slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subfigures(2, 1, height_ratios=(1, 1.35))
    upper, lower = panels
    _pictures(upper, story, pictures, title)
    left, middle, right = lower.subplots(1, 3, width_ratios=(0.7, 1, 1.6))
    _accuracy(left, story, chance=1 / len(pictures.class_names))
    _soups(middle, story)
    _load(right, story)
    figure.savefig(path, dpi=110)


def _pictures(figure: Any, story: Story, pictures: Pictures, title: str) -> None:
    """Show a few pictures, one of each class where that is possible, below the scene if there is one; both answers."""
    labels = pictures.labels(pictures.test)
    shown = [labels.index(name) for name in pictures.class_names[:MOST_SHOWN] if name in labels]
    rows = figure.subplots(1 if pictures.scenes is None else 2, len(shown), squeeze=False)
    for column, position in enumerate(shown):
        number = int(pictures.test[position])
        images = [] if pictures.scenes is None else [pictures.scenes[number]]
        for axes, pixels in zip(rows[:, column], [*images, decode(pictures.files[number])], strict=True):
            axes.imshow(pixels, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        answers = story.predicted_before[position], story.predicted_after[position]
        for line, answer in enumerate(answers):
            rows[-1, column].text(
                0.5, -0.14 - 0.24 * line, answer, color=RIGHT if answer == labels[position] else WRONG,
                ha="center", va="center", fontsize=12, fontweight="bold", transform=rows[-1, column].transAxes,
            )  # fmt: skip
    if pictures.scenes is not None:
        rows[0, 0].set_ylabel("scene", rotation=0, ha="right", va="center")
        rows[1, 0].set_ylabel("camera", rotation=0, ha="right", va="center")
    for line, word in enumerate(("before", "after")):
        rows[-1, 0].text(-0.16, -0.14 - 0.24 * line, word, ha="right", va="center", transform=rows[-1, 0].transAxes)
    figure.suptitle(title)


def _accuracy(axes: Any, story: Story, *, chance: float) -> None:
    values = (story.before, story.after)
    bars = axes.bar(["before", "after"], values, color=(BEFORE, AFTER), width=0.65)
    axes.bar_label(bars, [f"{value:.1%}" for value in values], padding=2, fontsize=11)
    axes.axhline(chance, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.text(0.5, chance + 0.01, "chance", fontsize=8, ha="center")
    axes.set(title=f"Accuracy, {len(story.predicted_before)} unseen pictures", ylim=(0, 1.08), xlim=(-0.5, 1.5))
    axes.spines[["top", "right"]].set_visible(False)


def _soups(axes: Any, story: Story) -> None:
    names = list(story.soup_before)
    places = np.arange(len(names))
    for offset, soup, colour, label in (
        (-0.2, story.soup_before, BEFORE, "before"),
        (0.2, story.soup_after, AFTER, "after"),
    ):
        axes.bar(places + offset, [soup[name] for name in names], width=0.38, color=colour, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(title="Coefficients of the soup (sum 1)", xticks=places, xticklabels=names)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _load(axes: Any, story: Story) -> None:
    """Stack answers per second by soup version over time."""
    last = max(second for second, _ in story.answers)
    width = max(0.25, last / MOST_BINS)
    end = width * (last // width)  # the last bin is not full
    edges = np.arange(0, end + width / 2, width)
    below = np.zeros(len(edges) - 1)
    for version, colour in zip(sorted({of for _, of in story.answers}), (BEFORE, AFTER, *COLOURS), strict=False):
        rate = np.histogram([at for at, of in story.answers if of == version], edges)[0] / width
        axes.bar(edges[:-1], rate, width, bottom=below, align="edge", color=colour, label=f"version {version}")
        below += rate
    top = float(below.max())
    marks = [(story.posted, f"{story.job['support']['n']} labelled\npictures posted")]
    if story.swap_ms is not None:
        marks.append((story.rolled_out, f"promoted; in every\nworker {story.swap_ms} ms later"))
    for second, words in marks:
        axes.axvline(second, color="black", linewidth=0.8, linestyle="--")
        axes.text(second + 0.01 * end, 1.03 * top, words, fontsize=9, va="bottom")
    axes.set(
        title=f"{story.num_requests:,} requests meanwhile, {story.num_failed} failed",
        xlabel="seconds", ylabel="answers per second", xlim=(0, end), ylim=(0, 1.3 * top),
    )  # fmt: skip
    axes.legend(loc="lower right", framealpha=1)
    axes.spines[["top", "right"]].set_visible(False)
