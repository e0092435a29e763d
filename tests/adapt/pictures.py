"""Labelled images that the tests of searches share."""

from dataclasses import replace

import numpy as np

from adapt.images.support import Support
from adapt.networks.forward import evaluate_soups
from adapt.networks.prepared import PreparedBase

HIDDEN = {"linf": 0.25, "nominal": -0.25, "l2": 0.0, "l1": 1.0}


def support_for(prepared: PreparedBase, n: int, *, seed: int = 0, hidden: dict[str, float] = HIDDEN) -> Support:
    """Random images, labelled by a hidden soup of the base set: the truth a search can find."""
    images = np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    row = np.asarray([prepared.manifest.vector(hidden)])
    said = [evaluate_soups(prepared, row, images, np.full(n, label, dtype=np.int64)).correct[0] for label in range(3)]
    hashes = tuple(f"{seed}-{index}" for index in range(n))
    return Support(images, np.stack(said).argmax(axis=0).astype(np.int64), hashes, prepared.manifest.class_names)


def coloured(n: int, classes: tuple[str, ...], *, seed: int = 0, contrast: float = 1.0, spread: float = 30) -> Support:
    """Noise with a tint for each class: what a last layer can learn on an untrained network."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    pixels = generator.normal(128, spread, (n, 16, 16, 3)) + 45 * np.eye(3)[labels][:, None, None, :]
    images = (128 + contrast * (pixels.clip(0, 255) - 128)).round().astype(np.uint8)
    return Support(images, labels, tuple(f"{seed}-{contrast}-{index}" for index in range(n)), classes)


def uneven(n: int, classes: tuple[str, ...], frequencies: tuple[float, ...], *, seed: int = 0, **how: float) -> Support:
    """A fair draw of tinted noise whose classes have other frequencies."""
    labels = np.random.default_rng([seed, 1]).choice(3, n, p=frequencies)
    source = coloured(3 * n, classes, seed=seed, **how)
    return source.subset(3 * np.arange(n) + labels)


def turned(support: Support) -> Support:
    """The same images, each labelled as the next class: only the last layer has to change."""
    return replace(support, labels=(support.labels + 1) % 3)


def swapped(support: Support) -> Support:
    """The same pictures, red as green and so on: no statistics undo that, a first layer does."""
    return replace(support, images=np.roll(support.images, 1, axis=3))


def noise(n: int, classes: tuple[str, ...], *, seed: int = 0) -> Support:
    """Random images with random labels: nothing can be learned from them."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return Support(images, generator.integers(0, 3, n), tuple(f"noise-{seed}-{i}" for i in range(n)), classes)
