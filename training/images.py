"""Image files to pixels, for every stage (Pillow and numpy, no torch): allowed formats, EXIF, resize rule, hash.

One rule everywhere: what training evaluates, adaptation scores and the service predicts are the same pixels.

1. Decode, apply the EXIF orientation, convert to RGB (`training.colours`).
2. Reduce width and height by the largest whole factors that leave at least twice what step 3 makes of them: average
   blocks of pixels. Of a JPEG, the decoder does a factor of 8, 4 or 2 itself, which makes large photographs cheap.
   Pictures below four times the final size stay as they are.
3. Resize by the rule of the network's input (bicubic).

Without step 2, a picture with the detail of a photograph has nearly the same values: they differ by less than .8 of 255
on average, 99 % of them by 3 at most (`tests/training/test_scaling.py`).
"""

import hashlib
import io
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base

from training.colours import Factors, reduced_rgb
from training.manifest import InputSpec

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 50_000_000
MAX_TEXT_BYTES = 4 * 2**20  # unpacked, of what a PNG says besides its pixels
CROP_FRACTION = 0.875  # of the covered image that "crop" keeps, as in the usual ImageNet evaluation
REDUCING_GAP = 2  # a reduced picture has at least so many times the final width and height
CUT_FIRST = 16  # times the network's pixels: of a longer picture only the centre is resized
CROP_ASPECT = 3 / 4  # of the narrowest random crop, as torchvision cuts them
JPEG_START = b"\xff\xd8\xff"
UPRIGHT = 1  # EXIF orientation
JPEG_FACTORS = (8, 4, 2)  # that libjpeg decodes at
# By EXIF orientation: what makes the picture upright, and whether its left and its upper edge were elsewhere.
TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, True, False),
    3: (Image.Transpose.ROTATE_180, True, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, True),
    5: (Image.Transpose.TRANSPOSE, False, False),
    6: (Image.Transpose.ROTATE_270, True, False),
    7: (Image.Transpose.TRANSVERSE, True, True),
    8: (Image.Transpose.ROTATE_90, False, True),
}
SIDEWAYS = (5, 6, 7, 8)

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Size = tuple[int, int]  # (width, height), as Pillow has it


class ImageError(ValueError):
    """An image that cannot be used. `kind` says why: "undecodable" or "too_large"."""

    def __init__(self, message: str, kind: Literal["undecodable", "too_large"]) -> None:
        super().__init__(message)
        self.kind = kind


class Loaded(NamedTuple):
    """A picture at a network's input size.

    Attributes:
        pixels: uint8 RGB, (spec.height, spec.width, 3).
        picture: the source of the resizing: upright RGB, reduced if it was large (step 2 of the rule).
        num_pixels: width times height of the original.
    """

    pixels: Pixels
    picture: Image.Image
    num_pixels: int

    @property
    def hash(self) -> str:
        """The `pixel_hash` of `picture`: it tells pictures apart that look the same at the network's size."""
        return pixel_hash(np.asarray(self.picture))


class _Picture(NamedTuple):
    """An upright RGB picture on its way to the network.

    Attributes:
        image: its pixels, perhaps reduced.
        box: (left, top, right, bottom) of the original within them: its sides need not be multiples of the factor.
        size: of the original, upright.
    """

    image: Image.Image
    box: tuple[float, float, float, float]
    size: Size


def load_image(source: bytes | Pixels, spec: InputSpec, *, max_pixels: int = MAX_PIXELS) -> Loaded:
    """Return a picture at the network's input size, by the rule that stands at the top of this module.

    Args:
        source: an image file (see `decode`), or decoded uint8 RGB (H, W, 3).
        spec: target size and rule.
        max_pixels: most pixels (height times width) of a file.

    Raises:
        ImageError: see `decode`.
    """
    if isinstance(source, bytes):
        picture = _read(source, max_pixels, lambda size: _factors(size, _covered(size, spec)))
    else:
        image = Image.fromarray(source)
        factors = _factors(image.size, _covered(image.size, spec))
        picture = _upright(reduced_rgb(image, factors), image.size, factors, UPRIGHT)
    return Loaded(_resized(picture, spec), picture.image, picture.size[0] * picture.size[1])


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Return the image as uint8 RGB of shape (H, W, 3), upright and at its full size.

    JPEG, PNG, WebP, BMP, GIF and TIFF; the EXIF orientation is applied; CMYK, palette, greyscale and 16-bit files
    become the RGB picture a viewer shows. Transparent pixels are laid on black. A JPEG with several pictures gives
    the first (MPO: previews, depth). The size is checked in the header, before any pixel is unpacked.

    Args:
        data: the file's bytes.
        max_pixels: most pixels (height times width) accepted.

    Raises:
        ImageError: not an image, truncated, animated (which frame is meant?), of floating-point pixels or grey values
            outside 0 to 65535, or too large.
    """
    return np.asarray(_read(data, max_pixels, lambda size: (1, 1)).image)


def count_pixels(data: bytes) -> int:
    """Return width times height as an image file's header has them; 0 where decoding would raise ImageError at once."""
    try:
        with _open(data) as image:
            return image.width * image.height
    except Exception:  # whatever Pillow stumbles on: decoding the file says what is wrong with it
        return 0


def decode_for_crops(data: bytes, spec: InputSpec, share: float) -> Image.Image:
    """Return the upright RGB picture, reduced as by `load_image`, for parts of it that become the network's input.

    Args:
        data: an image file (see `decode`).
        spec: tells the size that a part is resized to.
        share: of the picture's area that the smallest part has; its sides differ by a factor of 4/3 at most.

    Raises:
        ImageError: see `decode`.
    """

    def factors(size: Size) -> Factors:
        side = min(*size, (share * CROP_ASPECT * size[0] * size[1]) ** 0.5)
        return _factors((side, side), (spec.width, spec.height))

    return _read(data, MAX_PIXELS, factors).image


def prepare(pixels: Pixels, spec: InputSpec) -> Pixels:
    """Return the image at the network's size, by the rule that stands at the top of this module.

    Args:
        pixels: uint8 RGB, (H, W, 3), any size.
        spec: target size and rule; an image that already has the target size is returned as it is.

    Returns:
        uint8 RGB, (spec.height, spec.width, 3).
    """
    return pixels if pixels.shape[:2] == (spec.height, spec.width) else load_image(pixels, spec).pixels


def pixel_hash(pixels: Pixels) -> str:
    """Return the SHA-256 (hex) of an image's shape and pixels: equal for equal pictures in any file format."""
    digest = hashlib.sha256(np.asarray(pixels.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def to_input(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Turn uint8 images (B, H, W, 3) into the network's float32 input (B, 3, H, W) in [0, 1]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def _read(data: bytes, max_pixels: int, wanted: Callable[[Size], Factors]) -> _Picture:
    """Decode a file; `wanted` says by what factors to reduce an upright picture of a size."""

    def factors(size: Size, orientation: int) -> Factors:
        return wanted(size[::-1])[::-1] if orientation in SIDEWAYS else wanted(size)

    try:
        with _open(data) as image:
            _check_header(image, max_pixels)
            size, scale = image.size, 1
            if isinstance(image, JpegImagePlugin.JpegImageFile):
                scale = _draft(image, factors(size, _orientation(image)))
            image.load()
            if scale == 1:
                size = image.size  # loading has turned a TIFF that lies on its side
            orientation = _orientation(image)  # only a JPEG is sure to have it before its pixels
            across, down = factors(size, orientation)
            rgb = reduced_rgb(image, (across // scale, down // scale))
        del image  # the decoder of a WebP holds its picture twice
        return _upright(rgb, size, (scale * (across // scale), scale * (down // scale)), orientation)
    except ImageError:
        raise
    except (UnidentifiedImageError, SyntaxError):
        raise ImageError(
            f"expected an image file ({', '.join(FORMATS)}), got {len(data)} bytes of something else", "undecodable"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the latter when warnings are errors
        raise ImageError(f"image has more than {max_pixels} pixels", "too_large") from None
    except Exception as error:  # Pillow's decoders raise whatever they stumble on; each means the same to the caller
        raise ImageError(
            f"image cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}", "undecodable"
        ) from None


def _open(data: bytes) -> ImageFile.ImageFile:
    # Nobody reads the text, and Pillow would unpack 64 MiB from 64 kB.
    PngImagePlugin.MAX_TEXT_MEMORY = PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT_BYTES
    if data.startswith(JPEG_START):  # by Image.open, a JPEG with a preview behind it would be an MPO
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"expected at most {max_pixels} pixels, got {width} x {height}", "too_large")
    if width < 1 or height < 1:
        raise ImageError("image has no pixels", "undecodable")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise ImageError(f"expected a still image, got one of {frames} frames: send the frame you mean", "undecodable")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation. Nothing else of EXIF matters: a good picture may carry an ill-typed tag."""
    try:
        orientation = image.getexif().get(Base.Orientation)
    except Exception:  # Pillow's parser raises whatever it stumbles on; viewers show such a picture as it lies
        return UPRIGHT
    return orientation if isinstance(orientation, int) else UPRIGHT


def _draft(image: JpegImagePlugin.JpegImageFile, factors: Factors) -> int:
    """Have a JPEG decoded at a fraction of its size; return the factor."""
    scale = next((scale for scale in JPEG_FACTORS if scale <= min(factors)), 1)
    if scale == 1 or image.draft(None, (image.width // scale, image.height // scale)) is None:
        return 1
    return scale


def _factors(size: tuple[float, float], final: Size) -> Factors:
    """Return the factors to reduce a picture by: at least twice its final width and height remain."""
    across, down = (int(side / (REDUCING_GAP * length)) for side, length in zip(size, final, strict=True))
    return max(1, across), max(1, down)


def _upright(rgb: Image.Image, size: Size, factors: Factors, orientation: int) -> _Picture:
    """Turn a picture as its EXIF orientation says.

    Args:
        rgb: reduced, as stored.
        size: before it was reduced.
        factors: by which its width and height were reduced.
        orientation: EXIF's.
    """
    width, height = size[0] / factors[0], size[1] / factors[1]  # the last blocks of `rgb` may be smaller
    method, from_right, from_below = TURNS.get(orientation, (None, False, False))
    if method is not None:
        rgb = rgb.transpose(method)
    if orientation in SIDEWAYS:
        width, height, size = height, width, size[::-1]
    left, top = from_right * (rgb.width - width), from_below * (rgb.height - height)
    return _Picture(rgb, (left, top, left + width, top + height), size)


def _covered(size: Size, spec: InputSpec) -> Size:
    """Return the width and height that a picture is resized to, before "crop" cuts out the centre."""
    if spec.resize == "stretch":
        return spec.width, spec.height
    scale = max(spec.height / size[1], spec.width / size[0]) / CROP_FRACTION
    return max(spec.width, round(size[0] * scale)), max(spec.height, round(size[1] * scale))


def _resized(picture: _Picture, spec: InputSpec) -> Pixels:
    if picture.size == (spec.width, spec.height):
        return np.asarray(picture.image)
    covered = _covered(picture.size, spec)
    left, top = (covered[0] - spec.width) // 2, (covered[1] - spec.height) // 2
    cut = (left, top, left + spec.width, top + spec.height)
    if covered[0] * covered[1] <= CUT_FIRST * spec.width * spec.height:
        return np.asarray(picture.image.resize(covered, Image.Resampling.BICUBIC, box=picture.box).crop(cut))
    start, end = np.reshape(picture.box, (2, 2))
    box = tuple(np.tile(start, 2) + np.multiply(cut, np.tile((end - start) / covered, 2)))
    return np.asarray(picture.image.resize((spec.width, spec.height), Image.Resampling.BICUBIC, box=box))
