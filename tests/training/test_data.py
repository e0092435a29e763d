from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import INPUT
from training.data import (
    DataSpec,
    balanced_indices,
    from_arrays,
    load_digits,
    load_folder,
    load_splits,
)


def write_folder(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_a_folder_gives_classes_labels_and_prepared_images(tmp_path: Path) -> None:
    data = load_folder(write_folder(tmp_path, {"ship": 3, "cat": 2}), INPUT)
    assert data.class_names == ("cat", "ship")
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.images.shape == (5, 16, 16, 3)
    assert len(set(data.hashes)) == 5


def test_given_class_names_fix_the_order_and_allow_absent_classes(tmp_path: Path) -> None:
    data = load_folder(write_folder(tmp_path, {"ship": 1}), INPUT, ("ship", "cat"))
    assert data.labels.tolist() == [0]
    with pytest.raises(ValueError, match=r"ship: expected a class folder named one of \['cat', 'dog'\]"):
        load_folder(tmp_path, INPUT, ("cat", "dog"))


def test_folders_that_hold_no_dataset_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no such folder"):
        load_folder(tmp_path / "nothing", INPUT)
    with pytest.raises(ValueError, match="one folder per class, found none"):
        load_folder(tmp_path, INPUT)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="images of class 'cat', found none"):
        load_folder(tmp_path, INPUT)
    (tmp_path / "cat" / "broken.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"broken\.jpg: expected an image file"):
        load_folder(tmp_path, INPUT)


def test_parts_must_have_the_same_classes(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cat": 4, "dog": 4})
    spec = DataSpec(source="folder", num_validation=2)
    with pytest.raises(ValueError, match="found no test/"):
        load_splits(spec, INPUT, tmp_path)
    write_folder(tmp_path / "test", {"cat": 1, "ship": 1})
    with pytest.raises(ValueError, match=r"train/ and test/ differ in the classes \['dog', 'ship'\]"):
        load_splits(spec, INPUT, tmp_path)


def test_validation_is_held_out_of_training_unless_it_has_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cat": 6, "dog": 6})
    write_folder(tmp_path / "test", {"cat": 1, "dog": 1}, seed=1)
    splits = load_splits(DataSpec(source="folder", num_validation=4), INPUT, tmp_path)
    assert Counter(splits.validation.labels.tolist()) == {0: 2, 1: 2}
    assert not set(splits.train.hashes) & set(splits.validation.hashes)
    assert len(splits.train) == 8
    write_folder(tmp_path / "validation", {"cat": 3, "dog": 3}, seed=2)
    splits = load_splits(DataSpec(source="folder"), INPUT, tmp_path)
    assert (len(splits.train), len(splits.validation)) == (12, 6)


@pytest.mark.parametrize("n", [0, 1, 12, 99])
def test_impossible_validation_sizes_are_refused(tmp_path: Path, n: int) -> None:
    write_folder(tmp_path / "train", {"cat": 6, "dog": 6})
    write_folder(tmp_path / "test", {"cat": 1, "dog": 1})
    with pytest.raises(ValueError, match=f"fewer than the 12 training images, got {n}"):
        load_splits(DataSpec(source="folder", num_validation=n), INPUT, tmp_path)


def test_cifar10_that_is_neither_there_nor_downloadable_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where torchvision wants a folder")
    with pytest.raises(ValueError, match="CIFAR-10 cannot be downloaded"):
        load_splits(DataSpec(source="cifar10", num_validation=10), INPUT, tmp_path / "file")


def test_digits_are_embedded_balanced_and_disjoint() -> None:
    train, test = load_digits()
    assert (len(train), len(test)) == (1197, 600)
    assert set(np.bincount(test.labels)) == {60}
    assert not set(train.hashes) & set(test.hashes)
    assert train.images.shape[1:] == (16, 16, 3)
    assert train.images.max() == 255


def test_balanced_draws_are_even_deterministic_and_without_replacement() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 3)
    chosen = balanced_indices(labels, 24, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [11, 10, 3]
    assert len(set(chosen.tolist())) == 24
    assert np.array_equal(chosen, balanced_indices(labels, 24, seed=1))
    assert not np.array_equal(chosen, balanced_indices(labels, 24, seed=2))
    assert len(balanced_indices(labels, 1000, seed=0)) == 63


def test_arrays_with_labels_out_of_range_are_refused() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="labels from 0 to 1, got 0 to 2"):
        from_arrays(images, np.array([0, 2]), ["a", "b"])
    with pytest.raises(ValueError, match="expected uint8 images"):
        from_arrays(images[:, 0], np.array([0, 1]), ["a", "b"])
