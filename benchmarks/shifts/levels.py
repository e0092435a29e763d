"""How strong the standard corruptions are: published for 32 and for 224 pixels, on a line between them for other sizes.

Source: the parameters of CIFAR-10-C and of ImageNet-C (make_cifar_c.py and make_imagenet_c.py in
github.com/hendrycks/robustness, commit ca36008).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

SMALL, LARGE = 32, 224  # pixels of the shorter side
ELASTIC = 244 / LARGE  # ImageNet-C states the lengths of its elastic transform for 244 pixels

Level = Any  # a number, or a tuple of numbers
Levels = tuple[Level, Level, Level, Level, Level]  # at severity 1 to 5


def growth(height: int, width: int) -> float:
    """Return how far pictures are from 32 pixels (0) to 224 (1), by the logarithm of their shorter side; clipped."""
    return float(np.clip(np.log(min(height, width) / SMALL) / np.log(LARGE / SMALL), 0, 1))


def between(small: Level, large: Level, share: float) -> Level:
    """Return the level on the geometric line from `small` (share 0) to `large` (share 1); straight from or to a 0."""
    if share in (0, 1):
        return large if share else small
    if isinstance(small, tuple):
        return tuple(between(*pair, share) for pair in zip(small, large, strict=True))
    if small == 0 or large == 0:
        return (1 - share) * small + share * large
    return small * (large / small) ** share


# What each number means is said where it is used, in `corruptions`.
AT_32: Mapping[str, Levels] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (1.06, 1.11, 1.15, 1.20, 1.25),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    # The photographs of frost are shrunk to a fifth for 32 pixels: hence the last number here and below.
    "frost": ((1, 0.2, 1), (1, 0.3, 1), (0.9, 0.4, 1), (0.85, 0.4, 1), (0.75, 0.45, 1)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}

AT_224: Mapping[str, Levels] = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": (60, 25, 12, 5, 3),
    "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": (1.11, 1.15, 1.20, 1.24, 1.30),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4, 5), (0.8, 0.6, 5), (0.7, 0.7, 5), (0.65, 0.7, 5), (0.6, 0.75, 5)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": (
        (2 * ELASTIC, 0.7 * ELASTIC, 0.1 * ELASTIC),
        (2 * ELASTIC, 0.08 * ELASTIC, 0.2 * ELASTIC),
        (0.05 * ELASTIC, 0.01 * ELASTIC, 0.02 * ELASTIC),
        (0.07 * ELASTIC, 0.01 * ELASTIC, 0.02 * ELASTIC),
        (0.12 * ELASTIC, 0.01 * ELASTIC, 0.02 * ELASTIC),
    ),
    "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": (25, 18, 15, 10, 7),
}
