import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import INPUT
from training.data import (
    ImageFiles,
    ImageSet,
    balanced_indices,
    find_test_folder,
    find_validation_folder,
    from_arrays,
    load_folder,
)
from training.manifest import InputSpec
from training.named_sets import load_digits
from training.splits import DataSpec, load_splits


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


FRACTIONS = DataSpec(source="folder", test_fraction=0.2, validation_fraction=0.25)


def test_a_folder_of_classes_is_split_by_fractions_of_every_class(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 20, "dog": 10})
    splits = load_splits(FRACTIONS, INPUT, tmp_path)
    assert [Counter(part.labels.tolist()) for part in splits] == [{0: 12, 1: 6}, {0: 4, 1: 2}, {0: 4, 1: 2}]
    hashes = [set(part.hashes) for part in splits if not isinstance(part, ImageFiles)]
    assert len(set.union(*hashes)) == 30
    again, files = load_splits(FRACTIONS, INPUT, tmp_path), FRACTIONS.model_copy(update={"in_memory": False})
    assert again.test.hashes == splits.test.hashes
    lazy = load_splits(files, INPUT, tmp_path)
    assert isinstance(lazy.train, ImageFiles)
    assert lazy.train.load().hashes == splits.train.hashes
    other = load_splits(FRACTIONS.model_copy(update={"split_seed": 1}), INPUT, tmp_path)
    assert other.test.hashes != splits.test.hashes


def test_copies_of_an_image_are_never_on_both_sides_of_a_split(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 12, "dog": 12})
    for index in range(12):
        shutil.copy(tmp_path / "cat" / f"{index}.png", tmp_path / "cat" / f"copy{index}.png")
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "dog" / "0-again.png")
    for seed in range(5):
        splits = load_splits(FRACTIONS.model_copy(update={"split_seed": seed}), INPUT, tmp_path)
        train, validation, test = (set(part.hashes) for part in splits if not isinstance(part, ImageFiles))
        assert not train & validation
        assert not (train | validation) & test


def test_a_class_too_small_to_split_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": 12, "dog": 1})
    with pytest.raises(ValueError, match=r"class .dog.: expected enough different images to hold 0\.2 .* got 1"):
        load_splits(FRACTIONS, INPUT, tmp_path)


def test_fractions_do_not_touch_the_parts_that_have_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cat": 8, "dog": 8})
    write_folder(tmp_path / "val", {"cat": 3, "dog": 1}, seed=1)
    splits = load_splits(FRACTIONS, INPUT, tmp_path)
    assert [len(part) for part in splits] == [12, 4, 4]
    assert Counter(splits.test.labels.tolist()) == {0: 3, 1: 1}
    assert find_test_folder(tmp_path) == tmp_path / "val"
    assert find_test_folder(tmp_path / "train") is None


def test_val_is_the_validation_part_where_there_is_a_test_part_too(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 3), ("test", 2)):
        write_folder(tmp_path / part, {"cat": count, "dog": count}, seed=count)
    splits = load_splits(DataSpec(source="folder"), INPUT, tmp_path)
    assert [len(part) for part in splits] == [16, 6, 4]
    assert splits.validation.hashes == load_folder(tmp_path / "val", INPUT).hashes
    assert find_test_folder(tmp_path) == tmp_path / "test"
    write_folder(tmp_path / "validation", {"cat": 1, "dog": 1}, seed=9)
    assert len(load_splits(DataSpec(source="folder"), INPUT, tmp_path).validation) == 2
    assert find_validation_folder(tmp_path / "train") is None


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_data_folder_where_one_part_is_wanted_is_explained(part: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    write_folder(tmp_path / part, {"cat": 2, "dog": 2})
    with pytest.raises(ValueError, match=rf"expected a class folder .*\]: give one part of .*, such as .*{part}"):
        load_folder(tmp_path, INPUT, ("cat", "dog"))


def test_one_rule_for_validation_is_enough() -> None:
    with pytest.raises(ValueError, match="expected num_validation or validation_fraction, got both"):
        DataSpec(source="folder", num_validation=3, validation_fraction=0.1)


def test_cifar10_that_is_neither_there_nor_downloadable_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where torchvision wants a folder")
    with pytest.raises(ValueError, match=r"it cannot be downloaded: .*saucier data cifar10 --out "):
        load_splits(DataSpec(source="cifar10", num_validation=10), INPUT, tmp_path / "file")


def test_digits_come_at_the_size_of_the_recipe() -> None:
    spec = InputSpec(height=32, width=24, mean=(0.5,) * 3, std=(0.5,) * 3)
    data = DataSpec(source="digits", num_validation=20)
    own = load_splits(data, spec.model_copy(update={"height": 16, "width": 16}))
    for part, other in zip(load_splits(data, spec), own, strict=True):
        assert isinstance(part, ImageSet)
        assert isinstance(other, ImageSet)
        assert part.images.shape[1:] == (32, 24, 3)
        assert other.images.shape[1:] == (16, 16, 3)
        assert part.hashes == other.hashes
        assert np.array_equal(part.labels, other.labels)


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
