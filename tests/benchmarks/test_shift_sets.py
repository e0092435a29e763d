from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.images.support import check_disjoint
from benchmarks.pictures import jpegs
from benchmarks.shifts.sets import (
    FOLDER_SETS,
    as_support,
    clean_images,
    draw,
    draw_positions,
    find_folder_sets,
    load_folder_set,
    without,
)
from benchmarks.shifts.suite import FAMILIES, SUITE
from training.data import ImageSet, from_arrays
from training.images import decode
from training.manifest import InputSpec

SPEC = InputSpec(height=16, width=16, mean=(0, 0, 0), std=(1, 1, 1))
CLASSES = ("airplane", "automobile", "cat", "dog")


def make_tree(root: Path, classes: dict[str, int], *, size: int = 20) -> Path:
    files = iter(jpegs(sum(classes.values()), size, size, seed=0))
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.jpg").write_bytes(next(files))
    return root


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """Sixty pictures of four classes; the last class is rare."""
    images = np.stack([decode(file) for file in jpegs(60, 16, 16, seed=1)])
    return from_arrays(images, np.minimum(np.arange(60) // 18, 3), CLASSES)


def test_folders_take_the_labels_of_the_base_set(tmp_path: Path) -> None:
    loaded = load_folder_set(make_tree(tmp_path / "some", {"dog": 3, "airplane": 2}), SPEC, CLASSES)
    assert loaded.class_names == CLASSES
    assert loaded.labels.tolist() == [0, 0, 3, 3, 3]
    assert loaded.images.shape == (5, 16, 16, 3)


def test_aliases_name_the_same_class(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "some", {"car": 2, "cat": 1})
    loaded = load_folder_set(root, SPEC, CLASSES, aliases={"car": "automobile"})
    assert loaded.labels.tolist() == [1, 1, 2]


def test_missing_folders_and_unknown_classes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: expected a folder with one folder per class, found no such folder"):
        load_folder_set(tmp_path / "nowhere", SPEC, CLASSES)
    root = make_tree(tmp_path / "some", {"cat": 1, "tree": 1})
    with pytest.raises(ValueError, match=r"some: expected class folders of \['airplane', .*\], got \['tree'\]$"):
        load_folder_set(root, SPEC, CLASSES)


def test_the_known_sets_are_found_where_they_are_unpacked(tmp_path: Path) -> None:
    make_tree(tmp_path / FOLDER_SETS["natural4"].folder, {"cat": 1, "dog": 1})
    make_tree(tmp_path / FOLDER_SETS["pacs_art"].folder, {"dog": 1, "horse": 1})
    assert [found.name for found in find_folder_sets(tmp_path, CLASSES)] == ["natural4"]
    assert [found.name for found in find_folder_sets(tmp_path, (*CLASSES, "horse"))] == ["natural4", "pacs_art"]
    assert all(found.name == name and found.family in FAMILIES for name, found in FOLDER_SETS.items())


def test_a_draw_is_disjoint_even_and_decided_by_the_seed(data: ImageSet) -> None:
    support, test = draw(data, n_support=20, n_test=30, seed=3)
    check_disjoint(support, test.hashes)
    assert (len(support), len(test)) == (20, 30)
    assert set(support.per_class.values()) == {5}
    again, other = (draw(data, n_support=20, n_test=30, seed=seed).support.hashes for seed in (3, 4))
    assert support.hashes == again
    assert set(support.hashes) != set(other)


def test_a_draw_does_not_depend_on_the_order_of_the_files(data: ImageSet) -> None:
    shuffled = data.subset(np.random.default_rng(0).permutation(len(data)))
    one, other = (draw(each, n_support=13, n_test=20, seed=0) for each in (data, shuffled))
    assert set(one.support.hashes) == set(other.support.hashes)
    assert set(one.test.hashes) == set(other.test.hashes)


def test_repeats_and_pictures_with_two_labels_are_left_out(data: ImageSet) -> None:
    repeats = data.subset([0, 1])
    relabelled = ImageSet(data.images[2:3], data.labels[2:3] + 1, CLASSES, data.hashes[2:3])
    both = ImageSet(
        np.concatenate([data.images, repeats.images, relabelled.images]),
        np.concatenate([data.labels, repeats.labels, relabelled.labels]),
        CLASSES,
        (*data.hashes, *repeats.hashes, *relabelled.hashes),
    )
    positions = draw_positions(both.labels, both.hashes, n_support=20, n_test=1000, seed=0)
    used = [both.hashes[index] for index in np.concatenate(positions)]
    assert len(used) == len(set(used)) == 59
    assert data.hashes[2] not in used


def test_shifted_sets_draw_as_the_clean_set_does(data: ImageSet) -> None:
    clean = draw(data, n_support=10, n_test=20, seed=0)
    shifted = draw(SUITE["gaussian_noise"].of(data, seed=0), n_support=10, n_test=20, seed=0)
    assert clean.support.hashes == shifted.support.hashes
    assert not np.array_equal(clean.support.images, shifted.support.images)


def test_too_few_pictures_are_refused(data: ImageSet) -> None:
    with pytest.raises(ValueError, match="more different pictures than n_support, got 60, 10 and 60 pictures"):
        draw(data, n_support=60, n_test=10, seed=0)


def test_pictures_of_another_set_can_be_taken_out(data: ImageSet) -> None:
    left = without(data, data.hashes[:15])
    assert left.hashes == data.hashes[15:]
    check_disjoint(as_support(left), data.hashes[:15])


def test_clean_images_come_from_the_test_folder(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "set" / "val", {"cat": 4, "dog": 4}).parent
    assert len(clean_images(root, SPEC)) == 8
    assert np.bincount(clean_images(root, SPEC, n=6, seed=1).labels).tolist() == [3, 3]
    with pytest.raises(ValueError, match="nowhere: expected a folder with test/<class>/<file>"):
        clean_images(tmp_path / "nowhere", SPEC)


def test_grey_files_and_sizes_are_brought_to_the_input(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "some", {"cat": 1}, size=40)
    Image.new("L", (7, 9), 80).save(root / "cat" / "grey.png")
    assert load_folder_set(root, SPEC, CLASSES).images.shape == (2, 16, 16, 3)
