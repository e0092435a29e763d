import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from training.bases import load_base_set, rewrite_manifest
from training.manifest import Architecture, BaseSetError, ThreatModel, check_coefficients, check_mixable, read_manifest


@pytest.fixture
def base(tiny_base_set: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_base_set, tmp_path / "tiny"))


def test_fractions_are_accepted_and_pixel_scale_mistakes_explained() -> None:
    assert ThreatModel(norm="Linf", eps="8/255").eps == 8 / 255
    with pytest.raises(ValidationError, match=r"got 8 \(did you mean 8/255\?\)"):
        ThreatModel(norm="Linf", eps=8)
    for eps in (0, -1, math.nan, math.inf, "8/0", "eight"):
        with pytest.raises(ValidationError):
            ThreatModel(norm="L2", eps=eps)
    with pytest.raises(ValidationError, match=r"Linf.*L2.*L1"):
        ThreatModel(norm="L3", eps=0.1)
    for spelled, meant in (("linf", "Linf"), ("inf", "Linf"), ("l2", "L2"), (1, "L1")):
        with pytest.raises(ValueError, match=rf"expected one of Linf, L2, L1, .*\(did you mean {meant}\?\)"):
            ThreatModel.model_validate({"norm": spelled, "eps": 0.1})


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ({"a": 1.0}, "one coefficient for each"),
        ({"a": 1.0, "b": 0.0, "c": 0.0}, "one coefficient for each"),
        ({"a": math.nan, "b": 1.0}, "finite"),
        ({"a": math.inf, "b": -math.inf}, "finite"),
        ({"a": 0.5, "b": 0.5 + 2e-6}, "sum to 1"),
    ],
)
def test_bad_coefficients_are_refused(coefficients: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_coefficients(coefficients, ("a", "b"))


def test_sums_within_the_tolerance_pass() -> None:
    check_coefficients({"a": 1.5, "b": -0.5 + 9e-7}, ("a", "b"))


def test_architecture_cannot_make_timm_read_other_files() -> None:
    with pytest.raises(ValidationError, match="checkpoint_path"):
        Architecture(name="resnet18", kwargs={"checkpoint_path": "/etc/passwd"})
    with pytest.raises(ValidationError):
        Architecture(name="hf-hub:someone/something")


def edit(base: Path, **changes: object) -> None:
    path = base / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "other"}, "edited after it was written"),
        ({"format_version": 2}, "expected format_version 1, got 2"),
        ({"format_version": None}, "expected format_version 1, got None"),
        ({"class_names": ["cat", "cat", "dog"]}, "appear more than once"),
        ({"surprise": 1}, "surprise"),
        ({"default_coefficients": {"linf": 1.0}}, "one coefficient for each"),
    ],
)
def test_an_edited_manifest_is_refused_in_one_line(base: Path, changes: dict[str, object], message: str) -> None:
    edit(base, **changes)
    with pytest.raises(BaseSetError, match=message) as caught:
        read_manifest(base)
    assert str(base / "manifest.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff"])
def test_a_manifest_that_is_no_json_object_is_refused(base: Path, text: str) -> None:
    (base / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BaseSetError, match=r"manifest\.json"):
        read_manifest(base)


def test_a_manifest_whose_files_collide_is_refused(base: Path) -> None:
    manifest = read_manifest(base)
    first, second, *rest = manifest.ingredients
    twice = first.model_copy(update={"file": second.file})
    with pytest.raises(ValidationError, match=r"files: \['nominal.safetensors'\] appear more than once"):
        rewrite_manifest(base, manifest.model_copy(update={"ingredients": (twice, second, *rest)}))
    for change in ({"file": "moments.safetensors"}, {"name": "moments-0123abcd"}):
        taken = first.model_copy(update=change)
        with pytest.raises(ValidationError, match="is for its moments: choose another name"):
            rewrite_manifest(base, manifest.model_copy(update={"ingredients": (taken, second, *rest)}))


def test_missing_and_corrupt_files_are_named(base: Path) -> None:
    file = base / "l2.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BaseSetError, match=r"l2\.safetensors: expected sha256 [0-9a-f]{12}, got [0-9a-f]{12}"):
        load_base_set(base)
    file.unlink()
    with pytest.raises(BaseSetError, match=r"l2\.safetensors: expected an ingredient .* found no such file"):
        load_base_set(base)
    (base / "manifest.json").unlink()
    with pytest.raises(BaseSetError, match=r"manifest\.json: expected the manifest .* found no such file"):
        load_base_set(base)


def test_rewriting_the_manifest_signs_it_again(base: Path) -> None:
    before = read_manifest(base)
    coefficients = dict.fromkeys(before.ingredient_names, 0.25)
    written = rewrite_manifest(base, before.model_copy(update={"default_coefficients": coefficients}))
    assert read_manifest(base) == written
    assert written.digest != before.digest
    with pytest.raises(ValidationError, match="sum to 1"):
        rewrite_manifest(base, before.model_copy(update={"default_coefficients": dict.fromkeys(coefficients, 1.0)}))
    assert read_manifest(base) == written


def test_one_ingredient_is_a_base_set_but_not_one_to_mix(
    base: Path, base_set_factory: Callable[..., Path], tmp_path: Path
) -> None:
    single = load_base_set(base_set_factory(tmp_path / "single", names=("linf",))).manifest
    assert single.default_coefficients == {"linf": 1.0}
    with pytest.raises(
        BaseSetError, match=r"at least 2 ingredients to mix, it has only 'linf'; train others with `saucier train"
    ):
        check_mixable(single)
    check_mixable(read_manifest(base))
    with pytest.raises(ValidationError, match="ingredients"):
        rewrite_manifest(base, single.model_copy(update={"ingredients": ()}))
