"""Synthetic pictures: smooth colour fields with texture, which compress and decode like photographs."""

import io

import numpy as np
from PIL import Image


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
