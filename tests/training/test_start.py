"""Starting from weights: files, heads, matching by order, stages that are not kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.training.test_train import PHASES, tiny_recipe
from training.bases import load_base_set
from training.cli import run
from training.commands import COMMANDS
from training.compute import Compute
from training.documents import file_sha256
from training.fit import Fit, Place
from training.foreign import CheckpointError, load_weights
from training.manifest import Architecture, InputSpec
from training.models import create_classifier, head_keys
from training.recipe import Recipe
from training.start import Start, load_start
from training.train import train

CPU = Compute(device="cpu")
SPEC = InputSpec(height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
NET = Architecture(name="saucier_resnet", kwargs={"widths": [8, 16], "depths": [1, 1], "stem_stride": 2})
NOMINAL = {"name": "nominal", "objective": "nominal", "epochs": 0.2, "lr": 0.01}


def weights_of(classes: int, seed: int = 1, **kwargs: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    architecture = NET.model_copy(update={"kwargs": NET.kwargs | kwargs})
    return create_classifier(architecture, SPEC, classes).net.state_dict()


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """Weights of the tiny net for five classes."""
    path = tmp_path / "backbone.safetensors"
    safetensors.torch.save_file(weights_of(5), path)
    return path


def started(file: Path, head: str, num_classes: int) -> nn.Module:
    torch.manual_seed(9)
    classifier = create_classifier(NET, SPEC, num_classes)
    load_start(Start(weights=str(file), head=head), classifier, NET, SPEC, file=file)
    return classifier.net


@pytest.mark.parametrize("num_classes", [7, 5])  # another number than the weights have, and the same
def test_a_new_head_is_zeros_and_the_rest_is_that_of_the_weights(num_classes: int, backbone: Path) -> None:
    found, theirs = started(backbone, "new", num_classes).state_dict(), safetensors.torch.load_file(backbone)
    assert found["head.weight"].shape == (num_classes, 16)
    for key, tensor in found.items():
        expected = torch.zeros_like(tensor) if key in ("head.weight", "head.bias") else theirs[key]
        assert torch.equal(tensor, expected), key


def test_a_kept_head_is_that_of_the_weights(backbone: Path) -> None:
    theirs = safetensors.torch.load_file(backbone)
    for key, tensor in started(backbone, "keep", 5).state_dict().items():
        assert torch.equal(tensor, theirs[key]), key


def break_start(case: str, folder: Path) -> tuple[Path, str]:
    file = folder / "weights.pt"
    if case == "other keys":
        torch.save({f"encoder.{number}": torch.ones(2) for number in range(9)}, file)
    elif case == "another architecture":
        torch.save(weights_of(5, widths=[8, 24]), file)
    elif case == "another number of classes":
        torch.save(weights_of(5), file)
        return file, "keep"
    elif case == "another normalisation":
        torch.save({"mean": torch.tensor([0.1, 0.2, 0.3]), "std": torch.ones(3), **weights_of(5)}, file)
    elif case == "code":
        torch.save(create_classifier(NET, SPEC, 5), file)
    return file, "new"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", r"weights\.pt: expected .*found no such file"),
        ("other keys", r"weights\.pt: of another architecture: encoder\.0 is not expected; .* and \d+ more"),
        ("another architecture", r"of another architecture: .*float32\[24.*expected float32\[16"),
        (
            "another number of classes",
            r"number of classes: head\.bias is float32\[5\], .*start with a new head",
        ),
        ("another normalisation", r"input\.mean: the weights to start from expect \[0\.1, 0\.2, 0\.3\], got"),
        ("code", r"refused: loading its pickle could run code"),
    ],
)
def test_weights_that_do_not_fit_are_one_clear_error(case: str, message: str, tmp_path: Path) -> None:
    file, head = break_start(case, tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        started(file, head, 7)
    assert str(caught.value).count(" is not expected") <= 5


def test_pretrained_weights_without_a_hub_are_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    architecture = Architecture(name="resnet10t")
    spec = InputSpec(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"pretrained weights of 'resnet10t' cannot be had .*name the file"):
        load_start(Start(weights="pretrained"), create_classifier(architecture, spec, 7), architecture, spec)


def test_a_recipe_starts_from_weights_and_its_provenance_says_so(backbone: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(start={"weights": "nowhere.safetensors"}, ingredients=[NOMINAL | {"lr": 1e-9}])
    with pytest.raises(ValueError, match=r"nowhere\.safetensors: expected the weights to start from.*--weights"):
        train(recipe, tmp_path / "tiny", compute=CPU)
    train(recipe, tmp_path / "tiny", weights=backbone, compute=CPU)
    base, theirs = load_base_set(tmp_path / "tiny"), safetensors.torch.load_file(backbone)
    torch.testing.assert_close(base.state_dicts["nominal"]["stem.0.weight"], theirs["stem.0.weight"])
    record = base.manifest.provenance.recipe["start"]
    assert record == {"weights": "nowhere.safetensors", "head": "new", "sha256": file_sha256(backbone)}


def test_other_starting_weights_do_not_continue_an_unfinished_run(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "update", interrupt)
    recipe = tiny_recipe(start={"weights": str(backbone)}, ingredients=[NOMINAL])
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "tiny", compute=CPU)
    safetensors.torch.save_file(weights_of(5, seed=2), backbone)
    with pytest.raises(ValueError, match="unfinished run"):
        train(recipe, tmp_path / "tiny", compute=CPU)


def test_a_stage_that_is_not_kept_is_a_parent_and_no_ingredient(tmp_path: Path) -> None:
    stages = [
        NOMINAL | {"name": "first", "keep": False},
        NOMINAL | {"name": "second", "keep": False, "parent": "first"},
        NOMINAL | {"parent": "second", "lr": 1e-9},
        NOMINAL | {"name": "more", "parent": "nominal", "lr": 1e-9},
    ]
    train(tiny_recipe(ingredients=stages), tmp_path / "tiny", compute=CPU)
    train(
        tiny_recipe(ingredients=[*stages[:1], NOMINAL | {"name": "x", "parent": "first", "lr": 1e-9}]), tmp_path / "x"
    )
    base = load_base_set(tmp_path / "tiny")
    assert base.manifest.ingredient_names == ("nominal", "more")
    assert [ingredient.parent for ingredient in base.manifest.ingredients] == [None, "nominal"]
    assert sorted(path.name for path in base.path.glob("*.safetensors")) == ["more.safetensors", "nominal.safetensors"]
    first = load_base_set(tmp_path / "x").state_dicts["x"]["stem.0.weight"]
    assert not torch.allclose(base.state_dicts["nominal"]["stem.0.weight"], first), "the second stage taught nothing"


def test_a_nominal_network_becomes_robust_in_a_few_epochs(tmp_path: Path) -> None:
    against = {"threat_models": [{"norm": "Linf", "eps": 0.08}]}
    settings = {"lr": 0.1, "batch_size": 32, "ema_decay": 0.9}
    linf_stage = {"name": "linf", "parent": "nominal", "objective": "adversarial", "attack": {"kind": "fgsm"}}
    stages = [
        {"name": "nominal", "objective": "nominal", "epochs": 4, **settings},
        {**linf_stage, "epochs": 5, "warmup_fraction": 0.6, **settings, **against},
    ]
    evaluation = {"n": 100, "num_steps": 5, **against}
    manifest = train(tiny_recipe(ingredients=stages, evaluation=evaluation), tmp_path / "tiny", compute=CPU)
    assert manifest is not None
    nominal, linf = (ingredient.metrics for ingredient in manifest.ingredients)
    assert linf["Linf"].value > nominal["Linf"].value + 0.1
    assert linf["clean"].value > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ingredients": [NOMINAL | {"keep": False}]}, "all of them have keep: false"),
        ({"start": {"weights": "x"}, "inherits": ["linf"], "ingredients": [PHASES[1]]}, "nothing starts from these"),
        ({"start": {"weights": "x", "head": "old"}}, "head"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(**changes)


def fit_of(recipe: Recipe, work: Path) -> Fit:
    from training.splits import load_splits

    classifier = create_classifier(recipe.architecture, recipe.input, 10)
    place = Place(CPU.accelerator(), CPU, work)
    splits = load_splits(recipe.data, recipe.input)
    return Fit(recipe.ingredients[0], classifier, splits, recipe.augmentation, seed=0, place=place)


def test_the_head_learns_at_its_own_rate(tmp_path: Path) -> None:
    moved = {}
    for factor in (1.0, 10.0):
        torch.manual_seed(0)
        spec = NOMINAL | {"head_lr_factor": factor, "optimizer": "adamw", "epochs": 2, "warmup_fraction": 0}
        fit = fit_of(tiny_recipe(ingredients=[spec]), tmp_path)
        before = {key: tensor.clone() for key, tensor in fit.classifier.net.state_dict().items()}
        images, labels = next(fit._batches(0, 0))
        fit.update(images, labels)
        moved[factor] = {
            key: float((tensor - before[key]).abs().max())
            for key, tensor in fit.classifier.net.state_dict().items()
            if key in ("head.weight", "head.bias", "stem.0.weight")
        }
    for key in ("head.weight", "head.bias"):
        assert moved[10.0][key] == pytest.approx(10 * moved[1.0][key], rel=0.01)
    assert moved[10.0]["stem.0.weight"] == pytest.approx(moved[1.0]["stem.0.weight"], rel=1e-5)
    assert moved[1.0]["stem.0.weight"] > 0


def test_both_heads_of_a_distilled_transformer_are_its_last_layers() -> None:
    kwargs = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    net = create_classifier(Architecture(name="deit_tiny_distilled_patch16_224", kwargs=kwargs), SPEC, 3).net
    assert head_keys(net) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def foreign(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors in the same order under names of another library, without step counters."""
    kept = [tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")]
    return {f"_layer{number}.w": tensor for number, tensor in enumerate(kept)}


def test_tensors_in_order_get_the_networks_names(tmp_path: Path) -> None:
    state, net = weights_of(5), create_classifier(NET, SPEC, 5).net
    torch.save(foreign(state), tmp_path / "net.pth")
    found = load_weights(tmp_path / "net.pth", net, match="order").state_dict
    assert list(found) == list(state)
    for key in (key for key in state if not key.endswith("num_batches_tracked")):
        assert torch.equal(found[key], state[key]), key
    with pytest.raises(CheckpointError, match="of another architecture: _layer0"):
        load_weights(tmp_path / "net.pth", net)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: dict(list(state.items())[1:]), r"expected \d+ tensors in order, found \d+"),
        (lambda state: dict(sorted(state.items(), reverse=True)), r"stands where stem\.0\.weight \[.*and \d+ more"),
    ],
)
def test_tensors_in_another_order_are_refused(
    damage: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str, tmp_path: Path
) -> None:
    torch.save(damage(foreign(weights_of(5))), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=message):
        load_weights(tmp_path / "net.pth", create_classifier(NET, SPEC, 5).net, match="order")


def test_safetensors_have_no_order_to_match_by(backbone: Path) -> None:
    with pytest.raises(CheckpointError, match="do not keep the order"):
        load_weights(backbone, create_classifier(NET, SPEC, 5).net, match="order")


@pytest.mark.parametrize("half", [False, True])
def test_convert_writes_a_file_to_start_from(half: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    net = create_classifier(Architecture(name="saucier_resnet"), SPEC, 5).net
    torch.save(foreign(net.state_dict()), tmp_path / "net.pth")
    out = tmp_path / "out.safetensors"
    args = ["convert", str(tmp_path / "net.pth"), "--arch", "saucier_resnet", "--out", str(out), "--match", "order"]
    assert run(COMMANDS, prog="training", description="", args=args) == 2
    assert "--num-classes: timm does not say" in capsys.readouterr().err
    args += ["--num-classes", "5", *(["--half"] if half else [])]
    assert run(COMMANDS, prog="training", description="", args=args) == 0
    found = load_weights(out, net).state_dict
    for key, tensor in net.state_dict().items():
        assert torch.allclose(found[key], tensor, rtol=1e-3 if half else 0, atol=1e-6 if half else 0), key
    assert (found["stem.0.weight"] == net.state_dict()["stem.0.weight"]).all() != half
    assert run(COMMANDS, prog="training", description="", args=args) == 2
    assert "already exists" in capsys.readouterr().err
