"""Random fields that weather is made of: clouds and frost."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from benchmarks.shifts.pixels import Unit

FROST_SIZE = 320  # pixels of the square pane that frosted windows are cut from
FERNS = 200  # on it
ICE = np.asarray([0.86, 0.94, 1.0], dtype=np.float32)  # colour of thick ice
ICE_MEAN, ICE_SPREAD = 0.5, 0.26  # grey level and its standard deviation, as of a photograph with much contrast
FINE = 2  # the pane is drawn this much larger, then reduced


def clouds(n: int, height: int, width: int, *, decay: float, generator: np.random.Generator) -> Unit:
    """Return n random height maps (n, height, width) from 0 to 1, by the diamond-square algorithm.

    Args:
        n: number of maps.
        height: rows, in pixels.
        width: columns, in pixels.
        decay: the random part shrinks by its square from one scale to the next: high is smooth.
        generator: of the random part.

    Source: Fournier, Fussell, Carpenter 1982 (Computer rendering of stochastic models), on a torus, with the square as
        in the published fog.
    """
    size = 1 << max(height - 1, width - 1, 1).bit_length()
    field = np.zeros((n, size, size), dtype=np.float32)
    step, spread = size, 1.0

    def random(shape: tuple[int, ...]) -> Unit:
        return (spread * (2 * generator.random(shape, dtype=np.float32) - 1)).astype(np.float32)

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        below = corners + np.roll(corners, -1, axis=1)
        middles = (below + np.roll(below, -1, axis=2)) / 4
        middles += random(middles.shape)
        field[:, half::step, half::step] = middles
        # Midpoints of edges: between two corners along the edge, and two middles across it.
        across = corners + np.roll(corners, -1, axis=2) + middles + np.roll(middles, 1, axis=1)
        along = corners + np.roll(corners, -1, axis=1) + middles + np.roll(middles, 1, axis=2)
        field[:, ::step, half::step] = across / 4 + random(across.shape)
        field[:, half::step, ::step] = along / 4 + random(along.shape)
        step, spread = half, spread / decay**2
    field -= field.min(axis=(1, 2), keepdims=True)
    field /= np.maximum(field.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    return field[:, :height, :width]


def frosted_windows(n: int, height: int, width: int, *, scale: int = 1, generator: np.random.Generator) -> Unit:
    """Return n pieces (n, height, width, 3) of a frosted pane, cut out and mirrored at random, in [0, 1].

    The published frost cuts them out of photographs, which are not ours to ship: this pane is drawn. With a larger
    `scale` it is drawn larger, and pictures show a smaller part of it in more detail.
    """
    pane = frosted_pane(generator, scale)
    rows, columns = generator.integers(0, len(pane), n), generator.integers(0, len(pane), n)
    # Pieces go on at the other edge of the pane; half of them are read upwards, half leftwards.
    row = (rows[:, None] + np.arange(height) * generator.choice([-1, 1], (n, 1))) % len(pane)
    column = (columns[:, None] + np.arange(width) * generator.choice([-1, 1], (n, 1))) % len(pane)
    return np.asarray(pane[row[:, :, None], column[:, None, :]], dtype=np.float32)


def frosted_pane(generator: np.random.Generator, scale: int = 1) -> Unit:
    """Draw a square pane (S, S, 3) of ice ferns over a film of uneven thickness; opposite edges meet.

    Everything on it, and the pane itself, is `scale` times as large as for small pictures.
    """
    fine = FINE * scale
    ferns = Image.new("L", (FROST_SIZE * fine, FROST_SIZE * fine))
    draw = ImageDraw.Draw(ferns)
    for _ in range(FERNS):
        _draw_fern(draw, generator.random(2) * FROST_SIZE * fine, generator, fine)
    needles = np.asarray(ferns.reduce(FINE), dtype=np.float32) / 255
    film = _ridges(generator, scale)
    ice = film + 1.4 * ndimage.gaussian_filter(needles, 0.5 * scale, mode="wrap") * (0.4 + 0.6 * film)
    ice += 0.1 * generator.standard_normal(ice.shape)
    ice = ICE_MEAN + ICE_SPREAD * (ice - ice.mean()) / ice.std()
    return np.asarray((ice[:, :, None] * ICE).clip(0, 1), dtype=np.float32)


def _draw_fern(
    draw: ImageDraw.ImageDraw, root: npt.NDArray[np.float64], generator: np.random.Generator, fine: int
) -> None:
    """Draw a needle with side needles at 60 degrees, once for every tile it may reach into."""
    size = FROST_SIZE * fine
    direction, length = generator.uniform(0, 2 * np.pi), generator.uniform(20, 60) * fine
    bend = generator.normal(0, 0.004) / fine
    along = np.arange(0, length, 2.5 * fine)
    angles = direction + bend * along
    spine = root + np.cumsum(2.5 * fine * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
    lines = [(spine[:-1], spine[1:])]
    for side in (-np.pi / 3, np.pi / 3):
        reach = 0.35 * (length - along) * generator.uniform(0.4, 1.0, len(along))
        tips = spine + reach[:, None] * np.stack([np.cos(angles + side), np.sin(angles + side)], axis=1)
        lines.append((spine, tips))
    starts, ends = (np.concatenate(points) for points in zip(*lines, strict=True))
    shades = generator.integers(140, 256, len(starts))
    for tile in np.ndindex(3, 3):
        first, last = starts + (np.asarray(tile) - 1) * size, ends + (np.asarray(tile) - 1) * size
        touches = ((first >= 0) & (first < size)).all(axis=1) | ((last >= 0) & (last < size)).all(axis=1)
        for start, end, shade in zip(first[touches], last[touches], shades[touches], strict=True):
            draw.line((*start, *end), fill=int(shade), width=fine)


def _ridges(generator: np.random.Generator, scale: int) -> Unit:
    """Return a field (S, S) from 0 to 1 of ridges at several scales."""
    field = np.zeros((FROST_SIZE * scale, FROST_SIZE * scale), dtype=np.float32)
    for octave, sigma in enumerate((16.0, 8.0, 4.0, 2.0, 1.0)):
        noise = ndimage.gaussian_filter(
            generator.standard_normal(field.shape, dtype=np.float32), scale * sigma, mode="wrap"
        )
        field += (1 - np.abs(noise / noise.std()).clip(0, 1)) ** 2 / 2**octave
    field -= field.min()
    return np.asarray(field / field.max())
