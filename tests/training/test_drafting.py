"""`training init`: what a folder holds, what the recipe says, why, and that it trains."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.training.pictures import write_pictures
from training.bases import load_base_set
from training.choosing import choose
from training.cli import run
from training.commands import COMMANDS
from training.contents import look_at
from training.manifest import Architecture, InputSpec
from training.models import create_classifier
from training.optimisation import learning_rate
from training.recipe import load_recipe
from training.splits import load_splits

ARCH = "resnet10t"  # the smallest that timm has pretrained weights of
COUNTS = {"apple": 24, "leaf": 18, "sky": 12}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the network for seven other classes."""
    torch.manual_seed(0)
    spec = InputSpec(height=64, width=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    net = create_classifier(Architecture(name=ARCH), spec, 7).net
    path = tmp_path_factory.mktemp("weights") / "seven.safetensors"
    safetensors.torch.save_file(net.state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "My Photos", COUNTS, size=(60, 40))


def call(*args: object) -> int:
    return run(COMMANDS, prog="training", description="", args=["init", *map(str, args)])


def written(capsys: pytest.CaptureFixture[str], folder: Path, weights: Path, *more: object) -> dict[str, Any]:
    out = folder.parent / "mine.yaml"
    assert call(folder, "--arch", ARCH, "--weights", weights, "--out", out, "--json", *more) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert load_recipe(out).model_dump(mode="json") == found["recipe"]
    return found


@pytest.mark.slow
def test_the_recipe_says_what_was_chosen_and_passes_a_dry_run(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = written(capsys, folder, weights)
    recipe = found["recipe"]
    assert recipe["name"] == "my-photos"
    assert recipe["architecture"]["name"] == ARCH
    assert recipe["start"] == {"weights": str(weights), "head": "new"}
    assert (recipe["data"]["test_fraction"], recipe["data"]["validation_fraction"]) == (0.2, 0.125)
    assert recipe["input"]["mean"] == pytest.approx([0.485, 0.456, 0.406]), "what timm says of the weights"
    assert (recipe["input"]["height"], recipe["input"]["resize"]) == (96, "crop")
    assert found["classes"] == COUNTS
    assert found["median_size"] == [40, 60]
    assert found["imbalance"] == 2
    kept = [spec["name"] for spec in recipe["ingredients"] if spec["keep"]]
    assert kept == ["nominal", "linf", "l2", "l1"]
    parents = {spec["name"]: spec["parent"] for spec in recipe["ingredients"]}
    assert parents == {"pretraining": None, "nominal": "pretraining", "linf": "pretraining", "l2": "linf", "l1": "linf"}
    epochs = {spec["name"]: spec["epochs"] for spec in recipe["ingredients"]}
    assert epochs["nominal"] == epochs["linf"] + epochs["l2"], "no ingredient is trained longer than another"
    (folder.parent / "mine.yaml").unlink()
    written(capsys, folder, weights, "--size", 16)  # quicker to try
    args = ["run", str(folder.parent / "mine.yaml"), "--dry-run", "--device", "cpu", "--json"]
    assert run(COMMANDS, prog="training", description="", args=args) == 0
    plan = json.loads(capsys.readouterr().out)
    split = found["chosen"]["split"]["value"]
    assert split == f"{plan['num_images']} / 5 / 11"


@pytest.mark.parametrize("name", ["photos", "drafted"])
def test_robustness_begins_at_a_nominal_network_with_a_slow_rise_and_a_fast_fall(
    name: str, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "drafted":
        written(capsys, folder, weights)
    recipe = load_recipe(Path("photos") if name == "photos" else folder.parent / "mine.yaml")
    (linf,) = (spec for spec in recipe.ingredients if spec.name == "linf")
    (parent,) = (spec for spec in recipe.ingredients if spec.name == linf.parent)
    assert (parent.objective, linf.objective) == ("nominal", "adversarial")
    rates = [learning_rate(step, 100, linf.warmup_fraction, linf.milestones) for step in range(100)]
    assert rates[0] < 0.05
    assert rates == [*sorted(rates[:60]), *sorted(rates[60:], reverse=True)]
    assert rates[-1] < 0.01


@pytest.mark.slow
def test_the_recipe_trains_to_a_base_set(folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(capsys, folder, weights, "--size", 16)
    args = ["run", str(folder.parent / "mine.yaml"), "--out", str(folder.parent / "base"), "--epochs-scale", "0.01"]
    assert run(COMMANDS, prog="training", description="", args=[*args, "--device", "cpu"]) == 0
    manifest = load_base_set(folder.parent / "base").manifest
    assert manifest.ingredient_names == ("nominal", "linf", "l2", "l1")
    assert set(manifest.ingredients[0].metrics) == {"clean", "Linf", "L2", "L1", "union"}


def test_the_output_names_what_was_found_chosen_and_why(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "mine.yaml"
    assert call(folder, "--arch", ARCH, "--weights", weights, "--out", out) == 0
    text = capsys.readouterr().out
    for part in (
        "54 images of 3 classes, no test part",
        "training images by class: apple 24, leaf 18, sky 12",
        "median 60 x 40 pixels",
        "96 x 96, crop",
        "the median image has 40 pixels on its shorter side",
        "of each class 0.2 for test, of the rest 0.125 for validation",
        "half the usual ones at 96 x 96 pixels",
        f"wrote {out}; next: saucier train {out} --dry-run",
    ):
        assert part in text
    comments = [line for line in out.read_text().splitlines() if "#" in line]
    assert len(comments) > 12
    assert max(map(len, out.read_text().splitlines())) <= 160


def test_a_file_of_weights_is_checked_by_the_dry_run_too(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    written(capsys, folder, weights)
    torch.save({"encoder.weight": torch.ones(3)}, tmp_path / "other.pt")
    args = ["run", str(folder.parent / "mine.yaml"), "--dry-run", "--device", "cpu", "--weights"]
    for file, message in (("other.pt", "of another architecture"), ("nowhere.pt", "found no such file")):
        assert run(COMMANDS, prog="training", description="", args=[*args, str(tmp_path / file)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("train", "val", "test"), ("train",)])
def test_parts_that_have_folders_are_not_split(
    parts: tuple[str, ...], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, part in enumerate(parts):
        write_pictures(tmp_path / "data" / part, dict.fromkeys(COUNTS, 12 if part == "train" else 4), seed=number)
    found = written(capsys, tmp_path / "data", weights)
    data = load_recipe(tmp_path / "mine.yaml").data
    assert (data.test_fraction > 0) == (parts == ("train",))
    assert (data.validation_fraction > 0) == ("val" not in parts or "test" not in parts)
    recipe = load_recipe(tmp_path / "mine.yaml")
    splits = load_splits(data, recipe.input)
    assert found["chosen"]["split"]["value"] == " / ".join(str(len(part)) for part in splits)


def test_more_images_are_seen_less_often_in_larger_batches(tmp_path: Path, weights: Path) -> None:
    contents = look_at(write_pictures(tmp_path, {"a": 10, "b": 10}), check=1)

    def plan_for(copies: int) -> Any:
        files = contents.parts["train"]
        more = {"train": files.subset(list(range(len(files))) * copies)}
        larger = type(contents)(contents.root, more, contents.sizes, {}, 0, {})
        return choose(larger, arch=ARCH, weights=weights, side=None)

    few, photos, many = plan_for(1), plan_for(84), plan_for(2000)
    assert (few.batch_size, photos.batch_size, many.batch_size) == (16, 64, 64)
    assert few.epochs["pretraining"] == 30
    assert photos.epochs == {"pretraining": 12, "nominal": 26, "linf": 20, "l2": 6, "l1": 6}, "as the recipe photos"
    assert many.epochs == {"pretraining": 2, "nominal": 4, "linf": 3, "l2": 1, "l1": 1}


@pytest.mark.parametrize(
    ("size", "side", "resize"),
    [((500, 375), 160, "crop"), ((140, 150), 128, "crop"), ((32, 32), 96, "crop"), ((400, 200), 160, "stretch")],
)
def test_the_input_size_follows_the_images(
    size: tuple[int, int], side: int, resize: str, weights: Path, tmp_path: Path
) -> None:
    contents = look_at(write_pictures(tmp_path, {"a": 10, "b": 10}, size=size), check=1)
    plan = choose(contents, arch=ARCH, weights=weights, side=None)
    assert (plan.input_spec.height, plan.input_spec.width, plan.input_spec.resize) == (side, side, resize)
    usual = {"Linf": 4 / 255, "L2": 2 * side / 224, "L1": 255 * (side / 224) ** 2}
    assert plan.radii == pytest.approx({norm: eps / 2 for norm, eps in usual.items()}, rel=5e-3)
    assert choose(contents, arch=ARCH, weights=weights, side=64).radii == pytest.approx(
        {"Linf": 4 / 255, "L2": 0.25, "L1": 6}, rel=5e-3
    )


def test_large_photographs_are_decoded_once(weights: Path, tmp_path: Path) -> None:
    contents = look_at(write_pictures(tmp_path, {"a": 10, "b": 10}), check=1)
    large = type(contents)(contents.root, contents.parts, ((3000, 4000),) * 20, {}, 0, {})
    assert choose(large, arch=ARCH, weights=weights, side=None).is_in_memory
    assert not choose(contents, arch=ARCH, weights=weights, side=None).is_in_memory


def test_what_cannot_be_read_is_named_and_not_counted(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / "apple" / "000.png").read_bytes()
    (folder / "apple" / "000.png").write_bytes(whole[: len(whole) // 2])
    (folder / "leaf" / "001.png").write_text("no image")
    (folder / "leaf" / "portrait.heic").write_bytes(b"\0" * 9)
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.txt").write_text("x")
    found = written(capsys, folder, weights)
    assert set(found["unreadable"]) == {"apple/000.png", "leaf/001.png"}
    assert found["classes"] == {"apple": 23, "leaf": 17, "sky": 12}
    assert found["passed_over"] == {".heic": 1, ".txt": 1}
    (folder.parent / "mine.yaml").unlink()
    assert call(folder, "--arch", ARCH, "--weights", weights, "--out", folder.parent / "mine.yaml") == 0
    text = capsys.readouterr().out
    assert "2 unreadable, move them away before training: apple/000.png (" in text
    assert "passed over, no images by their names: 1 .heic, 1 .txt" in text


def test_of_many_images_only_some_are_decoded(folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / "apple" / "001.png").read_bytes()
    (folder / "apple" / "001.png").write_bytes(whole[:-40])
    assert written(capsys, folder, weights, "--check", 27)["unreadable"] == {}
    (folder.parent / "mine.yaml").unlink()
    assert set(written(capsys, folder, weights, "--check", 54)["unreadable"]) == {"apple/001.png"}
    contents = look_at(folder, check=27)
    assert contents.unchecked == 27
    assert "27 images were not decoded" in contents.text()


def test_a_photograph_on_its_side_is_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "a" / "1.jpg", exif=exif)
    assert look_at(tmp_path, check=9).sizes == ((40, 20),)


def test_imbalance_is_said(tmp_path: Path) -> None:
    contents = look_at(write_pictures(tmp_path, {"rare": 3, "usual": 12}), check=9)
    assert "the largest class has 4.0 times the images of the smallest" in contents.text()


def test_of_many_classes_some_are_listed(tmp_path: Path) -> None:
    contents = look_at(write_pictures(tmp_path, {f"c{number:02}": 1 + number for number in range(25)}), check=1)
    assert "by class: c00 1, c01 2, c02 3, ..., c22 23, c23 24, c24 25" in contents.text()


def one_class(folder: Path) -> None:
    for name in ("leaf", "sky"):
        shutil.rmtree(folder / name)


def few_images(folder: Path) -> None:
    for path in sorted((folder / "sky").iterdir())[3:]:
        path.unlink()


def unreadable_class(folder: Path) -> None:
    for path in (folder / "sky").iterdir():
        path.write_text("no image")


def no_images(folder: Path) -> None:
    for path in (folder / "sky").iterdir():
        path.rename(path.with_suffix(".txt"))


def loose_files(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.rename(folder / f"{path.parent.name}-{path.name}")
    for name in COUNTS:
        (folder / name).rmdir()


def parts_alone(folder: Path) -> None:
    (folder / "test").mkdir()
    (folder / "training").mkdir()
    (folder / "apple").rename(folder / "test" / "apple")
    for name in ("leaf", "sky"):
        (folder / name).rename(folder / "training" / name)


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (shutil.rmtree, [], "My Photos: expected a folder with train/ and test/, found no such folder"),
        (one_class, [], "My Photos: expected at least 2 classes, one folder each, got ['apple']"),
        (few_images, [], "at least 10 readable training images of each class, got sky 3: add some, or move"),
        (unreadable_class, [], "at least 10 readable training images of each class, got sky 0"),
        (no_images, [], "sky: expected images of class 'sky', found none"),
        (loose_files, [], "My Photos: expected one folder per class, found none"),
        (parts_alone, [], "expected one folder per class, or train/ with such folders, found ['test', 'training']"),
        (None, ["--arch", "resnet8472"], "timm knows no model 'resnet8472'"),
        (None, ["--arch", "resnet18"], "seven.safetensors: of another architecture"),
        (None, ["--weights", "nowhere.pt"], "nowhere.pt: expected a checkpoint, found no such file"),
        (None, ["--size", 8], "greater than or equal to 16"),
        (None, ["--out", "recipe.json"], "--out: expected a file ending in .yaml, got recipe.json"),
    ],
)
def test_what_no_recipe_can_be_made_of_is_one_line(
    change: Callable[[Path], None] | None,
    more: list[object],
    message: str,
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if change is not None:
        change(folder)
    out = folder.parent / "mine.yaml"
    assert call(folder, "--arch", ARCH, "--weights", weights, "--out", out, *more) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert not out.exists()


def test_without_a_file_the_weights_are_timms(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "mine.yaml"
    assert call(folder, "--out", out) == 0
    assert "from timm's hub; where none can be reached, name a file with --weights" in capsys.readouterr().out
    recipe = load_recipe(out)
    assert (recipe.architecture.name, recipe.start and recipe.start.weights) == ("tf_efficientnet_lite0", "pretrained")
    assert call(folder, "--arch", "saucier_resnet", "--out", folder.parent / "other.yaml") == 2
    assert "timm has no pretrained weights of 'saucier_resnet': name a file" in capsys.readouterr().err


def test_a_recipe_that_is_there_stays(folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "mine.yaml"
    out.write_text("mine")
    assert call(folder, "--arch", ARCH, "--weights", weights, "--out", out) == 2
    assert "already exists; choose another --out" in capsys.readouterr().err
    assert out.read_text() == "mine"


@pytest.mark.parametrize("name", ['a "quoted" one', "tab\tand: colon", "Café №7", "...", "9"])
def test_any_name_of_a_folder_becomes_a_recipe(
    name: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / name, {"a": 10, "b": 10})
    assert written(capsys, folder, weights)["recipe"]["data"]["path"] == str(folder)


def test_a_link_to_a_folder_names_the_recipe(folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    assert call("link", "--arch", ARCH, "--weights", weights) == 0
    assert load_recipe(folder.parent / "link.yaml").name == "link"
    monkeypatch.chdir(folder)
    assert call(".", "--arch", ARCH, "--weights", weights) == 0
    assert load_recipe(folder / "my-photos.yaml").name == "my-photos"


def test_random_choices_of_others_are_not_disturbed(folder: Path, weights: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    choose(look_at(folder, check=1), arch=ARCH, weights=weights, side=32)
    assert torch.equal(torch.rand(1), expected)
    assert np.isfinite(float(expected))
