import argparse
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from tests.conftest import BATCHNORM_NET, CLASSES, INPUT, LAYERNORM_NET, shake
from training.bases import load_base_set
from training.cli import run
from training.commands import COMMANDS
from training.documents import file_sha256
from training.foreign import CheckpointError, load_weights
from training.images import to_input
from training.manifest import Architecture, parse_threat
from training.models import Classifier, create_classifier

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
StateDict = dict[str, Tensor]


def make_classifier(architecture: Architecture = BATCHNORM_NET, num_classes: int = 3) -> Classifier:
    torch.manual_seed(1)
    spec = INPUT.model_copy(update={"mean": MEAN, "std": STD})
    classifier = create_classifier(architecture, spec, num_classes)
    shake(classifier, seed=7, scale=0.3)
    return classifier


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return make_classifier()


@pytest.fixture(scope="module")
def weights(classifier: Classifier) -> StateDict:
    return classifier.net.state_dict()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for index in range(12):
        path = root / CLASSES[index % 3] / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return root


def call(checkpoint: Path, data: Path, *more: str, arch: Architecture = BATCHNORM_NET) -> int:
    args = ["import", checkpoint, "--arch", arch.name, "--arch-kwargs", json.dumps(arch.kwargs)]
    args += ["--name", "linf", "--threat-model", "Linf:8/255", "--input-size", "16"]
    args += ["--data", data, "--out", checkpoint.parent / "base", *more]
    return run(COMMANDS, prog="training", description="", args=[str(arg) for arg in args])


def failure(capsys: pytest.CaptureFixture[str], checkpoint: Path, data: Path, *more: str, **options: Any) -> str:
    assert call(checkpoint, data, *more, **options) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if not line.startswith("INFO")]
    assert said.out == ""
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert not (checkpoint.parent / "base").exists()
    return errors[0]


def prefixed(prefix: str, state: StateDict) -> StateDict:
    return {prefix + key: tensor for key, tensor in state.items()}


def channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def robustness_library(state: StateDict) -> Any:
    """As MadryLab's: the network twice, beside a normaliser and inside an attacker."""
    entries = prefixed("module.model.", state) | prefixed("module.attacker.model.", state)
    for owner in ("normalizer", "attacker.normalize"):
        entries |= {
            f"module.{owner}.new_mean": channels(MEAN)[0],
            f"module.{owner}.new_std": channels(STD)[0],
        }
    return {"model": entries, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 3}


def averaged(state: StateDict) -> Any:
    return {"ema": prefixed("module.", state) | {"n_averaged": torch.tensor(5)}, "epoch": 1}


def without_counters(state: StateDict) -> Any:
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def halved(state: StateDict) -> Any:
    return {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


PLAIN: dict[str, tuple[Callable[[StateDict], Any], str]] = {
    "bare": (lambda state: state, ""),
    "state_dict": (lambda state: {"state_dict": state, "epoch": 9, "best": torch.tensor(0.5)}, "state_dict/"),
    "model": (lambda state: {"model": state, "ema": None}, "model/"),
    "model_state_dict": (lambda state: {"model_state_dict": state}, "model_state_dict/"),
    "net": (lambda state: {"net": state, "acc": 93.1}, "net/"),
    "twice": (lambda state: {"model_ema": {"state_dict": state}}, "model_ema/state_dict/"),
    "ema": (averaged, "ema/module."),
    "DataParallel": (lambda state: prefixed("module.", state), "module."),
    "compiled": (lambda state: prefixed("_orig_mod.", state), "_orig_mod."),
    "lightning": (lambda state: {"state_dict": prefixed("model.", state)}, "state_dict/model."),
    "several": (lambda state: prefixed("module._orig_mod.net.", state), "module._orig_mod.net."),
    "transformers' TimmWrapper": (lambda state: prefixed("timm_model.", state), "timm_model."),
    "class weights of a loss, by Lightning": (
        lambda state: {"state_dict": prefixed("model.", state) | {"criterion.weight": torch.ones(3)}},
        "state_dict/model.",
    ),
    "class weights of a loss, beside": (lambda state: state | {"loss_fn.weight": torch.ones(3)}, ""),
    "without counters": (without_counters, ""),
}
WITH_NORMALISATION: dict[str, tuple[Callable[[StateDict], Any], str]] = {
    "sequential": (lambda state: {"0.mean": channels(MEAN), "0.std": channels(STD), **prefixed("1.", state)}, "1."),
    "robustness library": (robustness_library, "model/module.model."),
    "mu and sigma": (
        lambda state: {"mu": channels(MEAN), "sigma": channels(STD), **prefixed("model.", state)},
        "model.",
    ),
    "beside": (lambda state: {"mean": torch.tensor(MEAN), "std": torch.tensor(STD), **state}, ""),
    "normalize": (
        lambda state: {
            "normalize.mean": channels(MEAN).double(),
            "normalize.std": channels(STD).double(),
            **prefixed("model.", state),
        },
        "model.",
    ),
}
GIVEN = ("--mean", *map(str, MEAN), "--std", *map(str, STD))


@pytest.mark.parametrize("style", [*PLAIN, *WITH_NORMALISATION])
def test_every_wrapper_style_gives_the_same_network(
    style: str, classifier: Classifier, weights: StateDict, data: Path, tmp_path: Path
) -> None:
    wrap, path = (PLAIN | WITH_NORMALISATION)[style]
    torch.save(wrap(weights), tmp_path / "checkpoint.pt")
    given = () if style in WITH_NORMALISATION else GIVEN
    assert call(tmp_path / "checkpoint.pt", data, *given) == 0
    base = load_base_set(tmp_path / "base")
    assert base.manifest.input.mean == MEAN
    assert base.manifest.input.std == STD
    assert base.manifest.provenance.recipe["imported"]["path"] == path
    for key, tensor in base.state_dicts["linf"].items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, weights[key]), key
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(base.model()(images), classifier(images))


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "ckpt"])
def test_other_kinds_of_file(suffix: str, weights: StateDict, data: Path, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(prefixed("module.", weights), path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=suffix == "pth")
    assert call(path, data, *GIVEN) == 0
    assert torch.equal(load_base_set(tmp_path / "base").state_dicts["linf"]["head.weight"], weights["head.weight"])


def test_the_manifest_says_what_was_imported_and_measured(
    classifier: Classifier, weights: StateDict, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(weights, tmp_path / "robust.pt")
    more = ["--evaluate", "--n", "6", "--steps", "3", "--threat-models", "Linf:4/255", "L2:2", "--json"]
    more += ["--source", "a paper", "--license", "MIT", "--base-set", "mine", *GIVEN]
    assert call(tmp_path / "robust.pt", data, *more) == 0
    manifest = load_base_set(tmp_path / "base").manifest
    assert json.loads(capsys.readouterr().out) == manifest.model_dump(mode="json")
    assert manifest.name == "mine"
    assert manifest.class_names == CLASSES
    assert manifest.provenance.recipe["imported"] == {
        "file": "robust.pt",
        "sha256": file_sha256(tmp_path / "robust.pt"),
        "path": "",
        "source": "a paper",
        "license": "MIT",
    }
    assert str(tmp_path) not in manifest.model_dump_json()
    (ingredient,) = manifest.ingredients
    assert (ingredient.threat_model, ingredient.objective) == (parse_threat("Linf:8/255"), "adversarial")
    assert ingredient.parent is None
    assert {name: metric.n for name, metric in ingredient.metrics.items()} == {
        "clean": 12,
        "Linf": 6,
        "L2": 6,
        "union": 6,
    }
    assert ingredient.metrics["Linf"].threat_model == parse_threat("Linf:4/255")
    correct = 0
    for label, name in enumerate(CLASSES):
        images = np.stack([np.asarray(Image.open(path)) for path in sorted((data / name).iterdir())])
        with torch.no_grad():
            correct += int((classifier(torch.from_numpy(to_input(images))).argmax(1) == label).sum())
    assert ingredient.metrics["clean"].value == pytest.approx(correct / 12)


def test_few_test_images_are_balanced(weights: StateDict, data: Path, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "net.pt")
    assert call(tmp_path / "net.pt", data, *GIVEN, "--num-images", "6") == 0
    assert load_base_set(tmp_path / "base").manifest.ingredients[0].metrics["clean"].n == 6


def test_half_precision_is_widened(weights: StateDict, tmp_path: Path) -> None:
    torch.save(halved(weights), tmp_path / "half.pt")
    found = load_weights(tmp_path / "half.pt", make_classifier().net).state_dict
    assert found["head.weight"].dtype == torch.float32
    assert torch.equal(found["head.weight"], weights["head.weight"].half().float())


def test_transformers_are_imported_too(data: Path, tmp_path: Path) -> None:
    state = make_classifier(LAYERNORM_NET).net.state_dict()
    torch.save({"model": prefixed("module.", state)}, tmp_path / "vit.pt")
    assert call(tmp_path / "vit.pt", data, *GIVEN, "--threat-model", "none", arch=LAYERNORM_NET) == 0
    base = load_base_set(tmp_path / "base")
    assert base.manifest.ingredients[0].threat_model is None
    assert base.manifest.ingredients[0].objective == "nominal"
    assert torch.equal(base.state_dicts["linf"]["pos_embed"], state["pos_embed"])


def test_the_block_that_wide_resnets_of_robustbench_never_call_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TRADES' network makes a `sub_block1` like its first group; about 25 checkpoints of RobustBench hold one."""
    wide = make_classifier(Architecture(name="saucier_wide_resnet", kwargs={"depth": 10, "widen_factor": 1})).net
    weights = wide.state_dict()
    group = {name: tensor for name, tensor in weights.items() if name.startswith("block1.")}
    never_called = {f"sub_{name}": tensor + 1 for name, tensor in group.items()}
    torch.save(prefixed("module.", weights | never_called), tmp_path / "wrn.pt")
    with caplog.at_level("INFO"):
        fitted = load_weights(tmp_path / "wrn.pt", wide)
    assert caplog.messages == ["left out sub_block1: no part of the network"]
    assert all(torch.equal(fitted.state_dict[name], tensor) for name, tensor in weights.items())
    torch.save(weights | {"block4.weight": torch.ones(3)}, tmp_path / "wrn.pt")
    with pytest.raises(CheckpointError, match=r"block4\.weight is not expected"):
        load_weights(tmp_path / "wrn.pt", wide)


def old_swin(state: StateDict) -> StateDict:
    """Swin as its authors and timm before 0.9 saved it: downsampling ends a stage, masks and indices are saved too."""
    renamed = {}
    for name, tensor in state.items():
        stage = re.sub(r"^layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
        renamed[stage.replace("head.fc.", "head.")] = tensor
    index = torch.zeros(16, 16, dtype=torch.int64)
    return renamed | {
        "layers.0.blocks.0.attn.relative_position_index": index,
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16),
    }


SWIN = Architecture(
    name="swin_tiny_patch4_window7_224",
    kwargs={"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
)


@pytest.mark.parametrize("wrap", [dict, halved, lambda state: prefixed("module.", state)], ids=["", "half", "module"])
def test_names_of_earlier_versions_are_known_to_timm(wrap: Callable[[StateDict], Any], tmp_path: Path) -> None:
    spec = INPUT.model_copy(update={"height": 32, "width": 32})
    net = create_classifier(SWIN, spec, 3).net
    torch.save(wrap(old_swin(net.state_dict())), tmp_path / "swin.pt")
    fitted = load_weights(tmp_path / "swin.pt", net)
    for name, tensor in net.state_dict().items():
        assert torch.allclose(fitted.state_dict[name], tensor, atol=1e-3 if wrap is halved else 0)
    torch.save(old_swin(create_classifier(SWIN, spec, 5).net.state_dict()), tmp_path / "swin.pt")
    with pytest.raises(CheckpointError, match=r"of another number of classes: head\.fc\.bias is float32\[5\]"):
        load_weights(tmp_path / "swin.pt", net)
    assert not load_weights(tmp_path / "swin.pt", net, head="new").state_dict["head.fc.weight"].any()


def test_position_embeddings_of_another_size_are_interpolated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vit = Architecture(name="vit_tiny_patch16_224", kwargs={"embed_dim": 12, "depth": 1, "num_heads": 1})
    large, small = (
        create_classifier(vit, INPUT.model_copy(update={"height": side, "width": side}), 3).net for side in (96, 64)
    )
    torch.save(large.state_dict(), tmp_path / "vit.pt")
    with caplog.at_level("INFO", "training.foreign"):
        fitted = load_weights(tmp_path / "vit.pt", small)
    assert "converted by timm" in caplog.text
    assert fitted.state_dict["pos_embed"].shape == (1, 17, 12)
    assert torch.equal(fitted.state_dict["blocks.0.mlp.fc1.weight"], large.state_dict()["blocks.0.mlp.fc1.weight"])


def test_averaged_weights_are_chosen_by_key(weights: StateDict, data: Path, tmp_path: Path, capsys) -> None:
    other = {key: torch.zeros_like(tensor) for key, tensor in weights.items()}
    torch.save({"model": other, "model_ema": {"model": weights}}, tmp_path / "both.pt")
    message = failure(capsys, tmp_path / "both.pt", data, *GIVEN)
    assert "holds weights under each of ['model', 'model_ema']: choose with --key" in message
    message = failure(capsys, tmp_path / "both.pt", data, *GIVEN, "--key", "average")
    assert "expected weights under 'average', found the keys ['model', 'model_ema']" in message
    assert call(tmp_path / "both.pt", data, *GIVEN, "--key", "model_ema") == 0
    assert torch.equal(load_base_set(tmp_path / "base").state_dicts["linf"]["head.weight"], weights["head.weight"])


def test_folders_that_no_person_made_are_no_classes(weights: StateDict, data: Path, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "checkpoint.pt")
    shutil.copytree(data, tmp_path / "data")
    for name in ("__MACOSX", "@eaDir", "lost+found", "empty"):
        (tmp_path / "data" / name).mkdir()
    shutil.copy(next(data.rglob("*.png")), tmp_path / "data" / "@eaDir" / "a.png")
    assert call(tmp_path / "checkpoint.pt", tmp_path / "data", *GIVEN) == 0
    assert load_base_set(tmp_path / "base").manifest.class_names == CLASSES


def test_class_names_come_from_the_options_a_file_or_the_data(weights: StateDict, data: Path, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "checkpoint.pt")
    (tmp_path / "names.txt").write_text("ship\ndog\n\ncat\n")
    assert call(tmp_path / "checkpoint.pt", data, *GIVEN, "--classes", str(tmp_path / "names.txt")) == 0
    first = load_base_set(tmp_path / "base").manifest
    out = str(tmp_path / "second")
    assert call(tmp_path / "checkpoint.pt", data, *GIVEN, "--classes", "ship", "dog", "cat", "--out", out) == 0
    second = load_base_set(tmp_path / "second").manifest
    assert first.class_names == second.class_names == ("ship", "dog", "cat")
    assert first.ingredients[0].metrics == second.ingredients[0].metrics


class Malicious:
    """Its pickle makes a folder when loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle", "new protocol"])
def test_pickles_with_code_are_refused_and_not_run(
    kind: str, weights: StateDict, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "bad.pt", tmp_path / "executed"
    content = {"state_dict": weights, "extra": Malicious(folder)}
    if kind in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    else:
        path.write_bytes(pickle.dumps(content["extra"], protocol=2 if kind == "bare pickle" else 4))
    message = failure(capsys, path, data, *GIVEN)
    assert "bad.pt: refused: loading its pickle could run code" in message
    assert "safetensors.torch.save_file" in message
    if kind != "new protocol":
        assert "posix.mkdir" in message
    assert not folder.exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_scalars_and_options_beside_the_weights_are_no_code(tmp_path: Path, new_format: bool) -> None:
    content = {
        "state_dict": {"weight": torch.ones(2)},
        "best_acc": np.float64(0.5),
        "epoch": np.int64(3),
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
    }
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    net = torch.nn.Module()
    net.weight = torch.nn.Parameter(torch.zeros(2))
    assert torch.equal(load_weights(path, net).state_dict["weight"], torch.ones(2))


def test_whole_modules_and_scripts_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    assert "it refers to torch.nn.modules.linear.Linear" in failure(capsys, tmp_path / "module.pt", data, *GIVEN)


def write_truncated(path: Path, weights: StateDict) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization="zip" in path.stem)
    path.write_bytes(path.read_bytes()[: 40 if "head" in path.stem else -200])


@pytest.mark.parametrize(
    "name", ["zip.pt", "zip-head.pt", "legacy.pth", "legacy-head.pth", "new.safetensors", "head.safetensors"]
)
def test_truncated_files_are_named(
    name: str, weights: StateDict, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_truncated(tmp_path / name, weights)
    message = failure(capsys, tmp_path / name, data, *GIVEN)
    assert f"{name}: " in message
    assert "truncated" in message


@pytest.mark.parametrize("content", [b"", b"hello world", b"epoch,loss\n1,2\n", b"PK\x03\x04 no", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_is_no_checkpoint_is_refused(
    content: bytes, suffix: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"file.{suffix}").write_bytes(content)
    assert f"file.{suffix}: " in failure(capsys, tmp_path / f"file.{suffix}", data, *GIVEN)


def test_checkpoints_without_weights_are_refused(
    weights: StateDict, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.pt"
    assert "found no such file" in failure(capsys, path, data, *GIVEN)
    torch.save({"epoch": 3, "losses": [1.0]}, path)
    assert "found no weights but the keys ['epoch', 'losses']" in failure(capsys, path, data, *GIVEN)
    torch.save([1, 2], path)
    assert "expected a state dict, found no weights but a list" in failure(capsys, path, data, *GIVEN)
    torch.save(weights | {"head.weight": weights["head.weight"].to_sparse()}, path)
    assert "expected dense tensors, head.weight is not" in failure(capsys, path, data, *GIVEN)
    path.rename(tmp_path / "file.onnx")
    assert "expected a checkpoint named *.safetensors" in failure(capsys, tmp_path / "file.onnx", data, *GIVEN)


def test_another_architecture_is_refused_with_five_keys(
    weights: StateDict, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(prefixed("module.", weights), tmp_path / "net.pt")
    wider = Architecture(name="saucier_resnet", kwargs={"widths": [8, 24], "depths": [1, 1]})
    message = failure(capsys, tmp_path / "net.pt", data, *GIVEN, arch=wider)
    assert "net.pt: of another architecture: head.weight is float32[3, 16], expected float32[3, 24];" in message
    assert message.count("expected float32") == 5
    assert "more" in message
    message = failure(capsys, tmp_path / "net.pt", data, *GIVEN, arch=LAYERNORM_NET)
    assert "of another architecture: blocks.0.attn.proj.bias is missing" in message
    assert "; it also has stem.0.weight, stem.1.weight, stem.1.bias and " in message
    missing = {key: tensor for key, tensor in weights.items() if key != "stem.0.weight"}
    torch.save(missing | {"stem.0.scale": torch.ones(3), "teacher.head.weight": torch.ones(2)}, tmp_path / "net.pt")
    message = failure(capsys, tmp_path / "net.pt", data, *GIVEN)
    for part in ("stem.0.scale is not expected", "stem.0.weight is missing", "teacher.head.weight is not expected"):
        assert part in message


def test_another_number_of_classes_is_refused(
    weights: StateDict, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(make_classifier(num_classes=5).net.state_dict(), tmp_path / "net.pt")
    message = failure(capsys, tmp_path / "net.pt", data, *GIVEN)
    assert "of another number of classes: head.bias is float32[5], expected float32[3]" in message
    torch.save(weights, tmp_path / "net.pt")
    message = failure(capsys, tmp_path / "net.pt", data, *GIVEN, "--classes", "cat", "dog")
    assert "expected float32[2]" in message
    for names in (("cat",), ("cat", "dog", "dog")):
        assert "at least 2 classes" in failure(capsys, tmp_path / "net.pt", data, *GIVEN, "--classes", *names)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    value: float, weights: StateDict, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {key: tensor.clone() for key, tensor in weights.items()}
    broken["stem.0.weight"][0, 0, 0, 0] = value
    torch.save(broken, tmp_path / "net.pt")
    message = failure(capsys, tmp_path / "net.pt", data, *GIVEN)
    assert "expected finite weights, found NaN or infinity in stem.0.weight" in message


def test_normalisations_that_disagree_are_refused(
    weights: StateDict, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.pt"
    torch.save(weights, path)
    assert "holds no mean of a normalisation: give --mean and --std" in failure(capsys, path, data)
    both = {"mean": torch.tensor(MEAN), "std": torch.tensor(STD)}
    torch.save(both | weights, path)
    message = failure(capsys, path, data, "--mean", "0.5", "0.5", "0.5")
    assert "--mean: the checkpoint has [0.4914, 0.4822, 0.4465], got [0.5, 0.5, 0.5]" in message
    torch.save({"mean": both["mean"]} | weights, path)
    assert "holds the mean of a normalisation, but not the other half" in failure(capsys, path, data, *GIVEN)
    torch.save(both | weights | {"normalize.mean": torch.zeros(3)}, path)
    assert "holds two normalisations: mean (0.4914, 0.4822, 0.4465) and normalize.mean" in failure(capsys, path, data)
    torch.save({"mean": 255 * both["mean"], "std": 255 * both["std"]} | weights, path)
    assert "divide them by 255" in failure(capsys, path, data)
    torch.save(both | weights, path)
    assert call(path, data, "--mean", *map(str, MEAN)) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--arch", "resnet8472"], "timm knows no model 'resnet8472'"),
        (["--arch", "os.system"], "timm knows no model 'os.system'"),
        (["--arch-kwargs", "{"], "--arch-kwargs: expected a JSON object"),
        (["--arch-kwargs", '{"checkpoint_path": "x"}'], "must not contain ['checkpoint_path']"),
        (["--threat-model", "Linf"], "expected NORM:EPS such as Linf:8/255"),
        (["--threat-model", "Linf:8"], "did you mean 8/255?"),
        (["--threat-models", "L2:0.5", "L2:1"], "at most one of each norm"),
        (["--input-size", "16", "16", "3"], "--input-size: expected a height and a width"),
        (["--name", "../linf"], "--name: String should match pattern"),
        (["--base-set", "My_Set"], "--base-set: String should match pattern '^[a-z0-9][a-z0-9-]{0,62}$', got 'My_Set'"),
        (["--data", "nowhere"], "nowhere: expected a folder"),
        (["--device", "gpu"], "expected device cpu, cuda or auto, or one of several such as cuda:1, got 'gpu'"),
        (["--n", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_options_are_one_line(
    more: list[str],
    message: str,
    weights: StateDict,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(weights, tmp_path / "net.pt")
    assert message in failure(capsys, tmp_path / "net.pt", data, *GIVEN, *more)


def test_a_base_set_that_is_there_stays(weights: StateDict, data: Path, tmp_path: Path, capsys) -> None:
    torch.save(weights, tmp_path / "net.pt")
    assert call(tmp_path / "net.pt", data, *GIVEN) == 0
    before = (tmp_path / "base" / "manifest.json").read_bytes()
    assert call(tmp_path / "net.pt", data, *GIVEN) == 2
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "base" / "manifest.json").read_bytes() == before


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing\.pt: expected a checkpoint, found no such file"):
        load_weights(tmp_path / "missing.pt", make_classifier().net)
