"""Pictures: synthetic ones to send, which compress and decode like photographs, and small files of figures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIGURE_COLOURS = 256


def jpegs(n: int, height: int, width: int, *, seed: int) -> list[bytes]:
    """Return n different JPEG files (quality 75, 4:2:0) of this size."""
    generator = np.random.default_rng(seed)
    files = []
    for _ in range(n):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth) + generator.normal(0, 12, (height, width, 3))
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=75)
        files.append(buffer.getvalue())
    return files


def save_figure(figure: Any, path: Path, *, dpi: int) -> None:
    """Write a matplotlib figure as a PNG file with a palette: a quarter of the bytes, colours within 20 / 255."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    with Image.open(buffer) as drawn:
        with_palette(drawn).save(path, "PNG", optimize=True, dpi=(dpi, dpi))


def with_palette(image: Image.Image, colours: int = FIGURE_COLOURS) -> Image.Image:
    """Return an opaque image in the palette that keeps its rarest colours close, not only the frequent ones."""
    method = Image.Quantize.MAXCOVERAGE
    return image.convert("RGB").quantize(colours, method=method, kmeans=1, dither=Image.Dither.NONE)
