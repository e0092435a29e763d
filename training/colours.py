"""Pillow's colour modes to RGB, and whole-factor reduction, piece by piece: a large picture is never held twice."""

from collections.abc import Iterator

import numpy as np
from PIL import Image, TiffImagePlugin

PIECE_PIXELS = 2**18  # that are converted at once
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a TIFF tag and its value
MAX_GREY = 65535

Factors = tuple[int, int]  # of width and height


def reduced_rgb(image: Image.Image, factors: Factors) -> Image.Image:
    """Return a loaded picture as RGB, each block of pixels averaged; blocks at the right and lower edge may be smaller.

    Grey of more than 8 bits is scaled from 0..65535; transparent pixels are laid on black.

    Args:
        image: of any mode, (width, height).
        factors: size of a block, (width, height); (1, 1) averages nothing.

    Returns:
        Of size (ceil(width / factors[0]), ceil(height / factors[1])); may be `image` itself.

    Raises:
        ValueError: floating-point pixels, or grey values that do not fit 0..65535.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image if factors == (1, 1) else image.reduce(factors)
    is_inverted = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    canvas = Image.new("RGB", (-(-image.width // factors[0]), -(-image.height // factors[1])))
    for left, top, right, bottom in _pieces(image.size, factors):
        piece = _to_rgb(image.crop((left, top, right, bottom)), is_inverted=is_inverted)
        if factors != (1, 1):
            piece = piece.reduce(factors)
        canvas.paste(piece, (left // factors[0], top // factors[1]))
    return canvas


def _pieces(size: tuple[int, int], factors: Factors) -> Iterator[tuple[int, int, int, int]]:
    """Cut a picture into boxes of whole blocks, about `PIECE_PIXELS` each."""
    (width, height), (across, down) = size, factors
    step_x = max(1, min(width, PIECE_PIXELS) // across) * across
    step_y = max(1, PIECE_PIXELS // step_x // down) * down
    for top in range(0, height, step_y):
        for left in range(0, width, step_x):
            yield left, top, min(left + step_x, width), min(top + step_y, height)


def _to_rgb(image: Image.Image, *, is_inverted: bool) -> Image.Image:
    if image.mode.startswith("I"):
        return _wide_grey(image, is_inverted=is_inverted).convert("RGB")
    if image.mode == "F":
        raise ValueError("expected integer pixels, got floating point")
    if image.mode in TRANSPARENT or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _wide_grey(image: Image.Image, *, is_inverted: bool) -> Image.Image:
    """Return 16-bit grey as 8 bits. Pillow would clip it at 255, and lets signed values through as they are.

    Pillow inverts only 8-bit files where white is zero, so here it is done for the wider ones.
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low < 0 or high > MAX_GREY:
        raise ValueError(f"expected grey values from 0 to {MAX_GREY}, got {low} to {high}")
    grey = (values.astype(np.uint32) >> 8).astype(np.uint8)
    return Image.fromarray(255 - grey if is_inverted else grey)
