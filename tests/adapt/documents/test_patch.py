"""Patches: what they hold, where they lie, and what refuses them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from pydantic import ValidationError

from adapt.documents.patch import Patch, PatchError, make_patch
from adapt.documents.soup import BnMode, SoupError, default_soup, make_soup, patch_path, read_soup, write_soup
from adapt.networks.prepared import PreparedBase
from training.bases import BaseSet

TENSORS = {"head.weight": np.ones((2, 3), dtype=np.float32), "bn.running_mean": np.zeros(3, dtype=np.float32)}


def test_a_soup_comes_back_from_disk_with_its_patch(base: BaseSet, tmp_path: Path) -> None:
    patch = make_patch(TENSORS, recalibrated=20, rungs=["statistics", "head"])
    soup = make_soup(base.manifest, base.manifest.default_coefficients, bn_mode="raw", patch=patch)
    write_soup(tmp_path / "soup.json", soup)
    found = read_soup(tmp_path / "soup.json")
    assert found == soup
    assert found.patch is not None
    assert {key: array.tolist() for key, array in found.patch.tensors().items()} == {
        key: array.tolist() for key, array in TENSORS.items()
    }


def test_writing_a_soup_without_patch_removes_the_old_one(base: BaseSet, tmp_path: Path) -> None:
    path = tmp_path / "site.json"
    write_soup(
        path, make_soup(base.manifest, base.manifest.default_coefficients, patch=make_patch(TENSORS, rungs=["head"]))
    )
    assert patch_path(path).exists()
    write_soup(path, default_soup(base.manifest))
    assert not patch_path(path).exists()
    assert read_soup(path).patch is None


@pytest.mark.parametrize("damage", [None, b"", b"other"])
def test_a_missing_or_other_patch_is_named(base: BaseSet, tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "soup.json"
    write_soup(
        path, make_soup(base.manifest, base.manifest.default_coefficients, patch=make_patch(TENSORS, rungs=["head"]))
    )
    if damage is None:
        patch_path(path).unlink()
    else:
        patch_path(path).write_bytes(damage)
    with pytest.raises(SoupError, match=r"patch"):
        read_soup(path)


def test_the_same_tensors_have_the_same_digest_in_any_order() -> None:
    backwards = dict(reversed(TENSORS.items()))
    assert make_patch(TENSORS, rungs=["head"]).digest == make_patch(backwards, rungs=["head"]).digest


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"head.weight": np.asarray([np.nan], dtype=np.float32)},
        {"head.weight": np.asarray([np.inf], dtype=np.float32)},
    ],
)
def test_unusable_tensors_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(PatchError, match="patch"):
        make_patch(tensors, rungs=["head"])


def test_tensors_of_another_dtype_are_refused() -> None:
    data = safetensors.numpy.save({"head.weight": np.ones(2)})
    patch = Patch(digest=hashlib.sha256(data).hexdigest(), rungs=("head",), data=data)
    with pytest.raises(PatchError, match="float32"):
        patch.tensors()


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.asarray([1.0, 0.25, 65504.0], dtype=np.float32), np.float16),
        (np.asarray([1.0, 0.1], dtype=np.float32), np.float32),
        (np.asarray([65536.0], dtype=np.float32), np.float32),
        (np.asarray([1e-9], dtype=np.float32), np.float32),
    ],
)
def test_what_half_precision_holds_exactly_is_stored_so(array: np.ndarray, dtype: type) -> None:
    patch = make_patch({"layer.weight": array}, rungs=["site"])
    assert safetensors.numpy.load(patch.data)["layer.weight"].dtype == dtype
    found = patch.tensors()["layer.weight"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


def test_a_patch_changes_something(base: BaseSet) -> None:
    with pytest.raises(ValidationError, match="rungs"):
        make_patch(TENSORS, rungs=[])
    with pytest.raises(ValidationError, match="SHA-256"):
        Patch(digest="0" * 64, rungs=("head",), data=b"")
    with pytest.raises(ValidationError, match="bn_mode raw"):
        make_soup(
            base.manifest,
            base.manifest.default_coefficients,
            patch=make_patch(TENSORS, recalibrated=1, rungs=["statistics"]),
        )


def test_patched_tensors_take_the_place_of_mixed_ones_until_the_next_soup(base: BaseSet) -> None:
    prepared = PreparedBase(base)
    modes: tuple[BnMode, ...] = ("folded", "raw")
    for mode in modes:
        model = prepared.model(mode)
        head = model.net.get_classifier()  # type: ignore[operator]
        coefficients = base.manifest.vector(base.manifest.default_coefficients)
        model.set(coefficients)
        mixed = head.weight.clone()
        wanted = np.full(tuple(mixed.shape), 0.5, dtype=np.float32)
        model.set(coefficients, {"head.weight": wanted})
        torch.testing.assert_close(head.weight, torch.from_numpy(wanted))
        model.set(coefficients)
        torch.testing.assert_close(head.weight, mixed)
        with pytest.raises(PatchError, match=r"does not fit"):
            model.set(coefficients, {"head.weight": wanted[:1]})
        with pytest.raises(PatchError, match=r"no such tensor"):
            model.set(coefficients, {"nowhere": wanted})
