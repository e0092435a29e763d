import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.__main__ import main
from adapt.documents.soup import Soup, default_soup, make_soup
from adapt.images.support import Reference, Support
from adapt.networks.forward import served_logits
from adapt.networks.prepared import PreparedBase
from adapt.search.config import SearchConfig
from adapt.search.floor import check_floor
from adapt.search.search import search
from training.images import to_input

KNOWING, OTHER = "l2", "nominal"  # whose answers are the labels of the uploaded images, and of the reference


def pictures(n: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def labelled_by(prepared: PreparedBase, ingredient: str, n: int, *, seed: int) -> Support:
    pixels = pictures(n, seed=seed)
    with torch.no_grad():
        labels = prepared.base.model(ingredient)(torch.from_numpy(to_input(pixels))).argmax(dim=1).numpy()
    return Support(pixels, labels, tuple(f"{seed}-{i}" for i in range(n)), prepared.manifest.class_names)


@pytest.fixture(scope="module")
def upload(prepared: PreparedBase) -> Support:
    return labelled_by(prepared, KNOWING, 200, seed=1)


@pytest.fixture(scope="module")
def trusted(prepared: PreparedBase) -> Support:
    """Images whose right labels the default soup knows and what the upload asks for does not."""
    return labelled_by(prepared, next(iter(prepared.base.state_dicts)), 120, seed=2)


def accuracy_of(prepared: PreparedBase, soup: Soup, images: Support) -> float:
    return float((served_logits(prepared, soup, images.images).argmax(dim=1).numpy() == images.labels).mean())


def test_what_is_below_the_floor_is_kept_and_what_reaches_it_is_promoted(
    prepared: PreparedBase, upload: Support, trusted: Support
) -> None:
    current = default_soup(prepared.manifest)
    free = search(prepared, upload, SearchConfig(rungs=()), current=current)
    assert free.outcome.state == "promoted"
    assert free.outcome.reference is None
    found = accuracy_of(prepared, free.soup, trusted)
    assert found < 0.95
    for floor, state in ((found, "promoted"), (found + 0.01, "kept")):
        bounded = search(prepared, upload, SearchConfig(rungs=()), current=current, reference=Reference(trusted, floor))
        assert bounded.outcome.state == state
        assert bounded.soup.evidence == bounded.outcome
        check = bounded.outcome.reference
        assert check is not None
        assert (check.n, check.floor) == (120, floor)
        assert check.accuracy == pytest.approx(found)
        assert ("below the floor" in bounded.outcome.reason) == (state == "kept")


def test_always_promotes_and_says_what_the_reference_says(
    prepared: PreparedBase, upload: Support, trusted: Support
) -> None:
    reference = Reference(trusted, 1.0)
    current = default_soup(prepared.manifest)
    always = search(prepared, upload, SearchConfig(rungs=(), promote="always"), current=current, reference=reference)
    assert always.outcome.state == "promoted"
    assert always.outcome.reference is not None
    assert always.outcome.reference.accuracy < 1


def test_a_kept_candidate_stays_kept_with_its_own_reason(prepared: PreparedBase, trusted: Support) -> None:
    few = labelled_by(prepared, KNOWING, 4, seed=9)
    outcome = search(prepared, few, current=default_soup(prepared.manifest), reference=Reference(trusted, 1.0)).outcome
    assert outcome.state == "kept"
    assert "floor" not in outcome.reason


def test_the_reference_judges_what_would_be_served(prepared: PreparedBase, trusted: Support) -> None:
    names = prepared.manifest.ingredient_names
    soup = make_soup(prepared.manifest, {name: float(name == OTHER) for name in names})
    check, objection = check_floor(prepared, soup, Reference(trusted, 1.0))
    assert check.accuracy == pytest.approx(accuracy_of(prepared, soup, trusted))
    assert objection is not None


def test_a_reference_for_another_base_set_is_refused(prepared: PreparedBase, trusted: Support) -> None:
    small = replace(trusted, images=trusted.images[:, :8])
    with pytest.raises(ValueError, match="add the reference set again"):
        check_floor(prepared, default_soup(prepared.manifest), Reference(small, 0.5))


def write(support: Support, folder: Path) -> Path:
    for number, (pixels, label) in enumerate(zip(support.images, support.labels, strict=True)):
        place = folder / support.class_names[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def test_the_command_takes_a_reference(
    tiny_base_set: Path, upload: Support, trusted: Support, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["search", str(tiny_base_set), str(write(upload, tmp_path / "upload")), "--rungs", "--json"]
    reference = ["--reference", str(write(trusted, tmp_path / "trusted"))]
    assert main([*args, *reference, "--floor", "0.999"]) == 0
    job = json.loads(capsys.readouterr().out)
    assert job["state"] == "kept"
    assert "below the floor of 0.999" in job["reason"]
    assert main([*args, *reference]) == 2
    assert "expected both or none" in capsys.readouterr().err
