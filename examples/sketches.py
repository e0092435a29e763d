"""Draw the seven classes of the base set `photos`: shapes by code, with a hand that trembles.

They are as different from photographs as a child's drawings are, and much more like one another: enough to show that
the service adapts, too easy to say what adaptation is worth.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SIZE, FINE = 200, 2  # pixels; drawn FINE times larger, then made smaller, for smooth edges
SHEET = 100.0  # side of the sheet that shapes are given on, y down
CURVE_POINTS = 40
TREMBLE = 1.6  # standard deviation, on the sheet, of the slow waves that bend every line
MOST_DEGREES = 12.0

Points = npt.NDArray[np.float64]  # (n, 2), x and y
Colour = tuple[int, int, int]
Tone = Literal["body", "other", "dark"]


class Mark(NamedTuple):
    """A line, or a closed shape that may be filled, on the sheet."""

    points: Points
    is_closed: bool
    tone: Tone = "body"
    width: float = 1.0  # of the pen, times its usual one


class Style(NamedTuple):
    """Paper, pen and paint of one drawing; no paint: lines only."""

    paper: Colour
    pen: Colour
    paint: dict[Tone, Colour] | None
    width: float  # of the pen, on the sheet


def line(*numbers: float, width: float = 1.0, tone: Tone = "body") -> Mark:
    """Return a line through x and y in turn."""
    return Mark(_dense(np.reshape(numbers, (-1, 2))), is_closed=False, width=width, tone=tone)


def shape(*numbers: float, tone: Tone = "body") -> Mark:
    """Return a closed shape with these corners."""
    corners = np.reshape(numbers, (-1, 2))
    return Mark(_dense(np.vstack([corners, corners[:1]])), is_closed=True, tone=tone)


def oval(left: float, top: float, right: float, bottom: float, tone: Tone = "body") -> Mark:
    """Return an ellipse in this box."""
    angles = np.linspace(0, 2 * np.pi, CURVE_POINTS)
    centre, radius = ((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2)
    return Mark(np.column_stack([np.cos(angles), np.sin(angles)]) * radius + centre, is_closed=True, tone=tone)


def legs(*feet: float, top: float, bottom: float, width: float) -> list[Mark]:
    """Return legs at these x."""
    return [line(x, top, x, bottom, width=width) for x in feet]


def _dense(corners: Points) -> Points:
    """Return the line with points between its corners, so that a trembling hand bends it."""
    steps = [np.linspace(start, end, 8, endpoint=False) for start, end in pairwise(corners)]
    return np.vstack([*steps, corners[-1:]])


def _spots() -> list[Mark]:
    places = ((32, 55), (42, 52), (52, 58), (38, 63), (48, 65), (60, 50), (66, 40), (72, 30), (76, 22))
    return [oval(x - 3, y - 3, x + 3, y + 2.5, "dark") for x, y in places]


SKETCHES: dict[str, tuple[Mark, ...]] = {
    "dog": (
        line(30, 52, 20, 44, 14, 32, width=2.5),
        *legs(36, 43, 64, 71, top=62, bottom=88, width=3.5),
        oval(27, 44, 76, 68),
        oval(66, 26, 90, 52),
        oval(82, 36, 98, 49),
        oval(67, 27, 76, 54, "dark"),
        oval(83, 33, 86, 36, "dark"),
        oval(95, 38, 99, 42, "dark"),
    ),
    "elephant": (
        line(17, 40, 11, 52, 12, 60, width=1.5),
        *legs(28, 38, 56, 66, top=64, bottom=91, width=7),
        oval(15, 25, 73, 73),
        oval(62, 20, 88, 54),
        line(86, 40, 93, 56, 91, 74, 98, 80, width=5),
        line(83, 50, 90, 58, 95, 57, width=1.2),
        oval(56, 22, 76, 56, "other"),
        oval(79, 32, 82, 35, "dark"),
    ),
    "giraffe": (
        line(26, 54, 18, 66, 18, 74, width=1.2),
        *legs(32, 38, 56, 62, top=62, bottom=98, width=2.5),
        oval(24, 46, 68, 70),
        shape(54, 52, 66, 58, 82, 18, 75, 14),
        oval(73, 8, 96, 21),
        line(78, 10, 77, 2),
        line(82, 9, 82, 1),
        *_spots(),
        oval(84, 11, 86, 13, "dark"),
    ),
    "guitar": (
        shape(46.5, 4, 53.5, 4, 52.5, 50, 47.5, 50, tone="other"),
        shape(44, 0, 56, 0, 54, 9, 46, 9, tone="dark"),
        oval(34, 40, 66, 68),
        oval(29, 58, 71, 97),
        oval(43, 58, 57, 72, "dark"),
        shape(42, 82, 58, 82, 58, 86, 42, 86, tone="other"),
        line(48.5, 8, 48.5, 84, width=0.5),
        line(51.5, 8, 51.5, 84, width=0.5),
    ),
    "horse": (
        line(24, 48, 15, 58, 13, 76, width=4, tone="dark"),
        *legs(31, 38, 60, 67, top=60, bottom=94, width=3),
        oval(22, 40, 72, 66),
        shape(56, 46, 72, 54, 86, 26, 76, 16),
        shape(75, 15, 86, 16, 98, 36, 92, 41, 80, 30),
        shape(77, 17, 80, 7, 83, 17),
        line(75, 16, 66, 28, 58, 44, width=3.5, tone="dark"),
        oval(84, 21, 87, 24, "dark"),
    ),
    "house": (
        shape(67, 14, 75, 14, 75, 34, 67, 28, tone="dark"),
        shape(18, 44, 82, 44, 82, 92, 18, 92),
        shape(9, 46, 50, 10, 91, 46, tone="other"),
        shape(44, 64, 58, 64, 58, 92, 44, 92, tone="dark"),
        shape(25, 54, 38, 54, 38, 68, 25, 68, tone="other"),
        shape(64, 54, 77, 54, 77, 68, 64, 68, tone="other"),
        line(31.5, 54, 31.5, 68, width=0.7),
        line(70.5, 54, 70.5, 68, width=0.7),
    ),
    "person": (
        line(45, 58, 42, 78, 40, 97, width=4, tone="dark"),
        line(55, 58, 58, 78, 60, 97, width=4, tone="dark"),
        line(40, 31, 30, 46, 27, 58, width=2.5),
        line(60, 31, 70, 46, 73, 58, width=2.5),
        shape(38, 27, 62, 27, 60, 61, 40, 61, tone="other"),
        oval(41, 3, 59, 25),
        line(41, 11, 45, 4, 55, 4, 59, 11, width=2, tone="dark"),
        oval(45.5, 11, 47.5, 13.5, "dark"),
        oval(52.5, 11, 54.5, 13.5, "dark"),
        line(46, 18, 50, 20, 54, 18),
    ),
}


def draw(name: str, generator: np.random.Generator) -> Image.Image:
    """Return a drawing of a class, SIZE x SIZE RGB, with a place, size, slant, hand, pen and colours of its own."""
    style = STYLES[int(generator.integers(len(STYLES)))](generator)
    move = _movement(generator)
    image = Image.new("RGB", (SIZE * FINE, SIZE * FINE), style.paper)
    canvas = ImageDraw.Draw(image)
    for mark in SKETCHES[name]:
        _put(canvas, mark, move(mark.points), style)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _movement(generator: np.random.Generator) -> Callable[[Points], Points]:
    """Return what brings points of the sheet to pixels: slow waves, a flip, a slant, a size and a place."""
    waves = generator.normal(0, TREMBLE, (3, 2))
    lengths, phases = generator.uniform(12, 50, (3, 2)), generator.uniform(0, 2 * np.pi, (3, 2))
    angle = np.deg2rad(generator.uniform(-MOST_DEGREES, MOST_DEGREES))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    flip = (generator.choice((-1.0, 1.0)), 1.0)
    scale = generator.uniform(0.6, 0.95, 2) * generator.uniform(0.9, 1.1)
    room = (1 - scale.max()) * SHEET / 2
    place = SHEET / 2 + generator.uniform(-1, 1, 2) * max(room, 0)

    def move(points: Points) -> Points:
        bent = points + sum(
            waves[k] * np.sin(2 * np.pi * points[:, ::-1] / lengths[k] + phases[k]) for k in range(len(waves))
        )
        placed = ((bent - SHEET / 2) * flip * scale) @ turn.T + place
        return np.asarray(placed * SIZE * FINE / SHEET)

    return move


def _put(canvas: ImageDraw.ImageDraw, mark: Mark, points: Points, style: Style) -> None:
    flat = [(float(x), float(y)) for x, y in points]
    width = max(1, round(style.width * SIZE * FINE / SHEET * mark.width))
    if style.paint is None:
        if mark.is_closed and mark.tone != "dark":
            canvas.polygon(flat, fill=style.paper)  # what lies behind is hidden
        elif mark.is_closed:
            canvas.polygon(flat, fill=style.pen)
        canvas.line(flat, fill=style.pen, width=width, joint="curve")
    elif mark.is_closed:
        canvas.polygon(flat, fill=style.paint[mark.tone])
        canvas.line(flat, fill=style.pen, width=width, joint="curve")
    else:
        canvas.line(flat, fill=style.paint[mark.tone], width=max(width, 2 * FINE), joint="curve")


def _lines(generator: np.random.Generator) -> Style:
    """Draw with a dark pen on light paper."""
    return Style(_colour(generator, 225, 256), _colour(generator, 0, 70), None, generator.uniform(0.6, 1.6))


def _chalk(generator: np.random.Generator) -> Style:
    """Draw with chalk on a dark board."""
    return Style(_colour(generator, 10, 70), _colour(generator, 190, 256), None, generator.uniform(0.8, 1.8))


def _paint(generator: np.random.Generator) -> Style:
    """Fill with flat colours, whatever they are."""
    paint: dict[Tone, Colour] = {
        "body": _colour(generator, 40, 250),
        "other": _colour(generator, 40, 250),
        "dark": _colour(generator, 0, 90),
    }
    return Style(_colour(generator, 130, 256), _colour(generator, 0, 60), paint, generator.uniform(0.4, 1.2))


STYLES: tuple[Callable[[np.random.Generator], Style], ...] = (_lines, _chalk, _paint)


def _colour(generator: np.random.Generator, low: int, high: int) -> Colour:
    red, green, blue = (int(value) for value in generator.integers(low, high, 3))
    return red, green, blue
