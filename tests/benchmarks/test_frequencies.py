from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.frequencies.__main__ import Frequencies, claim
from benchmarks.frequencies.trials import draw_pictures, mixture
from tests.conftest import CLASSES
from training.data import ImageSet


@pytest.mark.parametrize("shape", ["even", "zipf", "four"])
def test_mixtures_are_frequencies_in_another_order_for_each_seed(shape: str) -> None:
    found = [mixture(shape, 10, seed=seed) for seed in range(3)]
    for each in found:
        assert each.sum() == pytest.approx(1)
        assert sorted(each) == pytest.approx(sorted(found[0]))
    assert np.count_nonzero(found[0]) == (4 if shape == "four" else 10)
    assert (shape == "even") == np.allclose(found[0], found[1])


def pictures(n: int) -> ImageSet:
    images = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return ImageSet(images, np.arange(n) % 3, CLASSES, tuple(map(str, range(n))))


def test_parts_share_no_picture_and_have_the_frequencies() -> None:
    data = pictures(3000)
    frequencies = np.asarray([0.7, 0.3, 0.0])
    found = draw_pictures(data, frequencies, n=100, m=300, n_unseen=400, seed=1)
    assert (len(found.labelled), len(found.stream), len(found.unseen)) == (100, 300, 400)
    assert not set(found.labelled.hashes) & set(found.unseen.hashes)
    shares = np.bincount(found.unseen.labels, minlength=3) / 400
    np.testing.assert_allclose(shares, frequencies, atol=0.08)
    with pytest.raises(ValueError, match=r"pictures of 'cat', got 20: ask for fewer"):
        draw_pictures(pictures(60), np.asarray([1.0, 0.0, 0.0]), n=10, m=10, n_unseen=10, seed=0)


def test_the_claim_wants_a_gain_where_frequencies_changed_and_no_loss_where_not() -> None:
    def row(case: str, gain: float) -> dict[str, object]:
        return {"case": case, "ladder": 0.6, "frequencies": 0.6 + gain}

    assert claim([row("fog, even", -0.004), row("fog, zipf", 0.05)])
    assert not claim([row("fog, even", -0.02), row("fog, zipf", 0.05)])
    assert claim([row("fog, even", 0.0), row("fog, zipf", 0.05), row("natural4, natural", -0.01)])
    assert not claim([row("fog, even", 0.0), row("fog, zipf", 0.005), row("natural4, natural", -0.01)])


def test_the_benchmark_measures_reports_and_goes_on(tiny_base_set: Path, tmp_path: Path) -> None:
    for label in CLASSES:
        place = tmp_path / "data" / "test" / label
        place.mkdir(parents=True)
        for number in range(130):
            pixels = np.random.default_rng([number, CLASSES.index(label)]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    asked = Frequencies(
        base=tiny_base_set,
        data=tmp_path / "data",
        shifts=("fog",),
        n=("20",),
        unlabelled=("50",),
        n_test=50,
        draws=1,
        work=tmp_path / "work",
        out=tmp_path / "out",
    )
    data = asked.execute().data
    assert [row["case"] for row in data["cases"]] == ["fog, even", "fog, zipf", "fog, four"]
    assert "# Class frequencies" in (tmp_path / "out" / "REPORT.md").read_text()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "work").iterdir()}
    assert asked.execute().data["cases"] == data["cases"]
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "work").iterdir()} == before
