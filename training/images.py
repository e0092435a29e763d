"""Image decoding for every stage (Pillow and numpy, no torch): allowed formats, EXIF, colour modes, resize rule, hash.

One rule everywhere: what training evaluates, adaptation scores and the service predicts are the same pixels.
"""

import hashlib
import io
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from training.manifest import InputSpec

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 50_000_000
MAX_TEXT_BYTES = 4 * 2**20  # unpacked, of what a PNG says besides its pixels
CROP_FRACTION = 0.875  # of the covered image that "crop" keeps, as in the usual ImageNet evaluation

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB


class ImageError(ValueError):
    """An image that cannot be used. `kind` says why: "undecodable" or "too_large"."""

    def __init__(self, message: str, kind: Literal["undecodable", "too_large"]) -> None:
        super().__init__(message)
        self.kind = kind


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return the image as uint8 RGB of shape (H, W, 3), upright.

    JPEG, PNG, WebP, BMP, GIF and TIFF; the EXIF orientation is applied; CMYK, palette, greyscale and 16-bit files
    become the RGB picture a viewer shows. Transparent pixels are laid on black. The size is checked in the header,
    before any pixel is unpacked.

    Args:
        data: the file's bytes.
        max_pixels: most pixels (height times width) accepted.

    Raises:
        ImageError: not an image, truncated, animated (which frame is meant?), or too large.
    """
    PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES  # nobody reads it, and Pillow would unpack 64 MiB from 64 kB
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, max_pixels)
            image.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"expected an image file ({', '.join(FORMATS)}), got {len(data)} bytes of something else", "undecodable"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the latter when warnings are errors
        raise ImageError(f"image has more than {max_pixels} pixels", "too_large") from None
    except Exception as error:  # Pillow's decoders raise whatever they stumble on; each means the same to the caller
        raise ImageError(
            f"image cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}", "undecodable"
        ) from None


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"expected at most {max_pixels} pixels, got {width} x {height}", "too_large")
    if width < 1 or height < 1:
        raise ImageError("image has no pixels", "undecodable")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise ImageError(f"expected a still image, got one of {frames} frames: send the frame you mean", "undecodable")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey at 255 when it converts; scale it to 8 bits instead.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError("expected integer pixels, got floating point", "undecodable")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def prepare(pixels: Pixels, spec: InputSpec) -> Pixels:
    """Return the image at the network's size, by the resize rule of `spec`.

    Args:
        pixels: uint8 RGB, (H, W, 3), any size.
        spec: target size and rule; an image that already has the target size is returned as it is.

    Returns:
        uint8 RGB, (spec.height, spec.width, 3).
    """
    if pixels.shape[:2] == (spec.height, spec.width):
        return pixels
    image = Image.fromarray(pixels)
    if spec.resize == "stretch":
        return np.asarray(image.resize((spec.width, spec.height), Image.Resampling.BICUBIC))
    scale = max(spec.height / image.height, spec.width / image.width) / CROP_FRACTION
    covered = (max(spec.width, round(image.width * scale)), max(spec.height, round(image.height * scale)))
    left, top = (covered[0] - spec.width) // 2, (covered[1] - spec.height) // 2
    resized = image.resize(covered, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + spec.width, top + spec.height)))


def pixel_hash(pixels: Pixels) -> str:
    """Return the SHA-256 (hex) of an image's shape and pixels: equal for equal pictures, whatever the file format."""
    digest = hashlib.sha256(np.asarray(pixels.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def to_input(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Turn uint8 images (B, H, W, 3) into the network's float32 input (B, 3, H, W) in [0, 1]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)
