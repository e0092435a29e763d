"""`import --into`: a network made elsewhere becomes a further ingredient of a base set."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deploy.bundle import build_bundle
from tests.conftest import BATCHNORM_NET, CLASSES, INPUT, shake
from tests.training.pictures import write_pictures
from training import bases
from training.bases import BaseSet, load_base_set
from training.cli import run
from training.commands import COMMANDS
from training.data import load_folder
from training.documents import file_sha256
from training.images import to_input
from training.joining import Joined
from training.manifest import Architecture, Manifest, Metric, ThreatModel
from training.models import create_classifier


@pytest.fixture
def folder(tiny_base_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_set, tmp_path / "tiny"))


def fine_tuned(base: BaseSet, *, of: str = "nominal", scale: float = 0.02) -> dict[str, Tensor]:
    """Weights a short way from an ingredient's."""
    classifier = base.model(of)
    shake(classifier, seed=5, scale=scale)
    return classifier.net.state_dict()


@pytest.fixture
def checkpoint(tiny_base_set: Path, tmp_path: Path) -> Path:
    torch.save({"state_dict": fine_tuned(load_base_set(tiny_base_set))}, tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def call(checkpoint: Path, folder: Path, data: Path | None, *more: object) -> int:
    args = ["import", checkpoint, "--into", folder, "--name", "mine", "--threat-model", "none", *more]
    args += [] if data is None else ["--data", data]
    return run(COMMANDS, prog="training", description="", args=[str(arg) for arg in args])


def failure(capsys: pytest.CaptureFixture[str], checkpoint: Path, folder: Path, data: Path, *more: object) -> str:
    before = content(folder)
    assert call(checkpoint, folder, data, *more) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
    assert len(errors) == 1
    assert content(folder) == before
    return errors[0]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_ingredients_there_stay_and_the_new_one_comes_last(
    checkpoint: Path, folder: Path, image_folder: Path, tiny_base_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--source", "a paper", "--license", "MIT", "--num-images", 30, "--json"]
    assert call(checkpoint, folder, image_folder, *more) == 0
    before, after = load_base_set(tiny_base_set), load_base_set(folder)
    assert json.loads(capsys.readouterr().out) == after.manifest.model_dump(mode="json")
    assert after.manifest.ingredient_names == ("linf", "nominal", "l2", "l1", "mine")
    assert after.manifest.ingredients[:4] == before.manifest.ingredients
    assert after.manifest.default_coefficients == {**before.manifest.default_coefficients, "mine": 0.0}
    assert after.manifest.digest != before.manifest.digest
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    for key, tensor in after.state_dicts["mine"].items():
        assert torch.equal(tensor, weights[key]), key
    mine = after.manifest.ingredients[-1]
    assert (mine.threat_model, mine.objective, mine.metrics["clean"].n) == (None, "nominal", 30)
    assert after.manifest.provenance.recipe["added"] == [
        {
            "ingredient": "mine",
            "file": "mine.pt",
            "sha256": file_sha256(checkpoint),
            "path": "state_dict/",
            "source": "a paper",
            "license": "MIT",
        }
    ]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", *[".safetensors"] * 5]


def test_several_join_and_the_set_can_be_bundled(
    checkpoint: Path, folder: Path, image_folder: Path, tmp_path: Path
) -> None:
    assert call(checkpoint, folder, image_folder) == 0
    robust = ["--name", "robust", "--threat-model", "Linf:4/255", "--evaluate", "--n", 6, "--steps", 2]
    assert call(checkpoint, folder, image_folder, *robust) == 0
    manifest = load_base_set(folder).manifest
    assert manifest.ingredient_names[-2:] == ("mine", "robust")
    added = manifest.provenance.recipe["added"]
    assert isinstance(added, list)
    assert [entry["ingredient"] for entry in added if isinstance(entry, dict)] == ["mine", "robust"]
    robust_one = manifest.ingredients[-1]
    assert robust_one.threat_model == ThreatModel(norm="Linf", eps=4 / 255)
    assert set(robust_one.metrics) == {"clean", "Linf", "L2", "L1", "union"}
    assert build_bundle(folder, tmp_path / "bundles").is_dir()


def test_moments_are_those_of_all_ingredients(tiny_moments_base_set: Path, image_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_moments_base_set, tmp_path / "tiny"))
    torch.save(fine_tuned(load_base_set(folder)), tmp_path / "vit.pt")
    assert call(tmp_path / "vit.pt", folder, image_folder) == 0
    base = load_base_set(folder)
    assert base.moments is not None
    assert list(base.moments) == list(base.manifest.ingredient_names)
    assert len(list(folder.glob("moments*"))) == 1


def test_half_of_both_shows_whether_they_mix(
    folder: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_base_set(folder)
    torch.save(base.state_dicts["linf"], tmp_path / "same.pt")
    assert call(tmp_path / "same.pt", folder, image_folder) == 0
    alone, halfway = capsys.readouterr().out.splitlines()[1].split("; half mine, half linf: ")
    assert alone == f"linf: clean {halfway}"


def trained_on(data: Path, folder: Path, order: tuple[str, ...], seed: int) -> Path:
    """Weights of the tiny network, trained on pictures whose classes have the order given."""
    torch.manual_seed(seed)
    classifier = create_classifier(BATCHNORM_NET, INPUT, len(order))
    images = load_folder(data, INPUT, order)
    x, y = torch.from_numpy(to_input(images.images)), torch.from_numpy(images.labels)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.01)
    classifier.train()
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(classifier(x), y).backward()
        optimizer.step()
    path = folder / f"{'-'.join(order)}-{seed}.pt"
    torch.save(classifier.net.state_dict(), path)
    return path


def test_other_orders_of_classes_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_pictures(tmp_path / "data", dict.fromkeys(CLASSES, 20))
    first = trained_on(data, tmp_path, CLASSES, seed=0)
    arch = ["--arch", BATCHNORM_NET.name, "--arch-kwargs", json.dumps(BATCHNORM_NET.kwargs), "--input-size", "16"]
    mean_std = ["--mean", *map(str, INPUT.mean), "--std", *map(str, INPUT.std)]
    new = ["import", str(first), "--name", "first", "--threat-model", "none", "--data", str(data)]
    made = run(
        COMMANDS, prog="training", description="", args=[*new, *arch, *mean_std, "--out", str(tmp_path / "base")]
    )
    assert made == 0
    base = load_base_set(tmp_path / "base")
    assert base.manifest.ingredients[0].metrics["clean"].value > 0.95
    turned = trained_on(data, tmp_path, (*CLASSES[1:], CLASSES[0]), seed=1)
    capsys.readouterr()
    assert call(turned, tmp_path / "base", data, "--name", "turned") == 0
    assert "warning: turned is much worse than first: are its classes in the order" in capsys.readouterr().out
    torch.save(fine_tuned(base, of="first"), tmp_path / "near.pt")
    assert call(tmp_path / "near.pt", tmp_path / "base", data, "--name", "near") == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(("halfway", "is_warned"), [(0.91, False), (0.8, False), (0.5, True)])
def test_networks_of_other_starts_are_warned_of(halfway: float, is_warned: bool, tiny_base_set: Path) -> None:
    manifest = load_base_set(tiny_base_set).manifest
    added = manifest.ingredients[1].model_copy(update={"metrics": {"clean": Metric(value=0.88, n=100)}})
    text = Joined(manifest, added, other="linf", alone=0.93, halfway=halfway).text()
    assert f"linf: clean 0.930; half nominal, half linf: {halfway:.3f}" in text
    assert ("warning: half of both is much worse than either: nominal was probably not" in text) == is_warned


OTHER_ARCH = ["--arch", "resnet18"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (OTHER_ARCH, "--arch: expected that of 'tiny', saucier_resnet, got resnet18"),
        (["--arch-kwargs", '{"widths": [8, 8]}'], "--arch-kwargs: expected that of 'tiny', {'widths': [8, 16], "),
        (["--input-size", 32], "--input-size: expected that of 'tiny', [16, 16], got [32, 32]"),
        (["--resize", "crop"], "--resize: expected that of 'tiny', stretch, got crop"),
        (["--mean", 0.1, 0.1, 0.1], "--mean: expected that of 'tiny', [0.5, 0.45, 0.4], got [0.1, 0.1, 0.1]"),
        (
            ["--classes", "dog", "cat", "ship"],
            "--classes: expected that of 'tiny', ['cat', 'dog', 'ship'], got ['dog', ",
        ),
        (["--name", "L2"], "already has an ingredient 'L2', expected none of ['linf', 'nominal', 'l2', 'l1']"),
        (["--name", "../mine"], "--name: String should match pattern"),
        (["--name", "moments"], "is for its moments: choose another name"),
        (["--out", "elsewhere"], "--out: expected none with --into"),
        (["--new-head"], "--new-head: expected none with --into"),
        (["--threat-model", "Linf"], "expected NORM:EPS such as Linf:8/255"),
        (["--key", "ema"], "expected weights under 'ema', found the keys ['state_dict']"),
    ],
)
def test_what_does_not_fit_is_one_line_and_changes_nothing(
    more: list[object],
    message: str,
    checkpoint: Path,
    folder: Path,
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in failure(capsys, checkpoint, folder, image_folder, *more)


def other_weights(num_classes: int, **kwargs: object) -> dict[str, Tensor]:
    architecture = Architecture(name=BATCHNORM_NET.name, kwargs=BATCHNORM_NET.kwargs | kwargs)  # type: ignore[arg-type]
    return create_classifier(architecture, INPUT, num_classes).net.state_dict()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (other_weights(5), "of another number of classes: head.bias is float32[5], expected float32[3]"),
        (other_weights(3, widths=[8, 24]), "of another architecture: "),
        (
            other_weights(3) | {"mean": torch.full((3,), 0.2), "std": torch.ones(3)},
            "mine.pt: mean: expected that of 'tiny', [0.5, 0.45, 0.4], got [0.2, 0.2, 0.2]",
        ),
    ],
)
def test_other_networks_are_refused(
    weights: dict[str, Tensor],
    message: str,
    folder: Path,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(weights, tmp_path / "mine.pt")
    assert message in failure(capsys, tmp_path / "mine.pt", folder, image_folder)


def test_images_of_other_classes_and_absent_data_are_refused(
    checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "zebra").mkdir(parents=True)
    (tmp_path / "data" / "zebra" / "one.png").write_bytes(b"")
    assert "zebra: expected a class folder named one of" in failure(capsys, checkpoint, folder, tmp_path / "data")
    assert "nowhere: expected a folder" in failure(capsys, checkpoint, folder, tmp_path / "nowhere")
    assert call(checkpoint, tmp_path / "data", None) == 2
    assert "manifest.json: expected the manifest of a base set" in capsys.readouterr().err


def test_a_full_disk_leaves_the_base_set_as_it_was(
    checkpoint: Path,
    folder: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(folder: Path, manifest: Manifest) -> Manifest:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bases, "rewrite_manifest", full)
    assert "No space left on device" in failure(capsys, checkpoint, folder, image_folder)


@pytest.mark.parametrize("option", ["--arch", "--input-size", "--data", "--out"])
def test_a_new_base_set_needs_to_know_the_network(
    option: str, checkpoint: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--arch": "resnet18", "--input-size": "16", "--data": str(image_folder), "--out": str(tmp_path / "base")}
    args = ["import", str(checkpoint), "--name", "mine", "--threat-model", "none"]
    args += [word for name, value in given.items() if name != option for word in (name, value)]
    assert run(COMMANDS, prog="training", description="", args=args) == 2
    assert f"error: {option}: expected " in capsys.readouterr().err
