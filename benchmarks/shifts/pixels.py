"""Arithmetic on batches of small pictures: conversion, zooms, warps, blurs along a line."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Batch = npt.NDArray[np.uint8]  # (n, H, W, 3) RGB
Unit = npt.NDArray[np.float32]  # (n, H, W, C) on the [0, 1] scale

LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)  # of R, G, B in the brightness one sees (ITU-R BT.601)
NEGLIGIBLE = 1e-4  # share of a blur that is left out


def to_unit(images: Batch) -> Unit:
    """Return the pictures on the [0, 1] scale."""
    return np.asarray(images.astype(np.float32) / 255, dtype=np.float32)


def to_bytes(x: Unit) -> Batch:
    """Return the pictures as bytes, clipped to [0, 1] and rounded to the nearest grey level."""
    return np.round(x.clip(0, 1) * 255).astype(np.uint8)


def luminance(x: Unit) -> Unit:
    """Return the brightness of RGB pictures, (n, H, W, 1)."""
    return np.asarray(x @ LUMA[:, None], dtype=np.float32)


def picture_by_picture(x: Unit, change: Callable[[Batch], Batch]) -> Unit:
    """Return the pictures after `change`, which takes and returns one uint8 picture (H, W, 3)."""
    return to_unit(np.stack([change(picture) for picture in to_bytes(x)]) if len(x) else to_bytes(x))


def smooth(x: Unit, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> Unit:
    """Return the pictures, (n, H, W) or (n, H, W, C), blurred by a Gaussian of `sigma` pixels."""
    sigmas = (0, sigma, sigma, 0)[: x.ndim]
    return np.asarray(ndimage.gaussian_filter(x, sigmas, mode=mode, truncate=truncate))


def magnify(x: Unit, factor: float) -> Unit:
    """Return the centre of the pictures, enlarged linearly by `factor` (at least 1) to the old size."""
    down, across = magnifier(x.shape[1], factor), magnifier(x.shape[2], factor)
    return np.asarray(np.einsum("ij,njkc,lk->nilc", down, x, across, optimize=True), dtype=np.float32)


def magnifier(size: int, factor: float) -> Unit:
    """Return the matrix (size, size) that enlarges the middle of a row of pixels, end pixels kept in place."""
    kept = int(np.ceil(size / factor))
    first = (size - kept) // 2
    enlarged = ndimage.zoom(np.eye(size, dtype=np.float32)[first : first + kept], (factor, 1), order=1)
    first = (len(enlarged) - size) // 2
    return np.asarray(enlarged[first : first + size])


def warp(x: Unit, rows: Unit, columns: Unit) -> Unit:
    """Return the pictures sampled at fractional positions, linearly, mirrored at their edges.

    Args:
        x: (n, H, W, C).
        rows: (n, H, W), where each pixel of the result comes from; 0 is the centre of the first row.
        columns: (n, H, W).
    """
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, across = (rows - top)[..., None], (columns - left)[..., None]
    flat = x.reshape(len(x), -1, x.shape[3])
    picture = np.arange(len(x))[:, None, None]

    def at(row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]) -> Unit:
        return np.asarray(
            flat[picture, _mirror(row, x.shape[1]) * x.shape[2] + _mirror(column, x.shape[2])], dtype=np.float32
        )

    upper = (1 - across) * at(top, left) + across * at(top, left + 1)
    lower = (1 - across) * at(top + 1, left) + across * at(top + 1, left + 1)
    return np.asarray((1 - down) * upper + down * lower, dtype=np.float32)


def _mirror(index: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Fold positions outside 0 ... size - 1 back inside, the edge pixel being the mirror."""
    period = max(2 * (size - 1), 1)
    folded = np.abs(index) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros_like(index)


def line_blur(x: Unit, *, radius: float, sigma: float, angles: Unit) -> Unit:
    """Return the pictures smeared to one side along a line, as a moving camera would.

    The weights are half a Gaussian of `sigma` pixels, cut off after 2 * radius + 1 pixels; positions are rounded to
    whole pixels; edge pixels continue outside.

    Args:
        x: (n, H, W, C).
        radius: in pixels.
        sigma: in pixels.
        angles: (n,), in degrees; 0 is along the rows.

    Source: MotionBlurImage of ImageMagick, which the published corruptions call.
    """
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    downs, acrosses = np.sin(np.radians(angles)), np.cos(np.radians(angles))
    blurred = np.zeros_like(x)
    picture = np.arange(len(x))[:, None, None]
    for step, weight in zip(steps, weights, strict=True):
        if weight < NEGLIGIBLE:
            break
        rows = np.arange(x.shape[1]) + np.round(step * downs).astype(np.int64)[:, None]
        columns = np.arange(x.shape[2]) + np.round(step * acrosses).astype(np.int64)[:, None]
        rows, columns = rows.clip(0, x.shape[1] - 1), columns.clip(0, x.shape[2] - 1)
        blurred += weight * x[picture, rows[:, :, None], columns[:, None, :]]
    return blurred
