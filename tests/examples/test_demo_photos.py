"""What the demo on photographs shows; the demo itself runs in tests/e2e."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.demo_photos import (
    BASE_SET,
    MOST_PIXELS,
    NUM_SUPPORT,
    NUM_TEST,
    DemoPhotos,
    draw_pictures,
    find_pictures,
)
from examples.sketches import SKETCHES, draw
from service.demo.picture import draw as draw_story
from tests.service.demo.test_demo_story import story
from training.images import decode
from training.manifest import read_manifest

MANIFEST = read_manifest(BASE_SET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 pictures of three classes, PNG and JPEG, one of them large, one of them there twice."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name in ("dog", "house", "person"):
        (root / name).mkdir()
        for number in range(60):
            pixels = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.{'png' if number % 2 else 'jpg'}")
    Image.new("RGB", (1600, 800), "red").save(root / "dog" / "0.jpg")
    shutil.copy(root / "dog" / "1.png", root / "dog" / "copy.png")
    return root


def test_there_is_a_drawing_of_every_class_of_the_base_set() -> None:
    assert set(SKETCHES) == set(MANIFEST.class_names)


@pytest.mark.parametrize("name", SKETCHES)
def test_drawings_of_a_class_follow_from_the_generator_and_no_two_are_alike(name: str) -> None:
    first, second, again = (np.asarray(draw(name, np.random.default_rng(seed)), dtype=int) for seed in (0, 1, 0))
    assert first.shape == (200, 200, 3)
    assert np.array_equal(first, again)
    assert np.abs(first - second).mean() > 5


@pytest.mark.parametrize("name", SKETCHES)
def test_most_of_a_drawing_is_on_its_sheet(name: str) -> None:
    """Whatever is drawn differs from the paper, and little of that lies on the sheet's edge."""
    generator = np.random.default_rng(4)
    for _ in range(10):
        pixels = np.asarray(draw(name, generator), dtype=int)
        paper = np.median(pixels.reshape(-1, 3), axis=0)
        is_drawn = np.abs(pixels - paper).max(axis=-1) > 40
        edge = np.concatenate([is_drawn[0], is_drawn[-1], is_drawn[:, 0], is_drawn[:, -1]])
        assert is_drawn.mean() > 0.01
        assert edge.mean() < 0.1


def test_support_and_test_drawings_are_disjoint_and_balanced() -> None:
    pictures = draw_pictures(MANIFEST.class_names, seed=1)
    assert (len(pictures.support), len(pictures.test)) == (NUM_SUPPORT, NUM_TEST)
    labels = pictures.labels(pictures.support)
    assert [labels.count(name) for name in MANIFEST.class_names] == [10] * 7
    assert len(set(pictures.files)) == len(pictures.files) == NUM_SUPPORT + NUM_TEST


def test_pictures_of_a_folder_are_parted_without_copies_and_made_smaller(folder: Path) -> None:
    pictures = find_pictures(folder, MANIFEST, seed=0)
    assert (len(pictures.support), len(pictures.test)) == (NUM_SUPPORT, 110)
    assert len(set(pictures.files)) == 180
    labels = pictures.labels(pictures.support)
    assert {name: labels.count(name) for name in set(labels)} in (
        {"dog": 24, "house": 23, "person": 23},
        {"dog": 23, "house": 24, "person": 23},
        {"dog": 23, "house": 23, "person": 24},
    )
    shapes = [decode(file).shape for file in pictures.files]
    assert max(max(shape[:2]) for shape in shapes) == MOST_PIXELS
    assert (256, 512, 3) in shapes
    assert (24, 32, 3) in shapes


def test_folders_that_cannot_be_shown_are_refused_with_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no such folder"):
        DemoPhotos(photos=tmp_path / "nowhere").execute()
    shutil.copytree(folder / "dog", tmp_path / "few" / "dog")
    with pytest.raises(ValueError, match=r"expected at least 120 pictures, .* found 60"):
        DemoPhotos(photos=tmp_path / "few").execute()
    shutil.copytree(folder / "dog", tmp_path / "few" / "cat")
    with pytest.raises(ValueError, match="cat: expected a class folder named one of"):
        DemoPhotos(photos=tmp_path / "few").execute()
    shutil.copytree(folder, tmp_path / "broken")
    for file in (tmp_path / "broken" / "house").iterdir():
        file.write_bytes(b"no image" + file.name.encode())
    with pytest.raises(ValueError, match=r"house/\d+\.\w+: expected an image file"):
        DemoPhotos(photos=tmp_path / "broken").execute()


def test_the_picture_shows_drawings_without_a_scene(tmp_path: Path) -> None:
    pictures = draw_pictures(MANIFEST.class_names, seed=0)
    answers = ["dog"] * NUM_TEST
    told = story(predicted_before=answers, predicted_after=answers)
    draw_story(told, pictures, tmp_path / "demo.png", title="drawings")
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 1000
        assert np.asarray(picture.convert("L")).std() > 20
