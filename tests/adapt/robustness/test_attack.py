import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.documents.patch import make_patch
from adapt.documents.soup import default_soup, make_soup, write_soup
from adapt.networks.forward import run_soups, served_logits
from adapt.networks.prepared import PreparedBase
from adapt.robustness.attack import Attack, classifier_of, parse_coefficients
from tests.conftest import CLASSES
from training.bases import load_base_set
from training.cli import run
from training.manifest import read_manifest

NAMES = ("linf", "nominal", "l2", "l1")
MIXED = "linf=-0.25,nominal=1,l2=0.5,l1=-0.25"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for index in range(8):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def attack(*args: object) -> int:
    return run([Attack], prog="attack", description="", args=[str(arg) for arg in args])


@pytest.mark.parametrize("bn_mode", ["folded", "raw"])
def test_the_attacked_soup_is_the_served_one(tiny_base_set: Path, bn_mode: str) -> None:
    base = load_base_set(tiny_base_set)
    numbers = [0.25, 0.25, 0.5, 0.0] if bn_mode == "raw" else [-0.25, 1, 0.5, -0.25]
    soup = make_soup(base.manifest, dict(zip(NAMES, numbers, strict=True)), bn_mode=bn_mode)
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logits = classifier_of(base, soup)(images)
    prepared = PreparedBase(base)
    served = prepared.model(bn_mode)
    served.set(numbers)
    torch.testing.assert_close(logits, served.net(prepared.normalise(images)), rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient.abs().max() > 0


def test_a_patch_is_attacked_too(
    tiny_base_set: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_base_set(tiny_base_set)
    prepared = PreparedBase(base)
    row = np.asarray([[1.25, -0.25, 0.25, -0.25]])
    pixels = np.random.default_rng(1).integers(90, 130, (40, 16, 16, 3), dtype=np.uint8)
    statistics = run_soups(prepared, row, pixels, recalibrate=True).statistics[0]
    assert statistics is not None
    numbers = dict(zip(NAMES, row[0].tolist(), strict=True))
    soup = make_soup(
        base.manifest, numbers, bn_mode="raw", patch=make_patch(statistics, recalibrated=40, rungs=["statistics"])
    )
    images = torch.from_numpy(pixels[:5].transpose(0, 3, 1, 2) / np.float32(255))
    with torch.no_grad():
        found = classifier_of(base, soup)(images)
    torch.testing.assert_close(found, served_logits(prepared, soup, pixels[:5]), rtol=1e-4, atol=1e-4)
    # What was found for one patch is not taken for what another survives.
    changed = {key: array + np.float32(1) for key, array in statistics.items()}
    other = make_soup(
        base.manifest, numbers, bn_mode="raw", patch=make_patch(changed, recalibrated=40, rungs=["statistics"])
    )
    path = tmp_path / "soup.json"
    args = [tiny_base_set, "--data", folder, "--n", 6, "--steps", 2, "--state", tmp_path / "state", "--soups", path]
    write_soup(path, soup)
    assert attack(*args) == 0
    write_soup(path, other)
    assert attack(*args) == 2
    assert "patch" in capsys.readouterr().err


def test_one_ingredient_alone_is_that_ingredient(
    tiny_base_set: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [tiny_base_set, "--data", folder, "--n", 24, "--steps", 3, "--json"]
    assert attack(*args, "--coefficients", "l2=1", "--bn-mode", "raw", "--only", "l2") == 0
    rows = json.loads(capsys.readouterr().out)["ingredients"]
    assert list(rows) == ["l2=1", "l2"]
    assert rows["l2=1"] == rows["l2"]


def test_soups_come_as_default_coefficients_and_files(
    tiny_base_set: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [tiny_base_set, "--data", folder, "--n", 6, "--steps", 2, "--json", "--state", tmp_path / "state"]
    assert attack(*args) == 0
    default = json.loads(capsys.readouterr().out)
    assert list(default["ingredients"]) == ["default"]
    path = tmp_path / "soup.json"
    write_soup(path, default_soup(read_manifest(tiny_base_set)))
    assert attack(*args, "--coefficients", MIXED, "--soups", path) == 0
    both = json.loads(capsys.readouterr().out)
    assert list(both["ingredients"]) == [str(path), MIXED]
    assert both["ingredients"][str(path)] == default["ingredients"]["default"]
    assert len(list((tmp_path / "state").iterdir())) == 3
    # The state of one soup is not that of another.
    (tmp_path / "state" / "default.jsonl").write_bytes(
        (tmp_path / "state" / f"{MIXED.replace(',', '-')}.jsonl").read_bytes()
    )
    assert attack(*args) == 2
    assert "state of another evaluation, with model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linf=1,linf=0", "ingredient given twice"),
        ("linff=1", "ingredient none of"),
        ("linf", "expected NAME=NUMBER"),
        ("linf=nan", "expected NAME=NUMBER"),
        ("", "ingredient none of"),
        ("linf=0.5,l2=0.4", "expected coefficients that sum to 1"),
    ],
)
def test_bad_coefficients_end_with_one_line_and_code_2(
    tiny_base_set: Path, folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    assert attack(tiny_base_set, "--data", folder, "--coefficients", text) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_not_named_is_zero() -> None:
    assert parse_coefficients("nominal = 1.25, linf=-.25", NAMES) == {"linf": -0.25, "nominal": 1.25, "l2": 0, "l1": 0}
