import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.__main__ import main
from adapt.commands.search import SearchCommand
from adapt.documents.soup import default_soup, make_soup, read_soup, write_soup
from adapt.reporting.report import read_report
from training.bases import rewrite_manifest
from training.data import balanced_indices, find_files
from training.manifest import read_manifest

CLASSES = ("cat", "dog", "ship")


def make_folder(root: Path, n: int, seed: int) -> Path:
    """n noise images with a brightness that tells the class."""
    generator = np.random.default_rng(seed)
    for index in range(n):
        label = index % 3
        pixels = generator.integers(0, 130, (16, 16, 3)) + 60 * label
        path = root / CLASSES[label] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("support"), 30, seed=0)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("unseen"), 24, seed=1)


def run_json(capsys: pytest.CaptureFixture[str], *args: str | Path) -> dict:
    assert main([*map(str, args), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def failure(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    assert main([*map(str, args)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_search_prints_the_job_object(tiny_base_set: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    job = run_json(capsys, "search", tiny_base_set, folder)
    contract = (
        "job deployment state version previous_version candidate_version coefficients support accuracy search reason"
    )
    assert set(contract.split()) <= set(job)
    assert job["job"] is job["deployment"] is job["version"] is None
    assert job["state"] in ("promoted", "kept")
    assert job["reason"]
    assert job["support"] == {"n": 30, "unlabelled": 0, "per_class": {"cat": 10, "dog": 10, "ship": 10}}
    assert {"current", "candidate", "interval", "p_value"} <= set(job["accuracy"])
    assert {"strategy", "candidates", "image_forwards", "seconds"} <= set(job["search"])
    assert job["ingredients"].keys() == job["coefficients"].keys() == {"linf", "nominal", "l2", "l1"}


def test_an_archive_gives_the_same_answer(
    tiny_base_set: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "support.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
    ours, theirs = (run_json(capsys, "search", tiny_base_set, source) for source in (path, folder))
    assert ours["coefficients"] == theirs["coefficients"]
    assert ours["accuracy"] == theirs["accuracy"]


def test_search_writes_soup_report_and_plot(
    tiny_base_set: Path, folder: Path, unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    args = ("search", tiny_base_set, folder, "--test", unseen, "--n", "20", "--promote", "always", "--out", out)
    job = run_json(capsys, *args)
    assert job["state"] == "promoted"
    assert job["support"]["n"] == 20
    assert job["test"]["n"] == 24
    soup, report = read_soup(out / "soup.json"), read_report(out / "report.json")
    assert soup.coefficients == job["coefficients"]
    assert report.outcome == soup.evidence
    assert len(report.candidates) == job["search"]["candidates"] <= 1 + 10 + 4 + 6 * 6
    with Image.open(out / "report.png") as picture:
        assert picture.width > picture.height > 300
    redrawn = run_json(capsys, "plot", out / "report.json", "--out", tmp_path / "again.svg")
    assert Path(redrawn["plot"]).read_text().startswith("<?xml")
    assert main(["plot", str(out / "report.json"), "--out", str(tmp_path / "again.svg")]) == 0
    assert "accuracy" in (printed := capsys.readouterr().out)
    assert printed.endswith(f"wrote {tmp_path / 'again.svg'}\n")
    assert "already exists" in failure(capsys, *args)
    evaluated = run_json(capsys, "evaluate", tiny_base_set, unseen, "--soups", out / "soup.json")
    assert evaluated["accuracy"][str(out / "soup.json")] == pytest.approx(job["test"]["candidate"])
    assert evaluated["accuracy"]["default"] == pytest.approx(job["test"]["current"])
    assert evaluated["accuracy"]["l2"] == pytest.approx(job["test"]["ingredients"]["l2"])


def test_rungs_and_unlabelled_images(
    tiny_base_set: Path, folder: Path, unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    alone = run_json(capsys, "search", tiny_base_set, folder, "--rungs")
    assert alone["patch"] is None
    assert alone["search"]["image_forwards"] <= 23 * 30
    out = tmp_path / "out"
    args = ("search", tiny_base_set, folder, "--rungs", "statistics", "--unlabelled", unseen, "--out", out)
    job = run_json(capsys, *args)
    assert job["support"]["unlabelled"] == 24
    soup = read_soup(out / "soup.json")
    assert (job["patch"] is None) == (soup.patch is None) == (not (out / "patch.safetensors").exists())
    assert main(["search", str(tiny_base_set), str(folder), "--rungs", "statistics", "--unlabelled", str(unseen)]) == 0
    assert "30 images of 3 classes; 24 unlabelled" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert "expected images" in failure(capsys, "search", tiny_base_set, folder, "--unlabelled", tmp_path / "empty")
    assert "expected images" in failure(capsys, "search", tiny_base_set, folder, "--unlabelled", folder)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "note.jpg").write_text("no picture")
    assert "note.jpg" in failure(capsys, "search", tiny_base_set, folder, "--unlabelled", tmp_path / "bad")


def test_search_starts_from_a_given_soup(
    tiny_base_set: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    manifest = read_manifest(tiny_base_set)
    current = make_soup(manifest, {"linf": 0.0, "nominal": 0.0, "l2": 0.0, "l1": 1.0})
    write_soup(tmp_path / "soup.json", current)
    job = run_json(capsys, "search", tiny_base_set, folder, "--current", tmp_path / "soup.json")
    assert job["accuracy"]["current"] == job["ingredients"]["l1"]
    assert main(["search", str(tiny_base_set), str(folder), "--seed", "1"]) == 0
    assert "on the support images" in capsys.readouterr().out


def test_images_of_the_test_set_are_refused(
    tiny_base_set: Path, folder: Path, unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    mixed = shutil.copytree(unseen, tmp_path / "mixed")
    shutil.copy(folder / "dog" / "001.png", mixed / "dog" / "copied.png")
    message = failure(capsys, "search", tiny_base_set, folder, "--test", mixed)
    assert "1 of 30 support images are also in the test set" in message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--step", "0.3"], "1 divided by a whole number"),
        (["--current", "missing.json"], "missing.json"),
        (["--test", "missing"], "missing: expected a folder"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(
    tiny_base_set: Path, folder: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    import torch

    if "cuda" in args and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert message in failure(capsys, "search", tiny_base_set, folder, *args)


def test_values_out_of_range_are_one_line_and_exit_code_2(
    tiny_base_set: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert "greater than or equal to 1" in failure(capsys, "search", tiny_base_set, folder, "--n", "0")


def test_bad_folders_are_one_line_and_exit_code_2(
    tiny_base_set: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert "expected a folder" in failure(capsys, "search", tiny_base_set, tmp_path / "missing")
    assert "manifest" in failure(capsys, "search", tmp_path, folder)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "cat" / "note.jpg").write_text("not an image")
    assert "cat/note.jpg: expected an image file" in failure(capsys, "search", tiny_base_set, broken)
    (broken / "cat" / "note.jpg").unlink()
    shutil.move(broken / "cat", broken / "frog")
    assert "expected a folder named one of the classes" in failure(capsys, "search", tiny_base_set, broken)
    (tmp_path / "report.json").write_text("{}")
    assert "expected the report of a search" in failure(capsys, "plot", tmp_path / "report.json")


@pytest.fixture
def bases_of_folder(tiny_base_set: Path, tmp_path: Path) -> Path:
    """A base set whose recipe says that it was trained on the folder `data` beside it."""
    bases = shutil.copytree(tiny_base_set, tmp_path / "bases")
    manifest = read_manifest(bases)
    for part, n in (("train", 9), ("validation", 60), ("test", 9)):
        make_folder(tmp_path / "data" / part, n, seed=n)
    recipe = {"data": {"source": "folder", "path": str(tmp_path / "data"), "num_validation": 0}}
    provenance = manifest.provenance.model_copy(update={"recipe": recipe})
    rewrite_manifest(bases, manifest.model_copy(update={"provenance": provenance}))
    return bases


def test_default_makes_the_best_soup_the_manifests(
    bases_of_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bases, manifest = bases_of_folder, read_manifest(bases_of_folder)
    found = run_json(capsys, "default", bases)
    written = read_manifest(bases)
    assert written.digest == found["digest"]
    assert written.default_coefficients == found["after"]["coefficients"]
    assert written.default_temperature == found["after"]["temperature"]
    assert written.ingredients == manifest.ingredients
    assert found["after"]["log_loss"] <= found["before"]["log_loss"]
    assert found["n"] == 60
    evaluated = run_json(capsys, "evaluate", bases, tmp_path / "data" / "validation")
    assert evaluated["accuracy"]["default"] == found["after"]["accuracy"]
    assert evaluated["log_loss"]["default"] == pytest.approx(found["after"]["log_loss"])
    assert default_soup(written).coefficients == written.default_coefficients


def test_default_decodes_no_image_but_those_it_chooses_by(
    bases_of_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    validation = find_files(tmp_path / "data" / "validation", read_manifest(bases_of_folder).input)
    used = set(validation.subset(balanced_indices(validation.labels, 30, seed=0)).files)
    others = set((tmp_path / "data").rglob("*.png")) - used
    assert len(others) == 9 + 30 + 9
    for file in others:
        file.write_text("not an image")
    assert run_json(capsys, "default", bases_of_folder, "--n", "30")["n"] == 30
    assert "expected an image file" in failure(capsys, "default", bases_of_folder, "--n", "31")


def test_default_refuses_data_of_other_classes(tiny_base_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bases = shutil.copytree(tiny_base_set, tmp_path / "bases")
    before = (bases / "manifest.json").read_bytes()
    assert "expected data with the classes" in failure(capsys, "default", bases)
    assert (bases / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("command", ["search", "evaluate", "default", "plot", "fronts"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]):
    assert main([command, "--help"]) == 0
    assert "Example: saucier" in capsys.readouterr().out


def test_one_ingredient_is_evaluated_but_not_searched(
    base_set_factory: Callable[..., Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bases = base_set_factory(tmp_path / "bases", names=("linf",))
    for args in (("search", bases, folder), ("default", bases)):
        message = failure(capsys, *args)
        assert "at least 2 ingredients to mix, it has only 'linf'; train others with `saucier train" in message
    accuracy = run_json(capsys, "evaluate", bases, folder)["accuracy"]
    assert accuracy["linf"] == accuracy["default"]


def test_auto_effort_is_full_on_the_command_line(tmp_path: Path):
    assert SearchCommand(bases=tmp_path, folder=tmp_path)._config().effort == "full"
    for said, meant in (("auto", "full"), ("full", "full"), ("quick", "quick")):
        assert SearchCommand(bases=tmp_path, folder=tmp_path, effort=said)._config().effort == meant


def test_effort_is_one_of_three(tiny_base_set: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run_json(capsys, "search", tiny_base_set, folder, "--effort", "quick")["state"] in ("kept", "promoted")
    assert "expected 'quick', 'full' or 'auto', got 'slow'" in failure(
        capsys, "search", tiny_base_set, folder, "--effort", "slow"
    )
