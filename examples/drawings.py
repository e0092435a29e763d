"""Draw examples/images/: childish pictures of four of CIFAR-10's classes, `python -m examples.drawings`.

They are there so that the README's curl lines have something to send. They say nothing about accuracy.
"""

import sys
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE, FINE = 32, 8  # drawn FINE times larger, then made smaller, for smooth edges
PER_CLASS = 5
Colour = tuple[int, int, int]


class Shape(NamedTuple):
    """A filled shape; x and y in turn, in pixels of the small picture; no colour: the drawing's own."""

    kind: Literal["polygon", "ellipse"]
    points: tuple[float, ...]
    colour: Colour | None = None


def _box(left: float, top: float, right: float, bottom: float, colour: Colour | None = None) -> Shape:
    return Shape("polygon", (left, top, right, top, right, bottom, left, bottom), colour)


def _wheel(x: float) -> Shape:
    return Shape("ellipse", (x - 3, 20, x + 3, 26), (20, 20, 20))


GREY, SEA, GLASS, WHITE = (110, 110, 110), (30, 70, 120), (160, 195, 215), (230, 230, 230)
DRAWINGS: dict[str, tuple[Shape, ...]] = {
    "airplane": (
        Shape("ellipse", (3, 13, 29, 19)),
        Shape("polygon", (13, 16, 20, 16, 11, 27), GREY),
        Shape("polygon", (4, 16, 9, 14, 3, 6)),
    ),
    "automobile": (
        _box(-40, 22, 80, 80, GREY),
        Shape("polygon", (8, 16, 12, 9, 21, 9, 25, 16), GLASS),
        _box(3, 15, 29, 23),
        _wheel(9),
        _wheel(23),
    ),
    "ship": (
        _box(-40, 21, 80, 80, SEA),
        _box(11, 12, 21, 18, WHITE),
        _box(14, 7, 17, 12, (60, 60, 60)),
        Shape("polygon", (3, 17, 29, 17, 25, 24, 7, 24)),
    ),
    "truck": (
        _box(-40, 22, 80, 80, GREY),
        _box(2, 6, 20, 22),
        _box(21, 12, 30, 22, WHITE),
        _box(25, 13, 29, 17, GLASS),
        _wheel(7),
        _wheel(24),
    ),
}


def draw(name: str, generator: np.random.Generator) -> Image.Image:
    """Return a drawing of a class with a colour, size, place and sky of its own."""
    sky = tuple(int(value) for value in generator.integers((120, 160, 190), (190, 215, 256)))
    colour = tuple(int(value) for value in generator.integers(40, 230, 3))
    scale, (dx, dy) = generator.uniform(0.8, 1.05) * FINE, generator.uniform(-2, 2, 2) * FINE
    image = Image.new("RGB", (SIZE * FINE, SIZE * FINE), sky)
    canvas = ImageDraw.Draw(image)
    centre = SIZE / 2
    for shape in DRAWINGS[name]:
        points = np.reshape(shape.points, (-1, 2))
        placed = ((points - centre) * scale + centre * FINE + (dx, dy)).ravel().tolist()
        fill = shape.colour or colour
        if shape.kind == "ellipse":
            canvas.ellipse(placed, fill=fill)
        else:
            canvas.polygon(placed, fill=fill)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main(folder: Path) -> None:
    """Write `<folder>/<class>/<number>.png`."""
    generator = np.random.default_rng(0)
    for name in DRAWINGS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(1, PER_CLASS + 1):
            draw(name, generator).save(folder / name / f"{number}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
