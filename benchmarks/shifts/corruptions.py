"""The 15 standard corruptions with their published parameters for 32 x 32 pictures, five severities each.

Source: Hendrycks and Dietterich 2019 (arXiv:1903.12261), section 3; the parameters are those of CIFAR-10-C
(make_cifar_c.py in github.com/hendrycks/robustness, commit ca36008). The code is our own, over whole batches. It
differs in three ways: grey levels are rounded where theirs are cut off, the frost is drawn where theirs is
photographed, and rounding to bytes within glass blur and snow is left out. Lengths in pixels stay as they are for
pictures of another size, lengths relative to the picture grow with it.
"""

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.shifts.pixels import (
    Batch,
    Unit,
    line_blur,
    luminance,
    magnify,
    picture_by_picture,
    smooth,
    to_bytes,
    to_unit,
    warp,
)
from benchmarks.shifts.textures import clouds, frosted_windows

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """What happens to pictures, and how much of it at each severity.

    Attributes:
        change: takes pictures (n, H, W, 3) on the [0, 1] scale, which it must not write to, a level, and a source of
            randomness; returns pictures of that shape, which are then clipped to [0, 1].
        levels: what `change` gets at severity 1 to 5.
    """

    change: Callable[[Unit, Any, np.random.Generator], Unit]
    levels: tuple[Any, Any, Any, Any, Any]

    def __call__(self, images: Batch, severity: int, *, seed: int) -> Batch:
        """Return the corrupted pictures.

        The same pictures, severity and seed give the same result. Other pictures get other noise from the same seed,
        so that a support and a test set corrupted one after the other share none.

        Args:
            images: uint8 RGB (n, H, W, 3).
            severity: 1 to 5.
            seed: of the noise, 0 or more.

        Raises:
            ValueError: images of another kind, no such severity.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"expected uint8 images (n, H, W, 3), got {images.dtype} {images.shape}")
        if severity not in SEVERITIES:
            raise ValueError(f"expected a severity from 1 to 5, got {severity}")
        if len(images) == 0:
            return images.copy()
        generator = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(images).data)])
        return to_bytes(self.change(to_unit(images), self.levels[severity - 1], generator))


def gaussian_noise(x: Unit, scale: float, generator: np.random.Generator) -> Unit:
    """Add normal noise of standard deviation `scale`."""
    return x + scale * generator.standard_normal(x.shape, dtype=np.float32)


def shot_noise(x: Unit, photons: float, generator: np.random.Generator) -> Unit:
    """Count photons: Poisson noise, a white pixel having `photons` of them on average."""
    return (generator.poisson(x * photons) / photons).astype(np.float32)


def impulse_noise(x: Unit, share: float, generator: np.random.Generator) -> Unit:
    """Set this share of the values (not pixels) to black or white."""
    drawn = generator.random(x.shape, dtype=np.float32)
    return np.where(drawn < share, (drawn < share / 2).astype(np.float32), x)


def defocus_blur(x: Unit, level: tuple[float, float], generator: np.random.Generator) -> Unit:
    """Blur by a disc of `radius` pixels whose edge is softened by a Gaussian of `soft` pixels, 3 x 3."""
    radius, soft = level
    reach = int(radius)
    offsets = np.arange(-reach, reach + 1)
    disc = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
    bell = np.exp(-(np.arange(-1, 2) ** 2) / (2 * soft**2))
    kernel = ndimage.convolve(np.pad(disc, 1), np.outer(bell, bell), mode="constant")
    return np.asarray(ndimage.convolve(x, (kernel / kernel.sum())[None, :, :, None].astype(np.float32), mode="mirror"))


def glass_blur(x: Unit, level: tuple[float, int], generator: np.random.Generator) -> Unit:
    """Blur by `sigma`; `rounds` times put at each pixel itself or one above or to its left, at random; blur again.

    The published script means to swap a pixel with one at most 1 away, but assigns through views and so copies the one
    over the other, in an order in which no copy is copied again. The published images are made like that, and so are
    these.
    """
    sigma, rounds = level
    n, height, width, _ = x.shape
    x = smooth(x, sigma)
    picture = np.arange(n)[:, None, None]
    for _ in range(rounds):
        up, left = generator.integers(0, 2, (2, n, height, width))
        up[:, :2], left[:, :2], up[:, :, :2], left[:, :, :2] = 0, 0, 0, 0  # which the published loops leave alone
        x = x[picture, np.arange(height)[:, None] - up, np.arange(width) - left]
    return smooth(x, sigma)


def motion_blur(x: Unit, level: tuple[float, float], generator: np.random.Generator) -> Unit:
    """Smear along a line within 45 degrees of the rows; (radius, sigma) in pixels."""
    radius, sigma = level
    return line_blur(x, radius=radius, sigma=sigma, angles=_uniform(generator, -45, 45, len(x)))


def zoom_blur(x: Unit, most: float, generator: np.random.Generator) -> Unit:
    """Average the picture and its enlargements by 1, 1.01, ... up to `most`, as a lens that zooms would."""
    factors = 1 + np.arange(round(100 * (most - 1)) + 1) / 100
    total = x.copy()
    for factor in factors:
        total += magnify(x, factor)
    return np.asarray(total / (len(factors) + 1), dtype=np.float32)


def snow(x: Unit, level: tuple[float, ...], generator: np.random.Generator) -> Unit:
    """Whiten the scene and let flakes fall: (mean, spread, size, least, radius, sigma, clear).

    Flakes are the peaks above `least` of normal noise enlarged by `size`, smeared downwards by (radius, sigma); the
    scene keeps `clear` of its colour.
    """
    mean, spread, size, least, radius, sigma, clear = level
    noise = generator.normal(mean, spread, (*x.shape[:3], 1)).astype(np.float32)
    flakes = magnify(noise, size)
    flakes = np.where(flakes < least, 0, flakes).clip(0, 1)
    flakes = line_blur(flakes, radius=radius, sigma=sigma, angles=_uniform(generator, -135, -45, len(x)))
    white = np.maximum(x, luminance(x) * 1.5 + 0.5)
    return np.asarray(clear * x + (1 - clear) * white + flakes + flakes[:, ::-1, ::-1], dtype=np.float32)


def frost(x: Unit, level: tuple[float, float], generator: np.random.Generator) -> Unit:
    """Look through a frosted window: (share of the scene, share of the ice)."""
    scene, ice = level
    windows = frosted_windows(*x.shape[:3], generator=generator)
    return scene * x + ice * windows


def fog(x: Unit, level: tuple[float, float], generator: np.random.Generator) -> Unit:
    """Add clouds of (thickness, decay), and darken by as much as keeps the brightest value."""
    thickness, decay = level
    cloud = clouds(*x.shape[:3], decay=decay, generator=generator)[..., None]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return np.asarray((x + thickness * cloud) * brightest / (brightest + thickness), dtype=np.float32)


def brightness(x: Unit, more: float, generator: np.random.Generator) -> Unit:
    """Add to the value of HSV: a pixel's colours grow together until the largest of them is 1."""
    value = x.max(axis=3, keepdims=True)
    brighter = (value + more).clip(0, 1)
    return np.asarray(np.where(value > 0, x * (brighter / np.maximum(value, 1e-6)), brighter), dtype=np.float32)


def contrast(x: Unit, share: float, generator: np.random.Generator) -> Unit:
    """Keep this share of the difference from the picture's mean colour."""
    mean = x.mean(axis=(1, 2), keepdims=True)
    return np.asarray((x - mean) * share + mean, dtype=np.float32)


def elastic_transform(x: Unit, level: tuple[float, float, float], generator: np.random.Generator) -> Unit:
    """Warp by a random affine map, then by a smooth random field; lengths are shares of the height.

    Args:
        x: the pictures.
        level: `strength` of the field, `sigma` that it is smoothed by, and how far each of three points (a third of the
            picture from its centre) `moves` at most.
        generator: of the map and the field.
    """
    strength, sigma, moves = (x.shape[1] * share for share in level)
    n, height, width, _ = x.shape
    x = warp(x, *_affine_positions(n, height, width, moves, generator))
    if strength == 0:
        return x
    fields = _uniform(generator, -1, 1, (2, n, height, width))
    down, across = (strength * smooth(field, sigma, mode="reflect", truncate=3.0) for field in fields)
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    return warp(x, rows + down, columns + across)


def _affine_positions(
    n: int, height: int, width: int, moves: float, generator: np.random.Generator
) -> tuple[Unit, Unit]:
    """Return where each pixel (n, H, W) of a picture moved by its three points comes from: rows, columns."""
    centre, third = np.asarray([width // 2, height // 2]), min(height, width) // 3
    before = centre + third * np.asarray([[1, 1], [1, -1], [-1, -1]])
    after = before + generator.uniform(-moves, moves, (n, 3, 2))
    ones = np.ones((n, 3, 1))
    # (x, y, 1) of the result times `back` is (x, y) of the source.
    back = np.linalg.solve(np.concatenate([after, ones], axis=2), np.broadcast_to(before, (n, 3, 2)).astype(np.float64))
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    grid = np.stack([columns, rows, np.ones_like(rows)], axis=2).reshape(1, -1, 3)
    source = (grid @ back).reshape(n, height, width, 2).astype(np.float32)
    return source[..., 1], source[..., 0]


def pixelate(x: Unit, share: float, generator: np.random.Generator) -> Unit:
    """Shrink to this share of the size and enlarge again, both by box averages."""
    height, width = x.shape[1:3]
    small = (max(1, int(width * share)), max(1, int(height * share)))

    def change(picture: Batch) -> Batch:
        shrunk = Image.fromarray(picture).resize(small, Image.Resampling.BOX)
        return np.asarray(shrunk.resize((width, height), Image.Resampling.BOX))

    return picture_by_picture(x, change)


def jpeg_compression(x: Unit, quality: int, generator: np.random.Generator) -> Unit:
    """Write and read a JPEG file."""

    def change(picture: Batch) -> Batch:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return picture_by_picture(x, change)


def _uniform(generator: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...]) -> Unit:
    return np.asarray(generator.uniform(low, high, shape), dtype=np.float32)


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": Corruption(shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": Corruption(impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": Corruption(defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": Corruption(glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": Corruption(motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": Corruption(zoom_blur, (1.06, 1.11, 1.15, 1.20, 1.25)),
    "snow": Corruption(
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": Corruption(frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": Corruption(fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": Corruption(
        elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": Corruption(pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": Corruption(jpeg_compression, (80, 65, 58, 50, 40)),
}
