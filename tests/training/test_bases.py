from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.conftest import INPUT, LAYERNORM_NET
from training.bases import StateDictMismatch, check_like, load_base_set, rewrite_manifest, save_base_set
from training.documents import file_sha256
from training.manifest import Architecture, BaseSetError
from training.models import create_classifier


def test_a_loaded_ingredient_gives_the_weights_that_were_saved(tiny_base_set: Path) -> None:
    base = load_base_set(tiny_base_set)
    for name, state_dict in base.state_dicts.items():
        stored = safetensors.torch.load_file(tiny_base_set / f"{name}.safetensors")
        assert all(torch.equal(tensor, stored[key]) for key, tensor in base.model(name).net.state_dict().items())
        assert state_dict.keys() == stored.keys()
    assert not base.model("l1").training


def test_an_unknown_ingredient_is_named(tiny_base_set: Path) -> None:
    with pytest.raises(ValueError, match=r"no ingredient 'l7', only \['linf', 'nominal', 'l2', 'l1'\]"):
        load_base_set(tiny_base_set).model("l7")


def test_saving_never_overwrites(tiny_base_set: Path) -> None:
    base = load_base_set(tiny_base_set)
    with pytest.raises(FileExistsError, match="already exists"):
        save_base_set(tiny_base_set, base.manifest, base.state_dicts)


def test_a_failed_save_leaves_nothing_behind(tiny_base_set: Path, tmp_path: Path) -> None:
    base = load_base_set(tiny_base_set)
    broken = {name: base.state_dicts[name] for name in ("linf", "nominal")}
    with pytest.raises(KeyError):
        save_base_set(tmp_path / "new", base.manifest, broken)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_network_are_refused(base_set_factory: Callable[..., Path], tmp_path: Path) -> None:
    folder = base_set_factory(tmp_path / "base")
    other = base_set_factory(tmp_path / "other", architecture=LAYERNORM_NET)
    (folder / "l1.safetensors").write_bytes((other / "l1.safetensors").read_bytes())
    resign(folder, "l1")
    with pytest.raises(BaseSetError, match=r"l1\.safetensors: expected the weights of saucier_resnet: .* and \d+ more"):
        load_base_set(folder)


def test_nan_weights_are_refused(base_set_factory: Callable[..., Path], tmp_path: Path) -> None:
    folder = base_set_factory(tmp_path / "base")
    tensors = safetensors.torch.load_file(folder / "l2.safetensors")
    tensors["head.bias"][1] = float("nan")
    safetensors.torch.save_file(tensors, folder / "l2.safetensors")
    resign(folder, "l2")
    with pytest.raises(BaseSetError, match=r"found NaN or infinity in head\.bias"):
        load_base_set(folder)


def resign(folder: Path, name: str) -> None:
    """Make the manifest agree with a replaced ingredient file."""
    from training.manifest import read_manifest

    manifest = read_manifest(folder, check_files=False)
    ingredients = tuple(
        ingredient.model_copy(update={"sha256": file_sha256(folder / ingredient.file)})
        for ingredient in manifest.ingredients
    )
    assert name in manifest.ingredient_names
    rewrite_manifest(folder, manifest.model_copy(update={"ingredients": ingredients}))


def test_a_mismatch_names_the_first_five() -> None:
    ours = {f"layer{index}": torch.zeros(index + 1) for index in range(8)}
    theirs = {key: torch.zeros(9) for key in ours}
    with pytest.raises(StateDictMismatch, match=r"layer0 is float32\[9\], expected float32\[1\].* and 3 more"):
        check_like(ours, theirs)
    check_like(ours, dict(reversed(ours.items())))


@pytest.mark.parametrize("name", ["saucier_resnet", "resnet18", "vit_tiny_patch16_224"])
def test_any_timm_network_takes_images_in_unit_range(name: str) -> None:
    spec = INPUT.model_copy(update={"height": 32, "width": 32})
    classifier = create_classifier(Architecture(name=name), spec, 5)
    assert classifier(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert not any(key.startswith(("mean", "std")) for key in classifier.net.state_dict())


def test_normalisation_happens_inside(tiny_base_set: Path) -> None:
    classifier = load_base_set(tiny_base_set).model()
    images = torch.rand(3, 3, 16, 16)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (INPUT.mean, INPUT.std))
    assert torch.equal(classifier(images), classifier.net((images - mean) / std))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture(name="resnet999"), "timm knows no model"),
        (Architecture(name="saucier_resnet", kwargs={"depth": 3}), "unexpected keyword argument 'depth'"),
        (Architecture(name="saucier_resnet", kwargs={"widths": [8], "depths": [1, 1]}), "one width and one depth"),
    ],
)
def test_an_impossible_architecture_is_explained(architecture: Architecture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_classifier(architecture, INPUT, 3)


def test_the_small_network_has_the_documented_size() -> None:
    spec = INPUT.model_copy(update={"height": 32, "width": 32})
    classifier = create_classifier(Architecture(name="saucier_resnet"), spec, 10)
    assert sum(parameter.numel() for parameter in classifier.parameters()) == 309_322
