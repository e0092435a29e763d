"""Step 2 of the rule in `training.images`: large pictures are reduced while they are decoded."""

import io
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.pictures import photograph, photographs
from training.images import CROP_FRACTION, Pixels, decode, decode_for_crops, load_image, pixel_hash, prepare
from training.manifest import InputSpec

STRETCH = InputSpec(height=64, width=64, mean=(0, 0, 0), std=(1, 1, 1))
CROP = STRETCH.model_copy(update={"resize": "crop"})
WIDE = InputSpec(height=48, width=80, mean=(0, 0, 0), std=(1, 1, 1), resize="crop")


scene = cache(photograph)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def resized(image: Image.Image, spec: InputSpec) -> Pixels:
    """Return what the rule gives without its second step: the reference."""
    if spec.resize == "stretch":
        return np.asarray(image.resize((spec.width, spec.height), Image.Resampling.BICUBIC))
    scale = max(spec.height / image.height, spec.width / image.width) / CROP_FRACTION
    width, height = max(spec.width, round(image.width * scale)), max(spec.height, round(image.height * scale))
    left, top = (width - spec.width) // 2, (height - spec.height) // 2
    covered = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(covered.crop((left, top, left + spec.width, top + spec.height)))


@settings(max_examples=100)
@given(
    width=st.integers(1, 255),
    height=st.integers(1, 255),
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF"]),
    spec=st.sampled_from([STRETCH, CROP, WIDE]),
    seed=st.integers(0, 99),
)
def test_pictures_below_four_times_the_size_are_resized_at_once(
    width: int, height: int, kind: str, spec: InputSpec, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = saved(Image.fromarray(pixels), kind)
    with Image.open(io.BytesIO(file)) as image:
        reference = resized(image.convert("RGB"), spec)
    loaded = load_image(file, spec)
    assert loaded.num_pixels == width * height
    assert loaded.hash == pixel_hash(decode(file))
    if max(width / height, height / width) < 6:
        assert np.array_equal(loaded.pixels, reference)
    else:  # of a long picture only the centre is resized, which rounds otherwise
        assert np.abs(loaded.pixels.astype(int) - reference).mean() < 1


@pytest.mark.parametrize("spec", [STRETCH, CROP, WIDE])
@pytest.mark.parametrize(("height", "width"), [(960, 1280), (1203, 1801), (1500, 700)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_large_photographs_have_nearly_the_pixels_of_their_full_size(
    spec: InputSpec, height: int, width: int, kind: str
) -> None:
    options = {"JPEG": {"quality": 90}, "PNG": {"compress_level": 0}, "WEBP": {"quality": 90, "method": 0}}[kind]
    file = saved(scene(height, width, seed=1), kind, **options)
    difference = np.abs(load_image(file, spec).pixels.astype(int) - resized(Image.fromarray(decode(file)), spec))
    assert difference.mean() < 0.8
    assert np.quantile(difference, 0.99) <= 3


def test_a_jpeg_is_decoded_at_a_fraction_of_its_size() -> None:
    (file,) = photographs(1, 1000, 1600, seed=0)
    loaded = load_image(file, CROP)
    assert loaded.num_pixels == 1_600_000
    assert loaded.picture.size == (400, 250)  # 6 times smaller would do: the decoder offers 8, 4 and 2
    assert load_image(saved(Image.fromarray(decode(file)), "PNG"), CROP).picture.size == (267, 167)
    assert load_image(file, STRETCH).picture.size == (134, 250)  # 4 times by the decoder; 12 and 7 would do


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("spec", [STRETCH, WIDE])
def test_a_large_picture_that_lies_on_its_side_is_that_picture_upright(
    kind: str, orientation: int, spec: InputSpec
) -> None:
    """Its sizes are no multiples of the factor: the smaller blocks at its edge may end up on any side."""
    stored = scene(613, 1021, seed=2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"lossless": True, "quality": 0, "method": 0} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    )
    file = saved(stored, kind, exif=exif, **options)
    loaded = load_image(file, spec)
    upright = decode(file)
    assert loaded.num_pixels == 613 * 1021
    assert max(loaded.picture.size) < 600
    difference = np.abs(loaded.pixels.astype(int) - resized(Image.fromarray(upright), spec))
    assert difference.mean() < 0.8


def test_decoded_pixels_and_their_lossless_file_are_the_same_picture() -> None:
    image = photograph(700, 900, seed=3)
    from_file, from_pixels = load_image(saved(image, "PNG"), CROP), load_image(np.asarray(image), CROP)
    assert np.array_equal(from_file.pixels, from_pixels.pixels)
    assert np.array_equal(from_file.pixels, prepare(np.asarray(image), CROP))
    assert from_file.hash == from_pixels.hash != load_image(saved(image.rotate(1), "PNG"), CROP).hash


@pytest.mark.parametrize("size", [(40_000, 1), (1, 40_000), (3_000_000, 2), (20_000, 300)])
@pytest.mark.parametrize("spec", [STRETCH, CROP, WIDE])
def test_a_line_of_pixels_is_no_gigantic_picture(size: tuple[int, int], spec: InputSpec) -> None:
    """Resized as a whole by the rule "crop", the third would have 6,000 gigapixels."""
    loaded = load_image(saved(Image.new("L", size, 77), "PNG"), spec)
    assert loaded.pixels.shape == (spec.height, spec.width, 3)
    assert set(np.unique(loaded.pixels)) == {77}


def test_the_smallest_random_crop_has_the_pixels_of_the_network() -> None:
    (file,) = photographs(1, 1200, 1600, seed=4)
    whole = decode_for_crops(file, STRETCH, 1.0)
    assert whole.size == (200, 150)
    for share in (0.08, 0.25, 1.0):
        picture = decode_for_crops(file, STRETCH, share)
        assert (share * 0.75 * picture.width * picture.height) ** 0.5 >= 2 * 64
    assert decode_for_crops(file, STRETCH, 0.01).size == (1600, 1200)
