"""The benchmark of pictures without labels, on tiny networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.networks.prepared import PreparedBase
from adapt.networks.recalibration import Recalibrator
from benchmarks.streams.__main__ import Streams
from benchmarks.streams.affines import train
from benchmarks.streams.measure import Record, measure
from benchmarks.streams.report import summary, tune, winners
from benchmarks.streams.robust import MedianBase, balanced, feature_shift, median_moments, restated
from benchmarks.streams.start import Chosen, Pictures, climb, draw_pictures
from benchmarks.streams.variants import GATED, IDEAS, LABELS, MEDIANS, PICKED, VARIANTS, Variant
from tests.adapt.pictures import coloured
from tests.conftest import CLASSES
from training.bases import load_base_set
from training.data import ImageSet

BASES = ("tiny_base_set", "tiny_moments_base_set")


@pytest.fixture(scope="module")
def everything() -> ImageSet:
    support = coloured(300, CLASSES)
    return ImageSet(support.images, support.labels, CLASSES, support.hashes)


@pytest.fixture(scope="module")
def pictures(everything: ImageSet) -> Pictures:
    return draw_pictures(everything, everything, n=40, m=70, most=140, n_test=90, seed=0)


@pytest.fixture(params=BASES)
def prepared(request: pytest.FixtureRequest) -> PreparedBase:
    return PreparedBase(load_base_set(request.getfixturevalue(request.param)))


@pytest.fixture
def chosen(prepared: PreparedBase, pictures: Pictures) -> Chosen:
    return Chosen.of(prepared, climb(prepared, pictures, seed=0), pictures.labelled.labels).opened(pictures)


# The pictures.


def test_no_picture_has_two_parts_and_a_longer_stream_begins_with_the_shorter_one(everything: ImageSet) -> None:
    few, many = (draw_pictures(everything, everything, n=40, m=m, most=140, n_test=90, seed=3) for m in (30, 100))
    parts = [many.labelled.images, many.stream, many.unseen.images, many.source]
    found = {pixels.tobytes() for part in parts for pixels in part}
    assert len(found) == sum(map(len, parts)) == 300
    assert np.array_equal(few.stream, many.stream[:30])
    assert few.labelled.hashes == many.labelled.hashes
    assert few.unseen.hashes == many.unseen.hashes
    with pytest.raises(ValueError, match="expected 340 different pictures, got 300"):
        draw_pictures(everything, everything, n=40, m=100, most=140, n_test=200, seed=3)


# Norm affines.


@pytest.mark.parametrize("idea", [f"eata + {LABELS}", "roid", f"roid + {LABELS}", LABELS])
def test_training_moves_scales_and_shifts_alone_and_half_the_way_is_half_of_it(
    chosen: Chosen, pictures: Pictures, idea: str
) -> None:
    found = {
        (step, share): tensors
        for step, share, tensors in train(chosen, pictures, idea, lr=1e-2, steps=[2, 4], shares=[0.0, 0.5, 1], seed=0)
    }
    net = chosen.prepared.model("raw").net
    assert set(found) == {(step, share) for step in (2, 4) for share in (0.0, 0.5, 1)}
    for name, start in found[4, 0.0].items():
        assert start.ndim == 1
        assert name in dict(net.named_parameters())
        np.testing.assert_allclose(found[4, 0.5][name], (start + found[4, 1][name]) / 2, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(start, found[2, 0.0][name])
    assert any((found[4, 1][name] != found[4, 0.0][name]).any() for name in found[4, 1])
    untouched = chosen.run(pictures.unseen.images)
    torch.testing.assert_close(
        chosen.run(pictures.unseen.images, found[2, 0.0]).logits, untouched.logits, rtol=1e-4, atol=1e-4
    )


def test_what_collapses_is_the_start_again(chosen: Chosen, pictures: Pictures) -> None:
    found = list(train(chosen, pictures, "roid", lr=1e3, steps=[1, 40], shares=[0.0, 1.0], seed=0))
    (_, _, start), (_, _, first), _, (_, _, last) = found
    assert any((first[name] != start[name]).any() for name in start)
    for name in start:
        np.testing.assert_array_equal(last[name], start[name])


# Statistics and features.


def test_medians_are_those_of_the_images_and_one_odd_image_moves_them_little() -> None:
    x = torch.randn(41, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = median_moments(x)
    torch.testing.assert_close(found.mean, x.mean(dim=(2, 3)).median(dim=0).values)
    torch.testing.assert_close(found.var, (x - found.mean[:, None, None]).square().mean(dim=(0, 2, 3)))
    odd = x.clone()
    odd[0] = 1000.0
    assert (median_moments(odd).mean - found.mean).abs().max() < 0.2
    assert median_moments(x[:, :, 0, 0]).mean.shape == (3,)


@pytest.mark.parametrize("name", BASES)
def test_a_median_base_recalibrates_to_other_statistics(
    name: str, request: pytest.FixtureRequest, pictures: Pictures
) -> None:
    base = load_base_set(request.getfixturevalue(name))
    row = np.asarray([[1.0, 0, 0, 0]])
    runs = [kind(base).run(row, pictures.stream, recalibrate=True) for kind in (PreparedBase, MedianBase)]
    (means,), (medians,) = (run.statistics for run in runs)
    assert means is not None
    assert medians is not None
    assert means.keys() == medians.keys()
    assert any(not np.allclose(means[key], medians[key]) for key in means)
    assert isinstance(MedianBase(base).recalibrator, Recalibrator)


def test_a_balanced_pick_has_at_most_its_share_of_every_class_and_the_surest() -> None:
    generator = np.random.default_rng(0)
    stream = generator.integers(0, 255, (60, 4, 4, 3), dtype=np.uint8)
    logits = torch.zeros(60, 3)
    logits[:50, 0] = torch.linspace(1, 9, 50)
    logits[50:55, 1], logits[55:, 2] = 2.0, 2.0
    kept = balanced(stream, logits)
    assert len(kept) == 10 + 5 + 5
    assert np.array_equal(kept, stream[40:])


def test_the_feature_shift_of_the_same_pictures_is_what_their_statistics_differ_by(
    prepared: PreparedBase, pictures: Pictures
) -> None:
    row = (1.0, 0.0, 0.0, 0.0)
    layer = prepared.head(row)
    assert layer is not None
    statistics = prepared.run(np.asarray([row]), pictures.stream, recalibrate=True).statistics[0]
    assert statistics is not None
    same = pictures._replace(source=pictures.stream)
    adapted = Chosen(prepared, row, prepared.canonical("raw"), statistics, 1.0, layer)
    assert feature_shift(adapted, same).abs().max() < 1e-3, "the mean feature is the same"
    bare = Chosen(prepared, row, "folded", {}, 1.0, layer)
    logits = bare.run(pictures.stream).logits[0].double()
    expected = adapted.run(pictures.stream).logits[0].double().mean(dim=0) - logits.mean(dim=0)
    torch.testing.assert_close(feature_shift(bare, same), expected, rtol=1e-3, atol=1e-3)


# Records and report.


def record(shift: str, m: int, accuracy: dict[str, float]) -> Record:
    return Record(base_digest="x", shift=shift, n=20, m=m, draw=0, n_test=10, ladder=0.5, rungs=(), accuracy=accuracy)


def test_settings_are_the_best_on_the_shifts_they_are_tuned_on_and_winners_those_of_the_others() -> None:
    low, high = Variant(LABELS, 1e-3, 16, 0.5), Variant(LABELS, 1e-3, 32, 1.0)
    every = {variant.name: 0.5 for variant in VARIANTS}
    tuning = [record("fog", 200, every | {high.name: 0.6}), record("haze", 200, {LABELS: 0.9})]
    chosen = tune(tuning)
    assert chosen[LABELS] == high
    assert set(chosen) == set(IDEAS)
    assert set(tune([])) == {MEDIANS, PICKED, GATED}, "they have one setting"
    reported = [
        record(shift, 200, {low.name: 0.9, high.name: 0.51 + 0.01 * (shift == "snow"), MEDIANS: medians})
        for shift, medians in (("snow", 0.4), ("frost", 0.8), ("rain", 0.8), ("hail", 0.8))
    ]
    data = summary(tuning, reported, planned=4)
    assert data["gains"]["any, 200"][LABELS]["mean"] == pytest.approx(0.0125)
    assert winners(data) == [f"{LABELS}, 200 unlabelled"], "medians lose 10 points on snow"
    assert winners(summary(tuning, reported[:3], planned=4)) == [], "of three draws"


def test_the_same_statistics_again_are_what_the_ladder_chose(prepared: PreparedBase, pictures: Pictures) -> None:
    more = pictures._replace(labelled=coloured(60, CLASSES))
    found = climb(prepared, more, seed=0)
    chosen = Chosen.of(prepared, found, more.labelled.labels)
    if "statistics" not in found.choice.rungs:
        pytest.skip("the ladder chose none")
    again = restated(chosen, more, prepared, more.stream)
    own = chosen.run(more.unseen.images).logits[0]
    assert (again.argmax(dim=1) == own.argmax(dim=1)).float().mean() > 0.98


def test_only_what_is_wanted_is_measured(prepared: PreparedBase, pictures: Pictures) -> None:
    wanted = [Variant("roid", 1e-3, 16, 0.5), Variant(MEDIANS)]
    medians = MedianBase(prepared.base)
    found = measure(prepared, medians, pictures, wanted, shift="fog", draw=0)
    assert set(found.accuracy) == {variant.name for variant in wanted}
    assert (found.n, found.m, found.n_test) == (40, 70, 90)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    support = coloured(640, CLASSES)
    for number, (pixels, label) in enumerate(zip(support.images, support.labels, strict=True)):
        place = root / "test" / CLASSES[label] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return root


def test_the_benchmark_measures_reports_and_goes_on(tiny_base_set: Path, data: Path, tmp_path: Path) -> None:
    asked = Streams(
        base=tiny_base_set,
        data=data,
        tuned_on=("contrast",),
        shifts=("fog",),
        n=("30",),
        unlabelled=("40",),
        draws=1,
        n_test=60,
        gated=True,
        out=tmp_path / "out",
    )
    found = asked.execute().data
    assert set(found["gains"]["any, 40"]) == set(IDEAS)
    written = (tmp_path / "out" / "records.jsonl").read_bytes()
    assert asked.execute().data["gains"] == found["gains"]
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == written
    assert json.loads((tmp_path / "out" / "results.json").read_text())["gains"] == found["gains"]
    report = (tmp_path / "out" / "REPORT.md").read_text()
    assert all(f"| {idea} |" in report for idea in IDEAS)
    with pytest.raises(ValueError, match="expected others than are tuned on, got fog in both"):
        asked.model_copy(update={"tuned_on": ("fog",)}).execute()
