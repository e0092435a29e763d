import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.hostile import pictures
from training.images import ImageError, decode, pixel_hash, prepare, to_input
from training.manifest import InputSpec

STRETCH = InputSpec(height=16, width=16, mean=(0, 0, 0), std=(1, 1, 1))
CROP = STRETCH.model_copy(update={"resize": "crop"})


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=2).astype(np.uint8)


def encoded(image: Image.Image, fmt: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_decode_to_the_same_pixels(fmt: str) -> None:
    flat = np.full((9, 7, 3), 120, np.uint8)
    options = {"lossless": True} if fmt == "WEBP" else {}
    assert np.array_equal(decode(encoded(Image.fromarray(flat), fmt, **options)), flat)


def test_jpeg_decodes_close_to_the_pixels() -> None:
    smooth = picture()
    smooth[:, :, 2] = 90
    found = decode(encoded(Image.fromarray(smooth), "JPEG", quality=95)).astype(int)
    assert np.abs(found - smooth).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = picture(8, 12)
    # What the camera stored, for a viewer that must apply `orientation` to see `upright`.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(decode(data), upright)


def test_palette_and_grey_images_become_the_rgb_a_viewer_shows() -> None:
    few = (picture() // 64) * 64
    palette = Image.fromarray(few).quantize(64, dither=Image.Dither.NONE)
    assert np.array_equal(decode(encoded(palette)), np.asarray(palette.convert("RGB")))
    grey = picture()[:, :, 0]
    assert np.array_equal(decode(encoded(Image.fromarray(grey))), np.repeat(grey[:, :, None], 3, axis=2))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    found = decode(encoded(Image.fromarray(grey)))
    assert np.array_equal(found[:, :, 0], (grey >> 8).astype(np.uint8))
    assert np.array_equal(found[:, :, 0], found[:, :, 2])


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint16, np.uint32])
def test_grey_of_every_whole_number_type_is_scaled_where_it_fits(kind: type[np.generic]) -> None:
    high = min(65535, int(np.iinfo(kind).max))
    grey = np.linspace(0, high, pictures.SIDE**2).astype(kind).reshape(pictures.SIDE, pictures.SIDE)
    expected = (grey >> 8).astype(np.uint8)
    assert np.array_equal(decode(pictures.grey_tiff(grey))[:, :, 1], expected)


@pytest.mark.parametrize(("low", "high"), [(-1, 300), (0, 65536), (-32768, 32767)])
def test_grey_that_does_not_fit_16_bits_is_refused(low: int, high: int) -> None:
    values = np.linspace(low, high, pictures.SIDE**2).round().astype(np.int32)
    with pytest.raises(ImageError, match=f"expected grey values from 0 to 65535, got {low} to {high}"):
        decode(pictures.grey_tiff(values))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_white_may_be_zero(kind: type[np.generic]) -> None:
    high = int(np.iinfo(kind).max)
    grey = np.linspace(0, high, pictures.SIDE**2).astype(kind).reshape(pictures.SIDE, pictures.SIDE)
    found = decode(pictures.grey_tiff(grey, white_is_zero=True))
    assert np.array_equal(found, decode(pictures.grey_tiff(high - grey)))
    assert found[0, 0, 0] == 255


def test_of_a_jpeg_with_more_pictures_the_first_is_meant() -> None:
    """Sony, Nikon, DJI and iPhones write previews and depth behind the photograph."""
    file = pictures.animated("MPO")
    assert file.count(b"\xff\xd8\xff") == 2
    assert np.array_equal(decode(file), decode(pictures.saved(pictures.picture(1), "JPEG")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_ill_typed_tag_does_not_keep_a_picture_from_being_turned(orientation: int) -> None:
    file = pictures.with_exif(pictures.ill_typed(orientation))
    assert np.array_equal(decode(file), decode(pictures.turned(orientation)))


def test_cmyk_jpeg_looks_like_its_rgb_original() -> None:
    flat = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    found = decode(encoded(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=95)).astype(int)
    assert np.abs(found - flat).max() < 12


def test_transparent_pixels_lie_on_black() -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (255, 255, 255, 255)
    found = decode(encoded(Image.fromarray(rgba)))
    assert found[:2].min() == 255
    assert found[2:].max() == 0


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 10_000, 20_000, 1_000_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(ImageError) as caught:
        decode(png_header(side, side))
    assert caught.value.kind == "too_large"


def test_animated_gif_is_refused() -> None:
    frames = [Image.fromarray(np.full((5, 5, 3), shade, np.uint8)) for shade in (0, 100, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="still image, got one of 3 frames"):
        decode(data)


def test_what_is_not_a_whole_image_is_undecodable() -> None:
    whole = encoded(Image.fromarray(picture(64, 64)), "JPEG")
    for data in (b"", b"hello, I am a text file", whole[: len(whole) // 2], png_header(10, 10), whole[:3]):
        with pytest.raises(ImageError) as caught:
            decode(data)
        assert caught.value.kind == "undecodable"
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of what it passes over
@pytest.mark.parametrize("kind", pictures.refused())
def test_hostile_files_are_refused(kind: str) -> None:
    file, status = pictures.refused()[kind]
    with pytest.raises(ImageError) as error:
        decode(file)
    assert (error.value.kind == "too_large") == (status == 413)


def test_text_of_a_png_is_not_unpacked_without_end() -> None:
    with pytest.raises(ImageError, match="Too much memory used in text chunks: 5242880"):
        decode(pictures.refused()["PNG of many text bombs"][0])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", pictures.odd())
def test_odd_images_are_images(kind: str) -> None:
    pixels = decode(pictures.odd()[kind])
    assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)


def test_prepare_keeps_an_image_of_the_right_size() -> None:
    pixels = picture(16, 16)
    assert prepare(pixels, STRETCH) is pixels


def test_stretch_keeps_the_whole_picture_and_crop_its_centre() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :6] = 255  # a white border on the left, within the part that "crop" cuts away
    assert prepare(pixels, STRETCH).shape == prepare(pixels, CROP).shape == (16, 16, 3)
    assert prepare(pixels, STRETCH)[:, 0].mean() > 150
    assert prepare(pixels, CROP)[:, 2].mean() < 20
    assert prepare(picture(5, 200), CROP).shape == (16, 16, 3)


def test_hash_depends_on_pixels_and_shape_only() -> None:
    pixels = picture(8, 8)
    assert pixel_hash(decode(encoded(Image.fromarray(pixels), "PNG"))) == pixel_hash(
        decode(encoded(Image.fromarray(pixels), "BMP"))
    )
    assert pixel_hash(pixels) != pixel_hash(pixels.reshape(4, 16, 3))
    changed = pixels.copy()
    changed[3, 3, 0] ^= 1
    assert pixel_hash(pixels) != pixel_hash(changed)


def test_network_input_is_channels_first_in_unit_range() -> None:
    images = np.stack([picture(8, 8), picture(8, 8)])
    found = to_input(images)
    assert found.shape == (2, 3, 8, 8)
    assert found.dtype == np.float32
    assert found[1, 0, 5, 2] == np.float32(images[1, 5, 2, 0]) / np.float32(255)
