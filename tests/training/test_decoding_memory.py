"""What decoding one file adds to a process, at its peak: the bounds that docs/reference/images.md states."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hostile.pictures import saved
from training.images import MAX_PIXELS

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT = 2400, 1600
BYTES_PER_PIXEL, OF_WEBP = 13, 20
REDUCED_BYTES_PER_PIXEL, OF_REDUCED_WEBP = 9, 18
SLACK = 8 * 2**20  # what Python and its allocator take
CHILD = """
import io, sys
from PIL import Image
from training.images import load_image
from training.manifest import InputSpec

def memory(kind):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(kind)).split()[1])

side, path = int(sys.argv[1]), sys.argv[2]
spec = InputSpec(height=side, width=side, mean=(0, 0, 0), std=(1, 1, 1), resize="crop")
small = io.BytesIO()
Image.new("RGB", (9, 9)).save(small, "PNG")
load_image(small.getvalue(), spec)
data = open(path, "rb").read()
before = memory("VmRSS")
load_image(data, spec)
print(memory("VmHWM") - before)
"""


def peak(file: bytes, side: int, folder: Path) -> int:
    """Return the bytes that decoding a file for a network of side x side adds to a fresh process, beside the file."""
    path = folder / "file"
    path.write_bytes(file)
    command = [sys.executable, "-c", CHILD, str(side), str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def tiles(mode: str, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    colours = np.random.default_rng(0).integers(0, 256, (32, 48, 4), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST).convert(mode)


def sideways() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FILES = {
    "see-through PNG": lambda: saved(tiles("RGBA"), compress_level=1),
    "see-through PNG on its side": lambda: saved(tiles("RGBA"), compress_level=1, exif=sideways()),
    "palette PNG of a see-through colour": lambda: saved(tiles("P"), compress_level=1, transparency=3),
    "16-bit PNG": lambda: saved(tiles("L").convert("I;16"), compress_level=1),
    "BMP": lambda: saved(tiles("RGB"), "BMP"),
    "GIF": lambda: saved(tiles("P"), "GIF"),
    "WebP": lambda: saved(tiles("RGBA"), "WEBP", method=0),
    "lossless WebP on its side": lambda: saved(tiles("RGBA"), "WEBP", lossless=True, method=0, exif=sideways()),
    "TIFF on its side": lambda: saved(tiles("RGBA"), "TIFF", compression="tiff_lzw", exif=sideways()),
    "32-bit TIFF": lambda: saved(tiles("L").convert("I"), "TIFF"),
    "CMYK TIFF": lambda: saved(tiles("CMYK"), "TIFF", compression="tiff_lzw"),
    "JPEG": lambda: saved(tiles("RGB"), "JPEG"),
    "progressive JPEG in four colours": lambda: saved(tiles("CMYK"), "JPEG", progressive=True, subsampling=0),
    "progressive JPEG on its side": lambda: saved(
        tiles("RGB"), "JPEG", progressive=True, subsampling=0, exif=sideways()
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_memory_per_pixel_is_bounded(kind: str, tmp_path: Path) -> None:
    file = FILES[kind]()
    for side, bound, of_webp in (
        (160, REDUCED_BYTES_PER_PIXEL, OF_REDUCED_WEBP),
        (800, BYTES_PER_PIXEL, OF_WEBP),  # too large to be reduced
    ):
        assert peak(file, side, tmp_path) < (of_webp if "WebP" in kind else bound) * WIDTH * HEIGHT + SLACK


def test_a_see_through_png_at_the_limit_takes_300_mb(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    assert peak(saved(tiles("RGBA", side, side), compress_level=1), 160, tmp_path) < 300e6
