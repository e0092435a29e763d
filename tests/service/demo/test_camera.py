import numpy as np
import pytest

from service.demo.camera import AIRLIGHT, CAMERAS, DEMO_CAMERA, Camera
from service.demo.digits import NUM_SUPPORT, photograph_digits
from training.images import decode

SCENE = np.zeros((1, 16, 16, 3), dtype=np.uint8)
SCENE[0, 4:12, 6:10] = 255


def look(camera: Camera, scene: np.ndarray = SCENE, seed: int = 0) -> np.ndarray:
    """The first picture, on the [0, 1] scale."""
    return decode(camera.photograph(scene, seed=seed)[0]) / 255


def test_a_perfect_camera_changes_no_more_than_jpeg_does() -> None:
    assert np.abs(look(Camera(quality=95)) - SCENE[0] / 255).mean() < 0.02


def test_haze_lowers_contrast_toward_the_airlight() -> None:
    hazy = look(Camera(haze=0.4))
    assert np.ptp(hazy) == pytest.approx(0.6, abs=0.06)
    assert hazy[0, 0].mean() == pytest.approx(0.4 * AIRLIGHT, abs=0.03)


def test_defocus_spreads_light_and_loses_none() -> None:
    sharp, blurred = look(Camera()), look(Camera(defocus=2.5))
    assert blurred.mean() == pytest.approx(sharp.mean(), abs=0.01)
    assert np.abs(np.diff(blurred, axis=1)).max() < 0.6 * np.abs(np.diff(sharp, axis=1)).max()


def test_exposure_scales_light() -> None:
    assert look(Camera(exposure=0.5)).max() == pytest.approx(0.5, abs=0.05)


def test_noise_has_its_spread_and_follows_from_the_seed() -> None:
    grey = np.full((1, 64, 64, 3), 128, dtype=np.uint8)
    noisy = Camera(noise=0.1, quality=95)
    # JPEG halves the resolution of colour, so some of the independent noise of the three channels averages out.
    assert 0.04 < look(noisy, grey).std() < 0.11
    assert np.array_equal(look(noisy, grey, seed=3), look(noisy, grey, seed=3))
    assert not np.array_equal(look(noisy, grey, seed=3), look(noisy, grey, seed=4))


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_camera_takes_readable_pictures(camera: str) -> None:
    pictures = photograph_digits(camera, seed=0)
    assert decode(pictures.files[0]).shape == (16, 16, 3)
    assert pictures.scenes is not None
    assert len(pictures.files) == len(pictures.scenes) == len(pictures.classes)


def test_support_and_test_are_disjoint_and_balanced() -> None:
    pictures = photograph_digits(DEMO_CAMERA, seed=5)
    assert len(pictures.support) == NUM_SUPPORT
    assert sorted([*pictures.support, *pictures.test]) == list(range(600))
    labels = pictures.labels(pictures.support)
    assert [labels.count(name) for name in pictures.class_names] == [10] * 10
    assert len({pictures.files[i] for i in pictures.support} & {pictures.files[i] for i in pictures.test}) == 0
