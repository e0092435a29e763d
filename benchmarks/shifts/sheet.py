"""Contact sheets: what shifts look like."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.shifts.corruptions import SEVERITIES
from benchmarks.shifts.pixels import Batch
from benchmarks.shifts.suite import Shift

GAP, TITLE = 6, 150  # pixels between cells, and for the names on the left
CORE_MARK = (200, 60, 30)


def contact_sheet(images: Batch, shifts: Sequence[Shift], *, seed: int, scale: int = 2) -> Image.Image:
    """Return one picture: a row for each shift, a column for the clean images and for each severity.

    The core severity is framed.

    Args:
        images: uint8 (n, H, W, 3), shown side by side in every cell.
        shifts: the rows.
        seed: of the shifts.
        scale: enlargement, without smoothing.
    """
    n, height, width, _ = images.shape
    cell = (n * width * scale, height * scale)
    size = (TITLE + (len(SEVERITIES) + 1) * (cell[0] + GAP), 20 + len(shifts) * (cell[1] + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column in range(len(SEVERITIES) + 1):
        title = f"severity {column}" if column else "clean"
        draw.text((TITLE + column * (cell[0] + GAP), 4), title, fill="black")
    for row, shift in enumerate(shifts):
        top = 20 + row * (cell[1] + GAP)
        draw.text((4, top + cell[1] // 2 - 12), f"{shift.name}\n({shift.family})", fill="black")
        for column in range(len(SEVERITIES) + 1):
            left = TITLE + column * (cell[0] + GAP)
            if column == shift.core_severity:
                frame = (left - 3, top - 3, left + cell[0] + 2, top + cell[1] + 2)
                draw.rectangle(frame, outline=CORE_MARK, width=2)
            sheet.paste(_strip(shift(images, column, seed=seed) if column else images, scale), (left, top))
    return sheet


def _strip(images: Batch, scale: int) -> Image.Image:
    strip = np.concatenate(list(images), axis=1)
    return Image.fromarray(strip.repeat(scale, axis=0).repeat(scale, axis=1))
