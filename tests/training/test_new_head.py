"""`import --new-head`: the backbone is kept, a last layer for other classes is fitted."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import BATCHNORM_NET, INPUT, LAYERNORM_NET, shake
from tests.training.pictures import write_pictures
from tests.training.test_train import tiny_recipe
from training.bases import load_base_set
from training.cli import run
from training.commands import COMMANDS
from training.compute import Compute
from training.evaluate import load_images
from training.images import to_input
from training.manifest import Architecture
from training.models import Classifier, create_classifier
from training.new_head import fit_head
from training.splits import DataSpec, load_splits
from training.train import train

CLASSES = {"apple": 20, "leaf": 30, "sky": 24, "sun": 20}
MEAN_STD = ["--mean", "0.5", "0.45", "0.4", "--std", "0.25", "0.25", "0.3"]


def make_classifier(architecture: Architecture = BATCHNORM_NET, num_classes: int = 9) -> Classifier:
    torch.manual_seed(1)
    classifier = create_classifier(architecture, INPUT, num_classes)
    shake(classifier, seed=7, scale=0.1)
    return classifier


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), CLASSES)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Weights of the tiny network for nine other classes."""
    torch.save(make_classifier().net.state_dict(), tmp_path / "nine.pt")
    return tmp_path / "nine.pt"


def call(checkpoint: Path, data: Path, *more: object, arch: Architecture = BATCHNORM_NET) -> int:
    args = ["import", checkpoint, "--arch", arch.name, "--arch-kwargs", json.dumps(arch.kwargs), *MEAN_STD]
    args += ["--name", "linf", "--threat-model", "Linf:8/255", "--input-size", 16, "--data", data]
    args += ["--out", checkpoint.parent / "base", *more]
    return run(COMMANDS, prog="training", description="", args=[str(arg) for arg in args])


def test_the_backbone_stays_and_the_last_layer_tells_the_new_classes_apart(checkpoint: Path, data: Path) -> None:
    assert call(checkpoint, data, "--new-head") == 0
    base = load_base_set(checkpoint.parent / "base")
    theirs = torch.load(checkpoint, weights_only=True)
    for key, tensor in base.state_dicts["linf"].items():
        if key not in ("head.weight", "head.bias"):
            assert torch.equal(tensor, theirs[key]), key
    assert base.manifest.class_names == tuple(CLASSES)
    assert base.state_dicts["linf"]["head.weight"].shape == (4, 16)
    (ingredient,) = base.manifest.ingredients
    assert ingredient.metrics["clean"].value > 0.9
    head = base.manifest.provenance.recipe["new_head"]
    assert isinstance(head, dict)
    assert head["n"] + head["n_validation"] + ingredient.metrics["clean"].n == sum(CLASSES.values())


def test_only_held_out_images_are_tested_now_and_later(checkpoint: Path, data: Path) -> None:
    assert call(checkpoint, data, "--new-head") == 0
    base = load_base_set(checkpoint.parent / "base")
    spec = DataSpec.model_validate(base.manifest.provenance.recipe["data"])
    splits = load_splits(spec, base.manifest.input, data)
    found = load_images(base.manifest, data)
    assert found.hashes == splits.test.hashes
    assert len(found) == base.manifest.ingredients[0].metrics["clean"].n
    assert str(data) not in base.manifest.model_dump_json()


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_test_folder_is_not_fitted_to(part: str, checkpoint: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data" / "train", CLASSES)
    write_pictures(tmp_path / "data" / part, dict.fromkeys(CLASSES, 3), seed=1)
    assert call(checkpoint, tmp_path / "data", "--new-head") == 0
    manifest = load_base_set(tmp_path / "base").manifest
    assert manifest.ingredients[0].metrics["clean"].n == 12
    head = manifest.provenance.recipe["new_head"]
    assert isinstance(head, dict)
    assert head["n"] + head["n_validation"] == sum(CLASSES.values())


def test_a_checkpoint_with_other_classes_is_refused_without_the_option(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(checkpoint, data) == 2
    assert "start with a new head" in capsys.readouterr().err
    assert not (checkpoint.parent / "base").exists()


def test_two_classes_have_two_logits(checkpoint: Path, tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "two", {"apple": 20, "leaf": 20})
    assert call(checkpoint, data, "--new-head") == 0
    base = load_base_set(tmp_path / "base")
    assert base.state_dicts["linf"]["head.weight"].shape == (2, 16)
    assert base.manifest.ingredients[0].metrics["clean"].value > 0.8


def test_transformers_get_one_too(data: Path, tmp_path: Path) -> None:
    torch.save(make_classifier(LAYERNORM_NET).net.state_dict(), tmp_path / "vit.pt")
    assert call(tmp_path / "vit.pt", data, "--new-head", arch=LAYERNORM_NET) == 0
    assert load_base_set(tmp_path / "base").manifest.ingredients[0].metrics["clean"].value > 0.8


def test_the_fitted_layer_is_the_minimum_of_the_penalised_loss(data: Path) -> None:
    """At the minimum the gradient of the images' loss is that of the penalty, with opposite sign."""
    splits = load_splits(
        DataSpec(source="folder", test_fraction=0.2, validation_fraction=0.125, in_memory=False), INPUT, data
    )
    classifier = make_classifier(num_classes=4)
    found = fit_head(classifier, splits)
    train_images = splits.train.load()  # type: ignore[union-attr]
    seen: list[torch.Tensor] = []
    layer = classifier.net.head
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        classifier(torch.from_numpy(to_input(train_images.images)))
    handle.remove()
    features = seen[0].double()
    centred = features - features.mean(0)
    centred /= centred.square().mean().sqrt()
    scale = (features - features.mean(0)).square().mean().sqrt()
    weight = (layer.weight.double() * scale).detach().requires_grad_()
    bias = (layer.bias.double() + layer.weight.double() @ features.mean(0)).detach().requires_grad_()
    labels = torch.from_numpy(train_images.labels)
    loss = torch.nn.functional.cross_entropy(centred @ weight.T + bias, labels, reduction="sum")
    (found.strength * loss + weight.square().sum() / 2).backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) < 2e-2 * float(weight.detach().abs().max())


def test_a_recipe_goes_on_from_it_but_not_with_another_split(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    assert call(checkpoint, data, "--new-head") == 0
    split = {"source": "folder", "path": str(data), "test_fraction": 0.2, "validation_fraction": 0.125}
    recipe = tiny_recipe(
        data=split,
        architecture=BATCHNORM_NET.model_dump(),
        input=INPUT.model_dump(),
        inherits=["linf"],
        augmentation={},
        ingredients=[{"name": "nominal", "parent": "linf", "objective": "nominal", "epochs": 1, "lr": 0.001}],
    )
    manifest = train(recipe, tmp_path / "more", start=tmp_path / "base", compute=Compute(device="cpu"))
    assert manifest is not None
    assert manifest.ingredient_names == ("linf", "nominal")
    for field, value in (("test_fraction", 0.3), ("split_seed", 1)):
        other = recipe.model_copy(update={"data": recipe.data.model_copy(update={field: value})})
        with pytest.raises(ValueError, match=rf"data\.{field}: expected .*base was trained on the rest"):
            train(other, tmp_path / "other", start=tmp_path / "base", compute=Compute(device="cpu"))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            Architecture(
                name="deit_tiny_distilled_patch16_224",
                kwargs={"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
            ),
            "expected a network whose last layer is a single linear one with a bias, this one's is tuple",
        ),
        (BATCHNORM_NET, "--classes: a new last layer has the classes of the data"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    arch: Architecture, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(make_classifier(arch).net.state_dict(), tmp_path / "net.pt")
    more = ["--classes", *CLASSES] if arch is BATCHNORM_NET else []
    assert call(tmp_path / "net.pt", data, "--new-head", *more, arch=arch) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "base").exists()


def test_a_network_that_changes_its_logits_is_refused(data: Path) -> None:
    classifier = make_classifier(num_classes=4)
    splits = load_splits(DataSpec(source="folder", test_fraction=0.2, validation_fraction=0.125), INPUT, data)
    classifier.net.register_forward_hook(lambda module, args, logits: 30 * logits.tanh())
    with pytest.raises(ValueError, match="logits are not those of its last layer"):
        fit_head(classifier, splits)
