"""Shifts of the rendition kind, of light and of air, five severities each: as drawn, printed, painted, at night.

These are our own; they stand in, at the size of CIFAR, for what ImageNet-R and ImageNet-Sketch are to ImageNet
(Hendrycks et al. 2021, arXiv:2006.16241; Wang et al. 2019, arXiv:1905.13549). Lengths in pixels grow with the picture.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.shifts.corruptions import Corruption
from benchmarks.shifts.levels import LARGE, SMALL, Levels
from benchmarks.shifts.pixels import Batch, Unit, luminance, picture_by_picture, smooth

AIRLIGHT = 0.8  # grey of the light that haze scatters into the lens
READ_NOISE = 0.01  # standard deviation of what a sensor adds in the dark
SOBEL = np.outer([-1, 0, 1], [1, 2, 1]).astype(np.float32) / 8  # brightness gradient per pixel
STROKE = 5.0  # darkness of a pencil line per unit of that gradient
GROWN = LARGE / SMALL


def sketch(x: Unit, level: tuple[float, float], generator: np.random.Generator) -> Unit:
    """Draw the edges in pencil on white paper: (share that is drawing and no longer photograph, width of the pencil).

    A pencil of `width` pixels sees the brightness averaged over as many, and its change over them.
    """
    share, width = level
    grey = luminance(x)[..., 0]
    if width > 1:
        grey = smooth(grey, float(np.sqrt((width**2 - 1) / 12)))  # the spread of squares, less that of one pixel
    down, across = (ndimage.correlate(grey, kernel[None], mode="nearest") for kernel in (SOBEL, SOBEL.T))
    gradient = width * np.hypot(down, across)[..., None]
    drawing = (1 - STROKE * gradient).clip(0, 1)
    return np.asarray((1 - share) * x + share * drawing, dtype=np.float32)


def posterise(x: Unit, levels: int, generator: np.random.Generator) -> Unit:
    """Keep this many levels of each colour."""
    return np.asarray(np.round(x * (levels - 1)) / (levels - 1), dtype=np.float32)


def inversion(x: Unit, threshold: float, generator: np.random.Generator) -> Unit:
    """Invert the values above the threshold: solarised at first, a negative when it is 0."""
    return np.where(x >= threshold, 1 - x, x)


def greyscale(x: Unit, share: float, generator: np.random.Generator) -> Unit:
    """Take away this share of the colour."""
    return (1 - share) * x + share * luminance(x)


def painting(x: Unit, level: tuple[float, float], generator: np.random.Generator) -> Unit:
    """Flatten into brush strokes: (reach in pixels, rounds).

    Each pixel becomes the mean of whichever of the four squares that it is a corner of varies least.

    Source: Kuwahara et al. 1976 (Processing of RI-angiocardiographic images).
    """
    reach, rounds = round(level[0]), round(level[1])
    for _ in range(rounds):
        x = _kuwahara(x, reach)
    return x


def _kuwahara(x: Unit, reach: int) -> Unit:
    least = np.full((*x.shape[:3], 1), np.inf, dtype=np.float32)
    painted = x
    for down in (-1, 1):
        for right in (-1, 1):
            # A square of side reach + 1 that begins or ends at the pixel.
            origin = (0, _corner(reach, down), _corner(reach, right), 0)
            mean, square = (
                ndimage.uniform_filter(values, (0, reach + 1, reach + 1, 0), mode="mirror", origin=origin)
                for values in (x, x * x)
            )
            spread = (square - mean * mean).sum(axis=3, keepdims=True)
            painted = np.where(spread < least, mean, painted)
            least = np.minimum(spread, least)
    return painted


def _corner(reach: int, side: int) -> int:
    """Return the origin that puts a filter of reach + 1 pixels on one side of its pixel, which it includes."""
    return -((reach + 1) // 2) if side > 0 else reach - (reach + 1) // 2


def palette(x: Unit, colours: int, generator: np.random.Generator) -> Unit:
    """Paint with this many colours, chosen for each picture by median cut."""

    def change(picture: Batch) -> Batch:
        few = Image.fromarray(picture).quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        return np.asarray(few.convert("RGB"))

    return picture_by_picture(x, change)


def channel_swap(x: Unit, share: float, generator: np.random.Generator) -> Unit:
    """Replace this share of red, green, blue by green, blue, red."""
    return (1 - share) * x + share * np.roll(x, -1, axis=3)


def low_light(x: Unit, level: tuple[float, float], generator: np.random.Generator) -> Unit:
    """Photograph at night: (share of the light, photons of a pixel that was white), read noise added."""
    light, photons = level
    counted = generator.poisson(x * photons) / photons * light
    return (counted + READ_NOISE * generator.standard_normal(x.shape)).astype(np.float32)


def haze(x: Unit, level: tuple[float, float], generator: np.random.Generator) -> Unit:
    """Replace a share of the light by grey air light, which also blurs: (share, sigma in pixels)."""
    share, sigma = level
    return (1 - share) * smooth(x, sigma) + (share * AIRLIGHT)


PENCILS = ((0.3, 1), (0.5, 1), (0.7, 1), (0.85, 1), (1.0, 1))
STROKES = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 2))
HAZE = ((0.2, 0.2), (0.35, 0.3), (0.5, 0.4), (0.6, 0.5), (0.7, 0.6))


def _levels(levels: Sequence[tuple[float, float]], *, at: int, by: float) -> Levels:
    """Return the levels with the number at this position multiplied."""
    one, two, three, four, five = (
        tuple(value * by if position == at else value for position, value in enumerate(level)) for level in levels
    )
    return one, two, three, four, five


RENDITIONS: Mapping[str, Corruption] = {
    "sketch": Corruption(sketch, PENCILS, _levels(PENCILS, at=1, by=GROWN)),
    "posterise": Corruption(posterise, (8, 6, 4, 3, 2)),
    "inversion": Corruption(inversion, (0.85, 0.7, 0.55, 0.35, 0.0)),
    "greyscale": Corruption(greyscale, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "painting": Corruption(painting, STROKES, _levels(STROKES, at=0, by=GROWN)),
    "palette": Corruption(palette, (24, 16, 8, 5, 3)),
    "channel_swap": Corruption(channel_swap, (0.2, 0.4, 0.6, 0.8, 1.0)),
}

LIGHT: Mapping[str, Corruption] = {
    "low_light": Corruption(low_light, ((0.7, 400), (0.55, 200), (0.4, 100), (0.3, 60), (0.2, 30))),
    "haze": Corruption(haze, HAZE, _levels(HAZE, at=1, by=GROWN)),
}
