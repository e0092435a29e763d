"""`train/` and `val/` are read wherever `train/` and `test/` are: by every command that takes a data folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from adapt.__main__ import main
from tests.conftest import BATCHNORM_NET, INPUT, LAYERNORM_NET
from tests.training.pictures import write_pictures
from training.cli import run
from training.commands import COMMANDS

COUNTS = {"cat": 12, "dog": 12, "ship": 12}


def recipe_of(architecture: dict[str, object], folder: Path) -> Path:
    nominal = {"name": "nominal", "objective": "nominal", "epochs": 1, "lr": 0.01, "batch_size": 8}
    raw = {
        "name": "mine",
        "data": {"source": "folder", "path": "nowhere", "validation_fraction": 0.25},
        "architecture": architecture,
        "input": INPUT.model_dump(mode="json"),
        "ingredients": [nominal, nominal | {"name": "more", "parent": "nominal"}],
        "evaluation": {"n": 6, "num_steps": 1, "threat_models": [{"norm": "Linf"}]},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(raw))
    return folder / "mine.yaml"


@pytest.fixture(params=["test", "val"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_pictures(tmp_path / "data" / "train", COUNTS)
    write_pictures(tmp_path / "data" / request.param, dict.fromkeys(COUNTS, 3), seed=1)
    return tmp_path / "data"


@pytest.fixture
def call(data: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, object]]:
    def run_with_data(folder: str, *args: object) -> dict[str, object]:
        words = [str(arg) for arg in (*args, "--data", data, "--json")]
        code = main(words) if folder == "adapt" else run(COMMANDS, prog="training", description="", args=words)
        assert code == 0, capsys.readouterr().err
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    return run_with_data


def test_every_command_reads_it(call: Callable[..., dict[str, object]], tmp_path: Path) -> None:
    recipe, base = recipe_of(BATCHNORM_NET.model_dump(mode="json"), tmp_path), tmp_path / "mine"
    plan = call("training", "run", recipe, "--dry-run", "--device", "cpu")
    assert plan["num_images"] == 27, "a quarter of each class is held out for validation"
    made = call("training", "run", recipe, "--out", base, "--device", "cpu")
    assert made["ingredients"][0]["metrics"]["clean"]["n"] == 9  # type: ignore[index]
    evaluated = call("training", "evaluate", base, "--steps", 1)
    assert evaluated["ingredients"]["nominal"]["n"] == 9  # type: ignore[index]
    compressed = call("training", "compress", base, "--out", tmp_path / "small", "--max-loss", 100)
    assert compressed["ingredients"][1]["storage"]["after"]["n"] == 9  # type: ignore[index]
    assert call("adapt", "default", base)["n"] == 9
    assert call("adapt", "attack", base, "--steps", 1)["ingredients"]["default"]["n"] == 9  # type: ignore[index]
    fronts = call("adapt", "fronts", base, "--out", tmp_path / "fronts", "--steps", 1, "--step", 0.25)
    assert fronts["settings"]["n"] == 9  # type: ignore[index]
    imported = ["import", base / "nominal.safetensors", "--arch", BATCHNORM_NET.name, "--arch-kwargs"]
    imported += [json.dumps(BATCHNORM_NET.kwargs), "--name", "linf", "--threat-model", "none", "--input-size", 16]
    imported += ["--mean", *INPUT.mean, "--std", *INPUT.std, "--out", tmp_path / "imported"]
    assert call("training", *imported)["ingredients"][0]["metrics"]["clean"]["n"] == 9  # type: ignore[index]
    joined = call(
        "training", "import", base / "more.safetensors", "--into", base, "--name", "x", "--threat-model", "none"
    )
    assert joined["ingredients"][2]["metrics"]["clean"]["n"] == 9  # type: ignore[index]


def test_moments_are_measured_on_its_validation_images(call: Callable[..., dict[str, object]], tmp_path: Path) -> None:
    recipe = recipe_of(LAYERNORM_NET.model_dump(mode="json"), tmp_path)
    call("training", "run", recipe, "--out", tmp_path / "mine", "--device", "cpu")
    assert call("training", "moments", tmp_path / "mine")["moments"]["n"] == 9  # type: ignore[index]
