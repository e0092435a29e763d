"""The benchmarks of partial labels and of stage-wise coefficients, on tiny networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.networks.prepared import PreparedBase
from benchmarks.classes.__main__ import Classes
from benchmarks.classes.measure import choose
from benchmarks.stages.__main__ import Stages
from benchmarks.stages.measure import PULLS, START, stagewise
from benchmarks.stages.soups import MOST, StageSoups, descend, stage_of
from tests.adapt.pictures import coloured
from tests.conftest import CLASSES
from training.bases import load_base_set
from training.data import ImageSet

SHIFT = ("fog",)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 tinted pictures in folders."""
    root = tmp_path_factory.mktemp("data")
    support = coloured(300, CLASSES)
    for number, (pixels, label) in enumerate(zip(support.images, support.labels, strict=True)):
        place = root / "test" / CLASSES[label] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return root


def test_labelled_pictures_are_of_the_classes_drawn_and_unseen_ones_of_all() -> None:
    support = coloured(300, CLASSES)
    everything = ImageSet(support.images, support.labels, CLASSES, support.hashes)
    shown, labelled, test = choose(everything, classes=2, n=50, draw=1, n_test=90)
    assert len(shown) == 2
    assert np.bincount(support.labels[labelled], minlength=3)[shown].tolist() == [25, 25]
    assert len(labelled) == 50
    assert np.bincount(support.labels[test]).tolist() == [30, 30, 30]
    assert not set(labelled) & set(test)


def test_the_benchmark_of_partial_labels_measures_reports_and_goes_on(
    tiny_base_set: Path, data: Path, tmp_path: Path
) -> None:
    asked = Classes(
        base=tiny_base_set, data=data, shifts=SHIFT, classes=2, n=("50",), draws=2, n_test=90, out=tmp_path / "out"
    )
    found = asked.execute().data
    assert found["draws"] == 2
    for every, labelled, others in found["accuracy"]["50"].values():
        assert every == pytest.approx((2 * labelled + others) / 3, abs=0.01)
    written = (tmp_path / "out" / "classes.jsonl").read_bytes()
    assert asked.execute().data["accuracy"] == found["accuracy"]
    assert (tmp_path / "out" / "classes.jsonl").read_bytes() == written
    assert "2 of 3 classes have labels" in (tmp_path / "out" / "REPORT.md").read_text()
    with pytest.raises(ValueError, match="classes: expected fewer than the 3 of the base set, got 3"):
        Classes(base=tiny_base_set, data=data, classes=3).execute()


@pytest.mark.parametrize("name", ["tiny_base_set", "tiny_moments_base_set"])
def test_the_same_coefficients_in_every_stage_are_a_recalibrated_soup(
    name: str, request: pytest.FixtureRequest
) -> None:
    prepared = PreparedBase(load_base_set(request.getfixturevalue(name)))
    images = coloured(40, CLASSES).images
    row = np.asarray([1.25, -0.25, 0.0, 0.0])
    soups = StageSoups(prepared, images)
    logits = soups.set(np.tile(row, (len(soups.stages), 1)))
    expected = prepared.run(row[None], images, recalibrate=True)
    torch.testing.assert_close(logits, expected.logits[0], rtol=1e-3, atol=1e-3)
    said = soups.ask(images)
    torch.testing.assert_close(said.logits, expected.logits[0], rtol=1e-3, atol=1e-3)
    assert expected.features[0] is not None
    torch.testing.assert_close(said.features, expected.features[0], rtol=1e-3, atol=1e-3)


def test_stages_are_named_by_the_parts_of_a_network() -> None:
    assert stage_of("stem.0.weight") == "stem"
    assert stage_of("stages.1.blocks.0.norm.bias") == "stages.1"
    assert stage_of("blocks.3.attn.qkv.weight") == "blocks.3"
    assert stage_of("head.fc.weight") == "head"


def test_the_descent_finds_the_stage_that_matters_and_a_strong_pull_keeps_it_from_moving() -> None:
    start = np.tile(np.asarray([1.0, 0.0, 0.0]), (4, 1))

    def loss(coefficients: np.ndarray) -> float:
        return float(np.square(coefficients[2] - [0.5, 0.5, 0.0]).sum())

    found = descend(loss, start, pull=0.0)
    assert found[2].tolist() == [0.5, 0.5, 0.0]
    assert np.array_equal(np.delete(found, 2, axis=0), np.delete(start, 2, axis=0))
    assert np.array_equal(descend(loss, start, pull=10.0), start)
    together = descend(lambda c: -c[0, 1], start, pull=0.0, together=True)
    assert (together == together[0]).all()
    assert together.max() <= MOST


def test_the_benchmark_of_stages_measures_and_goes_on(tiny_base_set: Path, data: Path, tmp_path: Path) -> None:
    asked = Stages(base=tiny_base_set, data=data, shifts=SHIFT, n=50, draws=1, n_test=90, out=tmp_path / "out")
    found = asked.execute().data
    assert set(found["gains"]) >= {START, *map(stagewise, PULLS)}
    written = (tmp_path / "out" / "stages.jsonl").read_bytes()
    assert asked.execute().data["accuracy"] == found["accuracy"]
    assert (tmp_path / "out" / "stages.jsonl").read_bytes() == written
    assert stagewise(PULLS[0]) in (tmp_path / "out" / "REPORT.md").read_text()
