import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.pictures import jpegs
from benchmarks.shifts.corruptions import CORRUPTIONS
from benchmarks.shifts.levels import AT_32, AT_224, between, growth
from benchmarks.shifts.pixels import Batch, line_blur, magnifier, to_bytes, to_unit, warp
from benchmarks.shifts.preview import List, Preview
from benchmarks.shifts.suite import FAMILIES, STANDARD, SUITE, find_shift
from benchmarks.shifts.textures import clouds, frosted_pane, frosted_windows
from training.cli import EXIT_BAD_INPUT, run
from training.data import from_arrays
from training.images import decode, prepare
from training.manifest import InputSpec

RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
    "low_light",
}
# Published parameters that trade one thing for another from one severity to the next: blur for shuffling, reach for
# spread, brightness of the scene for ice, an affine map for a field, size of squares for how they fall on old pixels.
TRADE_OFFS = {"glass_blur", "motion_blur", "frost", "elastic_transform", "pixelate"}
FLAT = np.full((4, 32, 32, 3), 128, dtype=np.uint8)


@pytest.fixture(scope="module")
def pictures() -> Batch:
    """Twelve different 32 x 32 pictures whose detail is no finer than that of photographs."""
    images = [Image.fromarray(decode(file)) for file in jpegs(12, 16, 16, seed=0)]
    return np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in images])


def distance(one: Batch, other: Batch) -> float:
    return float(np.sqrt(((to_unit(one) - to_unit(other)) ** 2).mean(axis=(1, 2, 3))).mean())


def correlation(one: Batch, other: Batch) -> float:
    return float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one, other, strict=True)]))


@pytest.mark.parametrize("name", SUITE)
def test_a_shift_makes_new_pictures_of_the_same_kind_and_leaves_the_old(name: str, pictures: Batch) -> None:
    before = pictures.copy()
    pictures.flags.writeable = False
    for severity in (1, 5):
        shifted = SUITE[name](pictures, severity, seed=0)
        assert shifted.shape == pictures.shape
        assert shifted.dtype == np.uint8
        assert not np.shares_memory(shifted, pictures)
    assert np.array_equal(pictures, before)
    assert distance(shifted, pictures) > 0.01


@pytest.mark.parametrize("name", SUITE)
def test_a_seed_decides(name: str, pictures: Batch) -> None:
    first = SUITE[name](pictures, 4, seed=7)
    assert np.array_equal(first, SUITE[name](pictures, 4, seed=7))
    assert np.array_equal(first, SUITE[name](pictures, 4, seed=8)) == (name not in RANDOM)


@pytest.mark.parametrize("name", SUITE)
def test_severity_takes_pictures_further_from_the_original(name: str, pictures: Batch) -> None:
    distances = [distance(SUITE[name](pictures, severity, seed=0), pictures) for severity in range(1, 6)]
    if name in TRADE_OFFS:
        assert min(distances) > 0.01
    else:
        assert all(np.diff(distances) > 0)


@pytest.mark.parametrize("name", ["glass_blur", "motion_blur", "frost", "pixelate"])
def test_where_brightness_does_not_tell_correlation_falls_from_least_to_most(name: str, pictures: Batch) -> None:
    least, most = (correlation(SUITE[name](pictures, severity, seed=0), pictures) for severity in (1, 5))
    assert most < least


@pytest.mark.parametrize("name", sorted(set(SUITE) - {"low_light"}))  # which draws by how bright the pictures are
def test_a_picture_does_not_depend_on_those_beside_it(name: str, pictures: Batch) -> None:
    corruption, x = SUITE[name].corruption, to_unit(pictures)
    others = np.concatenate([x[:1], 1 - x[1:]])
    alone, beside = (
        corruption.change(batch, corruption.levels[2], np.random.default_rng(0))[0] for batch in (x, others)
    )
    np.testing.assert_allclose(alone, beside, atol=1e-6)


@pytest.mark.parametrize("name", SUITE)
def test_other_sizes_work(name: str) -> None:
    pictures = np.stack([decode(file) for file in jpegs(2, 18, 45, seed=0)])
    assert SUITE[name](pictures, seed=0).shape == pictures.shape
    assert SUITE[name](pictures[:0], seed=0).shape == (0, 18, 45, 3)


def test_small_pictures_are_shifted_as_they_always_were(pictures: Batch) -> None:
    """Block means of four pictures, of all shifts at all severities, as measured before other sizes were scaled."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "shifts.json").read_text())
    assert set(golden) == {f"{name}@{severity}" for name in SUITE for severity in range(1, 6)}
    for name, means in golden.items():
        kind, _, severity = name.partition("@")
        after = SUITE[kind](pictures, int(severity), seed=0)[:4]
        found = after.reshape(4, 2, 16, 2, 16, 3).mean(axis=(0, 2, 4)).ravel()
        assert np.abs(found - means).max() < 1.5, name


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_published_strengths_hold_at_both_published_sizes(name: str) -> None:
    for severity in range(1, 6):
        level = CORRUPTIONS[name].level
        assert level(severity, 32, 32) == level(severity, 18, 45) == AT_32[name][severity - 1]
        assert level(severity, 224, 224) == level(severity, 500, 400) == AT_224[name][severity - 1]
        small, found, large = (np.asarray(level(severity, size, size)) for size in (32, 160, 224))
        assert (np.minimum(small, large) <= found).all()
        assert (found <= np.maximum(small, large)).all()


def test_lengths_lie_on_a_geometric_line() -> None:
    assert growth(160, 200) == pytest.approx(np.log(5) / np.log(7))
    assert between(2, 8, 0.5) == pytest.approx(4)
    assert between((1, 0.0), (9, 3.0), 0.5) == pytest.approx((3, 1.5))


@pytest.mark.parametrize("name", sorted(set(SUITE) - {"frost"}))  # whose pane takes seconds to draw
def test_large_pictures_are_shifted_too_and_more_with_severity(name: str, pictures: Batch) -> None:
    large = pictures[:3].repeat(5, axis=1).repeat(5, axis=2)
    least, most = (SUITE[name](large, severity, seed=0) for severity in (1, 5))
    assert most.shape == large.shape
    assert distance(least, large) > 0.005
    if name not in {"glass_blur", "elastic_transform"}:  # ImageNet-C's trade one thing for another, too
        assert distance(most, large) > distance(least, large)


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur"])
def test_blur_reaches_further_in_larger_pictures(name: str) -> None:
    reaches = []
    for size in (32, 160):
        edge = np.zeros((2, size, size, 3), dtype=np.uint8)
        edge[:, :, size // 2 :] = 255
        after = SUITE[name](edge, 5, seed=0)[0, size // 2]
        reaches.append(int(((after > 2) & (after < 253)).any(axis=1).sum()))
    assert reaches[1] >= 2 * reaches[0]


def test_larger_ice_has_larger_ferns() -> None:
    small, large = (frosted_pane(np.random.default_rng(0), scale)[..., 1] for scale in (1, 2))
    assert large.shape == (2 * small.shape[0], 2 * small.shape[1])
    steps = [float(np.abs(pane - np.roll(pane, 4, axis=0)).mean()) for pane in (small, large)]
    assert steps[1] < steps[0]


def test_other_pictures_get_other_noise_from_one_seed() -> None:
    one, other = (SUITE["gaussian_noise"](images, 3, seed=0).astype(int) - 128 for images in (FLAT, FLAT[:2]))
    assert abs(np.corrcoef(one[0].ravel(), other[0].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("name", "spread"),
    [("gaussian_noise", 0.10), ("shot_noise", np.sqrt(0.5 / 50)), ("impulse_noise", np.sqrt(0.07) / 2)],
)
def test_noise_has_its_published_strength(name: str, spread: float) -> None:
    noise = to_unit(SUITE[name](FLAT, 5, seed=0)) - 128 / 255
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize(
    "name",
    ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform", "pixelate", "painting"],
)
def test_what_only_moves_light_about_leaves_an_even_picture(name: str) -> None:
    assert np.abs(SUITE[name](FLAT, 5, seed=0).astype(int) - 128).max() <= 1


def test_contrast_keeps_the_mean_and_a_share_of_the_rest(pictures: Batch) -> None:
    x, after = to_unit(pictures), to_unit(CORRUPTIONS["contrast"](pictures, 2, seed=0))
    mean = x.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(after, mean + 0.5 * (x - mean), atol=0.51 / 255)


def test_brightness_raises_the_largest_colour_and_keeps_their_ratios() -> None:
    pixels = np.asarray([[[[0, 0, 0], [100, 50, 0], [255, 128, 64]]]], dtype=np.uint8)
    after = CORRUPTIONS["brightness"](pixels, 4, seed=0)[0, 0].tolist()
    assert after == [[51, 51, 51], [151, 76, 0], [255, 128, 64]]


def test_jpeg_is_a_jpeg_of_the_published_quality(pictures: Batch, tmp_path: Path) -> None:
    Image.fromarray(pictures[3]).save(tmp_path / "40.jpg", quality=40)
    after = CORRUPTIONS["jpeg_compression"](pictures, 5, seed=0)[3]
    assert np.array_equal(after, np.asarray(Image.open(tmp_path / "40.jpg")))


def test_glass_moves_pixels_by_one_at_most() -> None:
    columns = np.broadcast_to((8 * np.arange(32, dtype=np.uint8))[None, None, :, None], (3, 32, 32, 3))
    moved = (columns.astype(int) - CORRUPTIONS["glass_blur"](columns, 1, seed=0)) // 8
    assert set(np.unique(moved)) == {0, 1}
    assert moved[:, 2:, 2:].mean() == pytest.approx(0.5, abs=0.05)


def test_renditions_end_where_their_names_say(pictures: Batch) -> None:
    def at_most(name: str) -> Batch:
        return SUITE[name](pictures, 5, seed=0)

    assert np.array_equal(at_most("inversion"), 255 - pictures)
    assert np.array_equal(at_most("channel_swap"), np.roll(pictures, -1, axis=3))
    assert set(np.unique(at_most("posterise"))) <= {0, 255}
    assert np.ptp(at_most("greyscale"), axis=3).max() == 0
    assert np.ptp(at_most("sketch"), axis=3).max() == 0
    assert max(len(np.unique(picture.reshape(-1, 3), axis=0)) for picture in at_most("palette")) <= 3


def test_painting_keeps_an_edge_and_flattens_its_sides() -> None:
    step = np.where(np.arange(32) < 16, 60, 200)
    noisy = (step[None, None, :, None] + np.random.default_rng(0).normal(0, 8, (1, 32, 32, 3))).astype(np.uint8)
    painted = SUITE["painting"](noisy, 3, seed=0).astype(float)
    assert painted[..., :16, :].std() < 0.7 * noisy[..., :16, :].std()
    assert (painted[..., 16, :] - painted[..., 15, :]).min() > 100


def test_the_suite_has_the_standard_corruptions_and_nine_more() -> None:
    assert len(STANDARD) == 15
    assert len(SUITE) == 24
    assert set(STANDARD) < set(SUITE)
    assert {shift.family for shift in SUITE.values()} == set(FAMILIES) - {"natural"}
    assert all(name == shift.name and shift.core_severity in range(1, 6) for name, shift in SUITE.items())


def test_a_shifted_set_keeps_labels_and_the_hashes_of_the_originals(pictures: Batch) -> None:
    data = from_arrays(pictures, np.arange(12) % 3, ["a", "b", "c"])
    shifted = SUITE["fog"].of(data, seed=0)
    assert (shifted.hashes, shifted.class_names) == (data.hashes, data.class_names)
    assert np.array_equal(shifted.images, SUITE["fog"](pictures, 5, seed=0))


def test_bad_input_is_named(pictures: Batch) -> None:
    fog = SUITE["fog"]
    with pytest.raises(ValueError, match=r"^expected uint8 images \(n, H, W, 3\), got float32"):
        fog(to_unit(pictures), 1, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^expected a severity from 1 to 5, got 0$"):
        fog(pictures, 0, seed=0)
    with pytest.raises(ValueError, match=r"^expected a shift of .*, got 'rain'$"):
        find_shift("rain")


def test_bytes_survive_the_unit_scale(pictures: Batch) -> None:
    assert np.array_equal(to_bytes(to_unit(pictures)), pictures)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.07, 1.25, 2.25])
def test_a_magnifier_averages_and_is_symmetric(factor: float) -> None:
    matrix = magnifier(32, factor)
    assert matrix.shape == (32, 32)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    if factor == 1:
        assert np.array_equal(matrix, np.eye(32))


def test_warping_by_whole_pixels_shifts_and_mirrors(pictures: Batch) -> None:
    x = to_unit(pictures)
    rows, columns = np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij")
    rows, columns = (np.broadcast_to(grid, (12, 32, 32)).astype(np.float32) for grid in (rows, columns))
    np.testing.assert_array_equal(warp(x, rows, columns), x)
    moved = warp(x, rows - 2, columns)
    np.testing.assert_array_equal(moved[:, 2:], x[:, :-2])
    np.testing.assert_array_equal(moved[:, :2], x[:, 2:0:-1])


def test_a_line_blur_smears_to_one_side_along_its_angle() -> None:
    x = np.zeros((2, 9, 9, 1), dtype=np.float32)
    x[:, 4, 4] = 1
    blurred = line_blur(x, radius=3, sigma=1.5, angles=np.asarray([0, 90], dtype=np.float32))
    assert set(zip(*np.nonzero(blurred[0, :, :, 0]), strict=True)) == {(4, column) for column in range(5)}
    assert set(zip(*np.nonzero(blurred[1, :, :, 0]), strict=True)) == {(row, 4) for row in range(5)}
    assert blurred[0, 4, 4, 0] == blurred[0].max()


def test_clouds_fill_the_scale_and_fade_from_pixel_to_pixel() -> None:
    generator = np.random.default_rng(0)
    smooth, rough = (clouds(20, 32, 32, decay=decay, generator=generator) for decay in (3, 1.5))
    assert smooth.shape == (20, 32, 32)
    assert (smooth.min(), smooth.max()) == (0, 1)
    assert np.abs(np.diff(smooth, axis=2)).mean() < np.abs(np.diff(rough, axis=2)).mean()
    assert clouds(2, 5, 40, decay=2, generator=generator).shape == (2, 5, 40)


def test_frosted_windows_differ_and_are_bluish() -> None:
    windows = frosted_windows(6, 32, 32, generator=np.random.default_rng(0))
    assert 0 <= windows.min() < windows.max() <= 1
    assert len({window.tobytes() for window in windows}) == 6
    assert (windows[..., 0] <= windows[..., 2]).all()


def save_pictures(folder: Path, pictures: Batch) -> Path:
    for index, picture in enumerate(pictures):
        file = folder / "test" / ("cat", "dog")[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
    return folder


def test_the_preview_shows_shifts_by_severity(pictures: Batch, tmp_path: Path) -> None:
    data = save_pictures(tmp_path / "data", pictures)
    command = Preview(data=data, out=tmp_path / "out", shifts=("fog", "sketch"), n=2, scale=1)
    result = command.execute()
    with Image.open(result.data["file"]) as sheet:
        cells = np.asarray(sheet)
    spec = InputSpec(height=32, width=32, mean=(0, 0, 0), std=(1, 1, 1))
    corner = cells[20:52, 150:182]
    assert any(np.array_equal(corner, prepare(picture, spec)) for picture in pictures)
    assert result.data["n"] == 2
    assert cells.shape == (20 + 2 * 38, 150 + 6 * 70, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere: expected a folder with test/<class>/<file>, found no such folder"),
        (["--data", ".", "--shifts", "rain"], "expected a shift of"),
    ],
)
def test_a_preview_of_nothing_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run([Preview, List], prog="x", description="x", args=["preview", *options, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert code == EXIT_BAD_INPUT
    assert message in said
    assert said.count("\n") == 1


def test_the_list_names_every_shift(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([Preview, List], prog="x", description="x", args=["list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["shifts"]] == list(SUITE)
