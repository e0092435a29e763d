"""Pictures: synthetic ones to send, which compress and decode like photographs, and small files of figures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

FIGURE_COLOURS = 256


def jpegs(n: int, height: int, width: int, *, seed: int) -> list[bytes]:
    """Return n different JPEG files (quality 75, 4:2:0) of this size."""
    generator = np.random.default_rng(seed)
    return [_jpeg(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8), height, width, generator) for _ in range(n)]


def labelled_jpegs(
    n: int, num_classes: int, height: int, width: int, *, seed: int
) -> tuple[list[bytes], npt.NDArray[np.int64]]:
    """Return n different JPEG files, those of a class alike in colours, and labels (n,), each class in turn."""
    generator = np.random.default_rng(seed)
    shared = generator.uniform(0, 255, (num_classes, 4, 4, 3))
    labels = np.arange(n, dtype=np.int64) % num_classes
    own = generator.uniform(0, 255, (n, 4, 4, 3))
    coarse = ((shared[labels] + own) / 2).astype(np.uint8)
    return [_jpeg(one, height, width, generator) for one in coarse], labels


def _jpeg(coarse: npt.NDArray[np.uint8], height: int, width: int, generator: np.random.Generator) -> bytes:
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + generator.normal(0, 12, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


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
