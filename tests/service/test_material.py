"""The images of `/adapt`: taken apart from a request, decoded, limited, told apart from one another."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.http.adaptation import Upload, check_upload, read_upload
from service.http.forms import Part
from service.http.problems import Problem
from service.settings import Settings
from service.store.material import Material, digest_of, pack_selection, summary_of, unpack_selection
from tests.service.conftest import encode
from training.manifest import Manifest, read_manifest

PICTURES = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8) for seed in range(6)]
FILES = [encode(picture) for picture in PICTURES]


@pytest.fixture(scope="module")
def manifest(tiny_base_set: Path) -> Manifest:
    return read_manifest(tiny_base_set)


@pytest.fixture
def given(manifest: Manifest) -> Callable[..., Material]:
    """The material of labelled and unlabelled pictures, by position."""

    def build(labelled: list[int], unlabelled: list[int], **limits: int) -> Material:
        upload = Upload([FILES[i] for i in labelled], [0] * len(labelled), None, [FILES[i] for i in unlabelled])
        return check_upload(upload, manifest, Settings(**limits))

    return build


def digest(material: Material) -> str:
    return digest_of(material.selected, material.unlabelled_hashes)


def test_repeats_count_once_and_labelled_images_first(given: Callable[..., Material], manifest: Manifest) -> None:
    material = given([0, 1, 1], [1, 2, 2, 3])
    found = summary_of(material.selected, manifest.class_names, len(material.unlabelled_hashes))
    assert (found.n, found.unlabelled, found.per_class) == (2, 2, {"cat": 2})
    assert digest(material) == digest(given([0, 1], [2, 3]))
    assert given([0], [0]).unlabelled is None


def test_selection_is_unpacked_as_it_was_packed(given: Callable[..., Material]) -> None:
    for material in (given([0, 1, 2], [3]), given([], [3])):
        assert unpack_selection(pack_selection(material.selected)) == material.selected


def test_digest_is_that_of_the_sets_of_images(given: Callable[..., Material]) -> None:
    known = digest(given([0, 1], [2, 3]))
    assert digest(given([1, 0], [3, 2])) == known
    others = [given([0, 1], []), given([0, 1], [2]), given([0], [1, 2, 3]), given([], [0, 1, 2, 3])]
    assert len({known, *map(digest, others)}) == 5


def test_pixels_of_all_images_are_limited_together(given: Callable[..., Material]) -> None:
    assert len(given([0, 1], [2], max_request_pixels=3 * 256).unlabelled_hashes) == 1
    for labelled, unlabelled in (([0, 1], [2, 3]), ([], [0, 1, 2, 3]), ([0, 1, 2, 3], [])):
        with pytest.raises(Problem, match="at most 768 pixels") as caught:
            given(labelled, unlabelled, max_request_pixels=3 * 256)
        assert caught.value.status == 413


def test_unlabelled_images_of_any_size_are_resized(manifest: Manifest) -> None:
    material = check_upload(Upload([], [], None, [encode(PICTURES[0].repeat(3, axis=0))]), manifest, Settings())
    assert material.unlabelled is not None
    assert material.unlabelled.shape == (1, 16, 16, 3)


def parts(**found: int) -> list[Part]:
    data = {"labels": json.dumps([0] * found.get("images", 0)).encode()}
    return [Part(name, data.get(name, b"x")) for name, count in found.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("found", "is_labelled"),
    [
        ({"unlabelled": 3}, False),
        ({"images": 1, "labels": 1, "unlabelled": 2}, True),
        ({"archive": 1, "unlabelled": 2}, True),
    ],
)
def test_parts_are_sorted(found: dict[str, int], is_labelled: bool) -> None:
    upload = read_upload(parts(**found), Settings(max_images=3))
    assert (upload.is_labelled, len(upload.unlabelled)) == (is_labelled, found["unlabelled"])


@pytest.mark.parametrize(
    ("found", "status", "field"),
    [
        ({"images": 2, "labels": 1, "unlabelled": 2}, 413, None),
        ({"unlabelled": 4}, 413, None),
        ({"archive": 1, "unlabelled": 4}, 413, None),
        ({"images": 1, "unlabelled": 1}, 422, "labels"),
        ({"labels": 1, "unlabelled": 1}, 422, "images"),
        ({"unlabeled": 1}, 422, "unlabeled"),
        ({}, 422, "images"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(found: dict[str, int], status: int, field: str | None) -> None:
    with pytest.raises(Problem) as caught:
        read_upload(parts(**found), Settings(max_images=3))
    assert caught.value.status == status
    assert [error.field for error in caught.value.errors] == ([field] if field else [])


def test_request_without_parts_is_one_only_where_kept_images_may_be_meant() -> None:
    assert read_upload([], Settings(), may_be_empty=True) == Upload([], [], None, [])
    with pytest.raises(Problem):
        read_upload([], Settings())
    with pytest.raises(Problem):
        read_upload(parts(labels=1), Settings(), may_be_empty=True)
