import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.shifts.imagenet import (
    conflict_groups,
    find_c,
    imagenet_ids,
    load_all_classes,
    load_c,
    load_conflict,
    load_subset,
    with_real_labels,
)
from training.manifest import InputSpec

SPEC = InputSpec(height=8, width=8, mean=(0, 0, 0), std=(1, 1, 1), resize="crop")
IDS = ("n001", "n002", "n003", "n004")


def save(*files: Path) -> None:
    for shade, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 12), (shade, 0, 0)).save(file)


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    """Four classes, five images numbered as in ImageNet."""
    root = tmp_path / "val"
    numbers = {"n001": [1], "n002": [3, 2], "n003": [5], "n004": [4]}
    save(*(root / name / f"ILSVRC2012_val_{n:08d}.JPEG" for name, found in numbers.items() for n in found))
    return root


def logits(*answers: int, num_classes: int = 4) -> np.ndarray:
    return np.eye(num_classes)[list(answers)] * 5


def test_labels_are_the_networks_outputs(validation: Path) -> None:
    found = load_all_classes(validation, SPEC, ids=IDS)
    assert found.files.labels.tolist() == [0, 1, 1, 2, 3]
    assert found.correct(logits(0, 1, 2, 2, 3)).tolist() == [True, True, False, True, True]
    loaded = found.subset([4, 0]).files.load()
    assert loaded.images.shape == (2, 8, 8, 3)
    assert loaded.labels.tolist() == [3, 0]


def test_a_set_that_lacks_classes_is_scored_among_all_of_them(tmp_path: Path) -> None:
    save(tmp_path / "sketch" / "n003" / "a.png")
    found = load_all_classes(tmp_path / "sketch", SPEC, ids=IDS)
    assert found.files.labels.tolist() == [2]
    assert found.correct(logits(3)).tolist() == [False]


def test_v2_folders_may_be_numbers_that_do_not_sort_as_text(tmp_path: Path) -> None:
    ids = tuple(f"n{index:03d}" for index in range(12))
    save(*(tmp_path / "v2" / str(index) / "a.jpeg" for index in range(12)))
    found = load_all_classes(tmp_path / "v2", SPEC, ids=ids)
    by_folder = {
        int(file.parent.name): label for file, label in zip(found.files.files, found.files.labels, strict=True)
    }
    assert by_folder == {index: index for index in range(12)}


def test_a_subset_is_scored_among_its_own_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a" / "n004" / "a.png", tmp_path / "a" / "n002" / "a.png")
    with caplog.at_level(logging.WARNING):
        found = load_subset(tmp_path / "a", SPEC, ids=IDS)
    assert "2 classes where ImageNet-A and -R have 200" in caplog.text
    assert found.files.class_names == ("n002", "n004")
    assert [group.tolist() for group in found.outputs] == [[1], [3]]
    scores = np.asarray([[9.0, 2, 0, 1], [9.0, 1, 0, 2]])  # the best output is none of the set's
    assert found.answers(scores).tolist() == [0, 1]
    assert found.correct(scores).tolist() == [True, True]


def test_real_labels_accept_several_and_leave_out_images_without(validation: Path, tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[0, 3], [1], [], [2], [0]]))
    real = with_real_labels(load_all_classes(validation, SPEC, ids=IDS), file)
    assert [path.stem[-1] for path in real.files.files] == ["1", "2", "5", "4"]
    assert real.correct(logits(3, 1, 0, 3)).tolist() == [True, True, True, False]
    assert real.subset([3, 2]).accepted == (frozenset({2}), frozenset({0}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ("{}", "expected a list of lists of classes from 0 to 3"),
        ("[[4]]", "expected a list of lists of classes from 0 to 3"),
        ("[[0]]", r"expected a name ending in _val_00000001 to _val_00000001$"),
        ("[[], [], [], [], []]", "no image of the validation set has a label"),
    ],
)
def test_bad_real_labels_are_one_line(validation: Path, tmp_path: Path, content: str, message: str) -> None:
    found = load_all_classes(validation, SPEC, ids=IDS)
    with pytest.raises(ValueError, match=r"real.json: expected the reassessed labels"):
        with_real_labels(found, tmp_path / "real.json")
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        with_real_labels(found, tmp_path / "real.json")


@pytest.mark.parametrize("group", ["", "blur"])
def test_c_is_found_with_and_without_groups(tmp_path: Path, group: str) -> None:
    root = tmp_path / "c"
    save(*(root / group / "fog" / str(level) / name / "a.JPEG" for level in (1, 3) for name in IDS))
    save(root / group / "snow" / "5" / "n002" / "a.JPEG")
    assert {name: sorted(levels) for name, levels in find_c(root).items()} == {"fog": [1, 3], "snow": [5]}
    assert load_c(root, "snow", 5, SPEC, ids=IDS).files.labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"expected a corruption of \['fog', 'snow'\], got 'rain'"):
        load_c(root, "rain", 1, SPEC, ids=IDS)
    with pytest.raises(ValueError, match=r"expected a severity of \[1, 3\] of fog, got 2"):
        load_c(root, "fog", 2, SPEC, ids=IDS)


def test_conflicts_are_labelled_by_shape_and_know_their_texture(tmp_path: Path) -> None:
    root = tmp_path / "conflict"
    save(root / "bear" / "bear10-cat3.png", root / "cat" / "cat1-bear2.png", root / "cat" / "cat2-cat1.png")
    groups = {"bear": np.asarray([0, 1]), "cat": np.asarray([3])}
    found = load_conflict(root, SPEC, groups=groups)
    assert found.files.labels.tolist() == [0, 1, 1]
    assert found.textures is not None
    assert found.textures.tolist() == [1, 0, 1]
    # Probabilities of bears .3 and .25, of the cat .4: the sum says bear, mean and maximum say cat.
    scores = np.log([[0.3, 0.25, 0.05, 0.4]] * 3)
    assert found.answers(scores, aggregate="sum").tolist() == [0, 0, 0]
    assert found.answers(scores, aggregate="max").tolist() == [1, 1, 1]
    assert found.correct(scores).tolist() == [False, True, True]
    textures = found.subset([2, 0]).textures
    assert textures is not None
    assert textures.tolist() == [1, 1]


def test_conflict_groups_are_disjoint_and_named_as_their_classes_are() -> None:
    from timm.data.imagenet_info import ImageNetInfo

    groups = conflict_groups()
    outputs = np.concatenate(list(groups.values()))
    assert len(groups) == 16
    assert len(outputs) == len(set(outputs.tolist())) == 207
    info = ImageNetInfo("imagenet-1k")

    def described(name: str) -> list[str]:
        return [info.index_to_description(int(index), detailed=True) for index in groups[name]]

    for name in ("bear", "bicycle", "bottle", "cat", "chair", "clock", "elephant", "keyboard"):
        word = {"bicycle": "bi", "bottle": "bottle", "chair": "chair"}.get(name, name)
        assert sum(word in text for text in described(name)) >= len(groups[name]) - 2, described(name)
    # Dogs are all of one branch of WordNet, whose ids lie together.
    ids = imagenet_ids()
    assert all("n02085620" <= ids[index] <= "n02113978" for index in groups["dog"])


def test_outputs_follow_the_sorted_ids() -> None:
    ids = imagenet_ids()
    assert len(ids) == 1000
    assert list(ids) == sorted(ids)


def test_missing_folders_and_unknown_classes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no such folder$"):
        load_all_classes(tmp_path / "val", SPEC, ids=IDS)
    with pytest.raises(ValueError, match=r"found no such folder$"):
        load_subset(tmp_path / "r", SPEC, ids=IDS)
    with pytest.raises(ValueError, match=r"found no such folder$"):
        find_c(tmp_path / "c")
    with pytest.raises(ValueError, match=r"found no such folder$"):
        load_conflict(tmp_path / "conflict", SPEC)
    save(tmp_path / "r" / "n009" / "a.png", tmp_path / "conflict" / "cat1.png")
    with pytest.raises(ValueError, match=r"WordNet ids of the network's 4 classes, got \['n009'\]$"):
        load_subset(tmp_path / "r", SPEC, ids=IDS)
    with pytest.raises(ValueError, match=r"found none$"):
        find_c(tmp_path / "r")
    with pytest.raises(ValueError, match=r"cat1.png: expected a name such as cat4-elephant2"):
        load_conflict(tmp_path / "conflict", SPEC)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"found none$"):
        load_conflict(tmp_path / "empty", SPEC)


def test_logits_of_other_images_or_classes_are_refused(validation: Path) -> None:
    found = load_all_classes(validation, SPEC, ids=IDS)
    with pytest.raises(ValueError, match="expected logits of 5 images, got 2"):
        found.correct(logits(0, 1))
    with pytest.raises(ValueError, match=r"expected logits \(N, C\) of at least 4 classes, got \(5, 3\)"):
        found.correct(np.zeros((5, 3)))
