import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.pictures import save_figure


def test_figures_are_small_and_keep_their_colours(tmp_path: Path) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.random.default_rng(0).random((12, 12)), interpolation="bilinear")
    for number in range(8):
        axes.plot([0, 11], [number, 11 - number], marker="o", alpha=0.7, label=f"line {number}")
    axes.legend()
    plain = io.BytesIO()
    figure.savefig(plain, format="png", dpi=120)
    save_figure(figure, tmp_path / "figure.png", dpi=120)
    with Image.open(tmp_path / "figure.png") as small, Image.open(plain) as drawn:
        assert (small.format, small.mode, small.size) == ("PNG", "P", drawn.size)
        assert round(small.info["dpi"][0]) == 120
        off = np.abs(np.asarray(small.convert("RGB"), float) - np.asarray(drawn.convert("RGB"), float)).max(axis=2)
    assert (tmp_path / "figure.png").stat().st_size < 0.5 * len(plain.getvalue())
    assert off.mean() < 3
    assert np.percentile(off, 99) < 20
