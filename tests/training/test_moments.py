import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from pydantic import JsonValue

from training.bases import add_moments, load_base_set, rewrite_manifest
from training.cli import run
from training.commands import COMMANDS
from training.documents import file_sha256
from training.images import to_input
from training.manifest import Architecture, BaseSetError, InputSpec, read_manifest
from training.models import Classifier, create_classifier
from training.moments import Moments, RunningMoments, channel_moments, channels_first, measure_moments, movable_layers

INPUT = InputSpec(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def classifier_of(name: str, kwargs: dict[str, JsonValue]) -> Classifier:
    torch.manual_seed(0)
    return create_classifier(Architecture(name=name, kwargs=kwargs), INPUT, 3).eval()


def pictures(n: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(5, 3, 4, 4), (7, 3), (1, 3, 2, 2), (1, 3), (1, 3, 1, 1)])
def test_moments_are_those_of_the_channels(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 100
    mean, var = channel_moments(x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x)
    expected_var, expected_mean = torch.var_mean(x.double(), dim=[0, *range(2, x.dim())], correction=0)
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-4, atol=1e-5)


def test_moments_of_batches_are_those_of_the_whole() -> None:
    x = torch.randn(30, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 + 5
    running = RunningMoments()
    for batch in x.split([7, 20, 3]):
        running.add(channel_moments(batch), len(batch))
    for found, expected in zip(running.total(), channel_moments(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="at least one batch"):
        RunningMoments().total()


CONVNEXT: dict[str, JsonValue] = {"patch_size": 2, "dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
VIT: dict[str, JsonValue] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "kwargs", "first", "count"),
    [
        ("convnext_atto", CONVNEXT | {"conv_mlp": True}, "stem.0", 1 + 1 + 4 + 4 + 1),
        ("convnext_atto", CONVNEXT | {"conv_mlp": False}, "stem.0", 1 + 1 + 4 + 4 + 1),
        ("vit_tiny_patch16_224", VIT, "patch_embed.proj", 1 + 2 * 2 + 1),
    ],
)
def test_norms_and_the_convolutions_before_them_are_movable(
    name: str, kwargs: dict[str, JsonValue], first: str, count: int
) -> None:
    classifier = classifier_of(name, kwargs)
    layers = movable_layers(classifier.net)
    assert (next(iter(layers)), len(layers)) == (first, count)
    x = torch.from_numpy(to_input(pictures(6)))
    for layer in layers.values():
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_hook(lambda module, _, output, seen=seen: seen.append(output.clone()))
        with torch.no_grad():
            classifier(x)
            # Scaling weight and bias scales the channels that `channels_first` puts in dimension 1, each by its own.
            scale = torch.linspace(0.5, 2, layer.get_parameter("bias").numel())
            for part in ("weight", "bias"):
                tensor = layer.get_parameter(part).data
                tensor.mul_(scale.view(-1, *[1] * (tensor.dim() - 1)))
            classifier(x)
            for part in ("weight", "bias"):
                tensor = layer.get_parameter(part).data
                tensor.div_(scale.view(-1, *[1] * (tensor.dim() - 1)))
        handle.remove()
        before, after = (channels_first(layer, output) for output in seen)
        shape = (1, -1, *[1] * (before.dim() - 2))
        torch.testing.assert_close(after, before * scale.view(shape), rtol=1e-3, atol=1e-5)


def test_a_network_without_normalisation_has_nothing_to_restore() -> None:
    assert not movable_layers(classifier_of("test_nfnet", {}).net)  # its gates have convolutions with a bias


def test_batchnorm_has_its_own_statistics_and_large_layers_stay() -> None:
    assert not movable_layers(classifier_of("resnet10t", {}).net)
    assert measure_moments(classifier_of("resnet10t", {}), pictures(2)) == {}
    net = classifier_of("convnext_atto", CONVNEXT).net
    few = movable_layers(net, max_weights=16)
    assert 0 < len(few) < len(movable_layers(net))
    assert all(layer.get_parameter("weight").numel() <= 16 for layer in few.values())


def test_measured_moments_are_those_of_the_outputs() -> None:
    classifier, images = classifier_of("convnext_atto", CONVNEXT), pictures(450)
    moments = measure_moments(classifier, images)
    with torch.no_grad():
        stem = classifier.net.get_submodule("stem.0")
        x = torch.from_numpy(to_input(images))
        output = stem((x - classifier.mean) / classifier.std)
    torch.testing.assert_close(moments["stem.0"].mean, output.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moments["stem.0"].var, output.var(dim=(0, 2, 3), correction=0), rtol=1e-3, atol=1e-4)
    assert not any(module._forward_hooks for module in classifier.net.modules())


@pytest.fixture
def folder(tiny_ln_base_set: Path, tmp_path: Path) -> Path:
    """A copy of the LayerNorm base set, with moments added by the command, beside the images it used."""
    copy = tmp_path / "tiny-ln"
    shutil.copytree(tiny_ln_base_set, copy)
    for label in read_manifest(copy).class_names:
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng([number, len(label)]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    assert (
        run(
            COMMANDS,
            prog="training",
            description="",
            args=["moments", str(copy), "--data", str(tmp_path / "data"), "--json"],
        )
        == 0
    )
    return copy


def test_the_command_gives_an_existing_base_set_moments(folder: Path, tiny_ln_base_set: Path) -> None:
    base, before = load_base_set(folder), load_base_set(tiny_ln_base_set)
    assert before.moments is None
    assert base.moments is not None
    assert base.manifest.moments is not None
    assert base.manifest.moments.n == 8 * len(base.manifest.class_names)
    assert base.manifest.digest != before.manifest.digest
    assert list(base.moments) == list(base.manifest.ingredient_names)
    layers = movable_layers(base.model().net)
    for of in base.moments.values():
        assert list(of) == list(layers)
        assert all(isinstance(moments, Moments) and (moments.var >= 0).all() for moments in of.values())
    some = next(iter(layers))
    assert not torch.equal(base.moments["linf"][some].mean, base.moments["l1"][some].mean)


def test_a_base_set_without_moments_says_nothing_of_them(tiny_base_set: Path) -> None:
    assert '"moments"' not in (tiny_base_set / "manifest.json").read_text()


def test_a_base_set_with_batchnorm_is_refused(
    tiny_base_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    label = read_manifest(tiny_base_set).class_names[0]
    (tmp_path / label).mkdir()
    Image.fromarray(pictures(1, 16)[0]).save(tmp_path / label / "0.png")
    assert (
        run(COMMANDS, prog="training", description="", args=["moments", str(tiny_base_set), "--data", str(tmp_path)])
        == 2
    )
    assert "has BatchNorm" in capsys.readouterr().err


def test_other_moments_take_over_in_one_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base_set(folder)
    assert base.moments is not None
    assert base.manifest.moments is not None
    others = {
        name: {layer: part._replace(mean=part.mean + 1) for layer, part in layers.items()}
        for name, layers in base.moments.items()
    }
    with monkeypatch.context() as patched:
        patched.setattr("training.bases.rewrite_manifest", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            add_moments(base, others, base.manifest.moments)
    assert load_base_set(folder).manifest == base.manifest  # whole, wherever the process ended
    for _ in range(2):
        manifest = add_moments(load_base_set(folder), others, base.manifest.moments)
        assert manifest.moments is not None
        assert [path.name for path in folder.glob("*moments*")] == [manifest.moments.file]
    found = load_base_set(folder).moments
    assert found is not None
    layer = next(iter(others["linf"]))
    assert torch.equal(found["linf"][layer].mean, others["linf"][layer].mean)


@pytest.mark.parametrize("kind", ["edited", "missing", "nan", "negative", "layer", "size"])
def test_damaged_moments_are_named(folder: Path, kind: str) -> None:
    path = folder / "moments.safetensors"
    tensors = safetensors.torch.load_file(path)
    key = next(key for key in tensors if key.endswith(".var"))
    expected = {
        "edited": "sha256",
        "missing": "found no such file",
        "nan": "finite",
        "negative": "negative",
        "layer": "not expected",
        "size": "expected float32",
    }[kind]
    if kind == "missing":
        path.unlink()
    else:
        if kind == "nan":
            tensors[key][0] = torch.nan
        elif kind == "negative":
            tensors[key][0] = -1
        elif kind == "layer":
            tensors["linf/nowhere.mean"] = torch.zeros(3)
        elif kind == "size":
            tensors[key] = torch.zeros(1)
        safetensors.torch.save_file(tensors if kind != "edited" else {key: tensors[key]}, path)
        if kind != "edited":
            _sign(folder)
    with pytest.raises(BaseSetError, match=expected):
        load_base_set(folder)


def _sign(folder: Path) -> None:
    manifest = read_manifest(folder, check_files=False)
    assert manifest.moments is not None
    moments = manifest.moments.model_copy(update={"sha256": file_sha256(folder / manifest.moments.file)})
    rewrite_manifest(folder, manifest.model_copy(update={"moments": moments}))
