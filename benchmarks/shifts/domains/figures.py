"""Pictures of a study: accuracy against labelled pictures, and what the domains look like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from adapt.reporting.plots import COLOURS
from benchmarks.pictures import save_figure
from benchmarks.shifts.domains.pictures import Store
from benchmarks.shifts.domains.values import MEAN, Values
from benchmarks.shifts.figures import MARKERS, new_figure
from training.data import balanced_indices

OURS = ("ladder", "ladder_served", "ladder_quick", "ladder_full")
ACROSS = 3  # panels
CELL, SHOWN, TITLE, GAP = 80, 9, 120, 4  # pixels of a picture, pictures of a domain, pixels of names, between rows
QUALITY = 80


def plot_accuracy(values: Values, path: Path) -> None:
    """Draw accuracy against labelled pictures, one panel for each family and one for the mean; one standard error."""
    panels = [*values.families, *([MEAN] if len(values.averaged) > 1 else [])]
    columns = min(ACROSS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.0 * columns + 2.2, 3.6 * rows)
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, what in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, values, what)
        title = f"mean of {', '.join(values.averaged)}" if what == MEAN else what
        axes.set_title(title, fontsize=9)
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, path, dpi=110)


def _draw_panel(axes: Any, values: Values, what: str) -> None:
    for number, method in enumerate(values.methods):
        found = {n: there for n in values.counts if (there := values.estimate(what, method, n)) is not None}
        if not found:
            continue
        x, mean = np.asarray(list(found)), 100 * np.asarray([there.mean for there in found.values()])
        error = 100 * np.asarray([there.error or 0.0 for there in found.values()])
        is_ours, is_fixed = method in OURS, method.startswith("fixed_")
        colour = "#000000" if is_ours else COLOURS[number % len(COLOURS)]
        style = ":" if is_fixed else "--" if is_ours and method != "ladder" else "-"
        marker, width = MARKERS[number % len(MARKERS)], 2.2 if is_ours else 1.1
        axes.plot(x, mean, style, color=colour, marker=marker, markersize=3.5, linewidth=width, label=method)
        axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(values.counts, [str(n) for n in values.counts])
    axes.minorticks_off()
    axes.set_xlabel("labelled pictures")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)


def write_sheet(store: Store, names: Sequence[str], path: Path, *, seed: int) -> None:
    """Write a JPEG file with a row of pictures for each domain, as evenly over the classes as these allow."""
    size = (TITLE + SHOWN * CELL, len(names) * (CELL + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        data, top = store.load(name), row * (CELL + GAP)
        draw.text((4, top + CELL // 2 - 6), name, fill="black")
        chosen = balanced_indices(data.labels, SHOWN, seed=seed)
        for column, index in enumerate(chosen[np.argsort(data.labels[chosen], kind="stable")]):
            picture = Image.fromarray(np.asarray(data.images[index])).resize((CELL, CELL), Image.Resampling.BICUBIC)
            sheet.paste(picture, (TITLE + column * CELL, top))
    sheet.save(path, "JPEG", quality=QUALITY)
