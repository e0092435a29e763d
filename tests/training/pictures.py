"""Images made by code whose classes a network can tell apart: each class has a colour of its own, in noise."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((200, 60, 60), (60, 180, 60), (60, 60, 200), (200, 200, 60), (180, 60, 180))


def write_pictures(root: Path, counts: Mapping[str, int], *, size: tuple[int, int] = (20, 20), seed: int = 0) -> Path:
    """Write `root/<class>/<number>.png`, of `size` (width, height); a later class of the mapping has another colour."""
    generator = np.random.default_rng(seed)
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            noise = generator.normal(0, 40, (size[1], size[0], 3))
            pixels = np.clip(noise + COLOURS[number % len(COLOURS)], 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:03}.png")
    return root
