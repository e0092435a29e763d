import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from adapt.documents.soup import Soup, SoupError, check_soup, default_soup, make_soup, read_soup, write_soup
from training.bases import BaseSet

HALF = {"linf": 0.5, "nominal": 0.75, "l2": -0.25, "l1": 0.0}


def test_a_soup_survives_its_file(base: BaseSet, tmp_path: Path):
    soup = make_soup(base.manifest, HALF, bn_mode="raw", temperature=0.5)
    write_soup(tmp_path / "deep" / "soup.json", soup)
    assert read_soup(tmp_path / "deep" / "soup.json") == soup
    assert soup.vector(base.manifest) == [0.5, 0.75, -0.25, 0.0]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["soup.json"]


def test_the_default_soup_is_the_manifests(base: BaseSet):
    soup = default_soup(base.manifest)
    assert soup.coefficients == base.manifest.default_coefficients
    assert soup.temperature == base.manifest.default_temperature
    check_soup(soup, base.manifest)


@pytest.mark.parametrize(
    "change",
    [
        {"linf": 0.6},
        {"linf": float("nan")},
        {"linf": float("inf")},
        {"extra": 0.0},
    ],
)
def test_wrong_coefficients_are_refused(base: BaseSet, change: dict[str, float]):
    with pytest.raises(ValueError, match="coefficient"):
        make_soup(base.manifest, HALF | change)


def test_a_missing_ingredient_is_refused(base: BaseSet):
    with pytest.raises(ValueError, match="one coefficient for each of"):
        make_soup(base.manifest, {"linf": 1.0})


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_are_positive_and_finite(base: BaseSet, temperature: float):
    with pytest.raises(ValidationError, match="temperature"):
        make_soup(base.manifest, HALF, temperature=temperature)


def test_a_soup_of_another_base_set_is_refused(base: BaseSet, ln_base: BaseSet):
    soup = default_soup(ln_base.manifest)
    with pytest.raises(SoupError, match="tiny-ln"):
        check_soup(soup, base.manifest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a soup in JSON"),
        ("[]", "format_version"),
        ('{"format_version": 2}', "expected format_version 1, got 2"),
        ('{"format_version": 1}', "base_set: Field required"),
    ],
)
def test_a_malformed_file_is_named_in_one_line(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "soup.json"
    path.write_text(text)
    with pytest.raises(SoupError) as error:
        read_soup(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_field_is_refused(base: BaseSet):
    data = json.loads(default_soup(base.manifest).model_dump_json())
    with pytest.raises(ValidationError, match="surprise"):
        Soup.model_validate(data | {"surprise": 1})


def test_documents_images_and_evidence_leave_torch_alone():
    code = """
import importlib, pkgutil, sys
import adapt.documents, adapt.evidence, adapt.images
for package in (adapt.documents, adapt.evidence, adapt.images):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
