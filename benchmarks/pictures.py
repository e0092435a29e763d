"""Pictures: synthetic ones to send, which compress and decode like photographs, and small files of figures."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

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


def photograph(height: int, width: int, *, seed: int) -> Image.Image:
    """Return a picture with the detail of a photograph: sharp edges, and texture at every scale down to single pixels.

    As a JPEG of quality 90 it has about a third of a byte per pixel, like what cameras write.
    """
    generator = np.random.default_rng(seed)
    texture = np.full((height, width), 125, np.float32)
    longest, side, strength = max(height, width), 4, 45.0
    while side < 2 * longest:
        shape = [min(length, max(1, side * length // longest)) for length in (height, width)]
        noise = Image.fromarray(generator.normal(0, strength, shape).astype(np.float32))
        texture += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC))
        side, strength = 2 * side, 0.86 * strength
    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    scene = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scene)
    for number in range(40):
        x, y = generator.uniform(0, width), generator.uniform(0, height)
        across, down = generator.uniform(0.01, 0.15, 2) * longest
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        (draw.ellipse if number % 2 else draw.rectangle)((x - across, y - down, x + across, y + down), fill=colour)
    mixed = 0.55 * np.asarray(scene, np.float32) + 0.45 * texture[:, :, None]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def photographs(n: int, height: int, width: int, *, seed: int, quality: int = 90) -> list[bytes]:
    """Return n different photographs as JPEG files (4:2:0) of this size. Takes a second per 3 megapixels."""
    files = []
    for index in range(n):
        buffer = io.BytesIO()
        photograph(height, width, seed=seed + index).save(buffer, "JPEG", quality=quality)
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
