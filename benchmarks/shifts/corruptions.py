"""The 15 standard corruptions with their published parameters, five severities each, for pictures of any size.

Source: Hendrycks and Dietterich 2019 (arXiv:1903.12261), section 3; the parameters are those of CIFAR-10-C for 32
pixels and those of ImageNet-C for 224 (see `levels`, also for what is between; smaller and larger pictures take the
nearer ones). The code is our own, over whole batches. It differs from the published code in four ways: grey levels are
rounded where theirs are cut off, the frost is drawn where theirs is photographed, rounding to bytes within glass blur
and snow is left out, and zoom blur enlarges in steps of one percent at every size.
"""

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.shifts.levels import AT_32, AT_224, Level, Levels, between, growth
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
WIDE_DISC = 8  # pixels of radius up to which a disc's edge is softened 3 x 3


@dataclass(frozen=True)
class Corruption:
    """What happens to pictures, and how much of it at each severity.

    Attributes:
        change: takes pictures (n, H, W, 3) on the [0, 1] scale, which it must not write to, a level, and a source of
            randomness; returns pictures of that shape, which are then clipped to [0, 1].
        levels: what `change` gets at severity 1 to 5 for pictures of 32 pixels.
        large: the same for 224 pixels; None where size does not matter.
    """

    change: Callable[[Unit, Any, np.random.Generator], Unit]
    levels: Levels
    large: Levels | None = None

    def level(self, severity: int, height: int, width: int) -> Level:
        """Return what `change` gets at a severity for pictures of this size."""
        small = self.levels[severity - 1]
        return small if self.large is None else between(small, self.large[severity - 1], growth(height, width))

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
        return to_bytes(self.change(to_unit(images), self.level(severity, *images.shape[1:3]), generator))


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
    """Blur by a disc of `radius` pixels whose edge is softened by a Gaussian of `soft` pixels, 3 x 3 or 5 x 5."""
    radius, soft = level
    reach, edge = int(radius), 1 if radius <= WIDE_DISC else 2
    offsets = np.arange(-reach, reach + 1)
    disc = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
    bell = np.exp(-(np.arange(-edge, edge + 1) ** 2) / (2 * soft**2))
    kernel = ndimage.convolve(np.pad(disc, edge), np.outer(bell, bell), mode="constant")
    return np.asarray(ndimage.convolve(x, (kernel / kernel.sum())[None, :, :, None].astype(np.float32), mode="mirror"))


def glass_blur(x: Unit, level: tuple[float, float, float], generator: np.random.Generator) -> Unit:
    """Blur by `sigma`; `rounds` times put at each pixel one near it, at random; blur again: (sigma, reach, rounds).

    The pixel comes from up to `reach` rows above to `reach` - 1 below, and columns likewise. The published script means
    to swap two pixels, but assigns through views and so copies the one over the other; with a reach of 1 in an order in
    which no copy is copied again. The published images are made like that, and so are these, for any reach.
    """
    sigma, reach, rounds = level[0], round(level[1]), round(level[2])
    n, height, width, _ = x.shape
    x = smooth(x, sigma)
    picture = np.arange(n)[:, None, None]
    for _ in range(rounds):
        up, left = generator.integers(1 - reach, reach + 1, (2, n, height, width))
        for moved in (up, left):  # the published loops leave the border alone
            moved[:, : reach + 1] = moved[:, :, : reach + 1] = 0
            moved[:, height - reach + 1 :] = moved[:, :, width - reach + 1 :] = 0
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


def frost(x: Unit, level: tuple[float, float, float], generator: np.random.Generator) -> Unit:
    """Look through a frosted window: (share of the scene, share of the ice, how much larger the ice is)."""
    scene, ice, scale = level
    windows = frosted_windows(*x.shape[:3], scale=round(scale), generator=generator)
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


def jpeg_compression(x: Unit, quality: float, generator: np.random.Generator) -> Unit:
    """Write and read a JPEG file."""

    def change(picture: Batch) -> Batch:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=round(quality))
        return np.asarray(Image.open(file))

    return picture_by_picture(x, change)


def _uniform(generator: np.random.Generator, low: float, high: float, shape: int | tuple[int, ...]) -> Unit:
    return np.asarray(generator.uniform(low, high, shape), dtype=np.float32)


CORRUPTIONS: Mapping[str, Corruption] = {
    change.__name__: Corruption(change, AT_32[change.__name__], AT_224[change.__name__])
    for change in (
        *(
            gaussian_noise,
            shot_noise,
            impulse_noise,
            defocus_blur,
            glass_blur,
            motion_blur,
            zoom_blur,
            snow,
            frost,
            fog,
        ),
        *(brightness, contrast, elastic_transform, pixelate, jpeg_compression),
    )
}
