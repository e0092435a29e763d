"""Class frequencies: fair labels judge them, other labels have no say, and what is served is what was judged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapt.documents.soup import default_soup, read_soup, write_soup
from adapt.images.support import Support
from adapt.networks.forward import served_logits
from adapt.networks.prepared import PreparedBase
from adapt.rungs.frequencies import MIN_IMAGES, Frequencies
from adapt.rungs.model import Model
from adapt.rungs.pool import Library
from adapt.rungs.registry import LADDER
from adapt.rungs.task import Part, Task
from adapt.search.config import SearchConfig
from adapt.search.grid import lattice
from adapt.search.search import Search, search
from adapt.search.selection import select
from adapt.search.surrogate import search_surrogate
from adapt.search.unlabelled import recalibrate
from tests.adapt.pictures import coloured, uneven

OFTEN = (0.8, 0.15, 0.05)
HARD = {"spread": 110.0}  # tints that are hard to see: frequencies matter
RUNGS = ("statistics", "head", "frequencies")


@pytest.fixture(scope="module")
def prepared(tinted: PreparedBase) -> PreparedBase:
    return tinted


@pytest.fixture(scope="module")
def stream(prepared: PreparedBase) -> Support:
    """Images that are served; a search is not shown their labels."""
    return uneven(400, prepared.manifest.class_names, OFTEN, seed=50, **HARD)


@pytest.fixture(scope="module")
def labelled(prepared: PreparedBase) -> Support:
    return uneven(100, prepared.manifest.class_names, OFTEN, seed=60, **HARD)


def run(prepared: PreparedBase, support: Support, stream: Support | None, **config: object) -> Search:
    images = None if stream is None else stream.images
    settings = SearchConfig(**{"rungs": RUNGS, **config})  # type: ignore[arg-type]
    return search(prepared, support, settings, current=default_soup(prepared.manifest), unlabelled=images)


def accuracy(prepared: PreparedBase, found: Search, unseen: Support) -> float:
    said = served_logits(prepared, found.soup, unseen.images).argmax(dim=1).numpy()
    return float((said == unseen.labels).mean())


def test_fair_labels_take_the_rung_and_unseen_images_gain(
    prepared: PreparedBase, labelled: Support, stream: Support
) -> None:
    unseen = uneven(1000, prepared.manifest.class_names, OFTEN, seed=70, **HARD)
    plain = run(prepared, labelled, stream, rungs=("statistics",))
    found = run(prepared, labelled, stream, rungs=("statistics", "frequencies"), draw="fair")
    assert found.choice.rungs[-1] == "frequencies"
    assert accuracy(prepared, found, unseen) > accuracy(prepared, plain, unseen) + 0.03
    assert found.outcome.accuracy is not None
    assert abs(found.outcome.accuracy.candidate - accuracy(prepared, found, unseen)) < 0.1


def test_the_frequencies_are_reported_with_intervals_that_hold_them(
    prepared: PreparedBase, labelled: Support, stream: Support
) -> None:
    widths = {}
    for draw in ("any", "fair"):
        classes = run(prepared, labelled, stream, draw=draw).outcome.classes
        assert classes is not None
        assert [each.name for each in classes] == list(prepared.manifest.class_names)
        assert sum(each.estimated for each in classes) == pytest.approx(1, abs=1e-4)
        for each, truth in zip(classes, OFTEN, strict=True):
            assert each.low <= truth <= each.high
            assert each.expected == pytest.approx(1 / 3, abs=1e-4)
        widths[draw] = sum(each.high - each.low for each in classes)
    assert widths["fair"] < widths["any"]


def test_labels_that_are_no_fair_draw_neither_take_nor_refuse_frequencies(
    prepared: PreparedBase, stream: Support
) -> None:
    """Even labels and an uneven stream: the estimate is of the stream, the candidate as if there were no such rung."""
    even = coloured(100, prepared.manifest.class_names, seed=80, **HARD)
    found = run(prepared, even, stream)
    without = run(prepared, even, stream, rungs=("statistics", "head"))
    assert found.outcome.not_tried["frequencies"].startswith("draw=any:")
    assert found.soup.patch == without.soup.patch
    assert found.outcome.accuracy == without.outcome.accuracy
    classes = found.outcome.classes
    assert classes is not None
    assert classes[0].low > 0.5
    assert without.outcome.classes is None


def test_no_estimate_changes_with_the_shares_of_labels_that_are_no_fair_draw(
    prepared: PreparedBase, stream: Support
) -> None:
    names = prepared.manifest.class_names
    for shares in ((1 / 3, 1 / 3, 1 / 3), (0.1, 0.1, 0.8)):
        classes = run(prepared, uneven(150, names, shares, seed=81, **HARD), stream).outcome.classes
        assert classes is not None
        assert classes[0].estimated == pytest.approx(OFTEN[0], abs=0.12)


def test_what_was_judged_is_what_is_served_and_stored(
    prepared: PreparedBase, labelled: Support, stream: Support
) -> None:
    everything = np.ones(len(labelled), dtype=np.bool_)
    for rungs in (("frequencies",), ("statistics", "frequencies"), RUNGS):
        found = run(prepared, labelled, stream, rungs=rungs, draw="fair")
        assert "frequencies" in found.choice.rungs
        said = served_logits(prepared, found.soup, labelled.images) / found.soup.temperature
        torch.testing.assert_close(said, found.choice.logits(everything).float(), rtol=1e-3, atol=1e-3)
        assert found.choice.stream is not None
        heard = served_logits(prepared, found.soup, stream.images)
        torch.testing.assert_close(found.choice.stream().logits.float(), heard, rtol=1e-3, atol=1e-3)
        assert found.soup.patch is not None
        assert "frequencies" in found.soup.patch.rungs


def test_a_soup_with_frequencies_is_read_again_and_is_a_current_soup(
    prepared: PreparedBase, labelled: Support, stream: Support, tmp_path: Path
) -> None:
    found = run(prepared, labelled, stream, rungs=("frequencies",), draw="fair")
    path = tmp_path / "soup.json"
    write_soup(path, found.soup)
    kept = read_soup(path)
    assert kept == found.soup
    assert kept.evidence is not None
    assert kept.evidence.classes == found.outcome.classes
    fresh = uneven(100, prepared.manifest.class_names, OFTEN, seed=61, **HARD)
    again = search(prepared, fresh, SearchConfig(draw="fair"), current=kept, unlabelled=stream.images)
    assert again.outcome.accuracy is not None
    assert again.choice.rungs.count("frequencies") <= 1


@pytest.mark.slow
def test_without_a_shift_it_costs_about_nothing(prepared: PreparedBase) -> None:
    names = prepared.manifest.class_names
    unseen, stream = coloured(900, names, seed=90, **HARD), coloured(300, names, seed=91, **HARD)
    changes = []
    for seed in range(5):
        support = uneven(60, names, (1 / 3, 1 / 3, 1 / 3), seed=92 + seed, **HARD)
        with_it, without = (
            accuracy(prepared, run(prepared, support, stream, rungs=rungs, draw="fair"), unseen)
            for rungs in (RUNGS, ("statistics", "head"))
        )
        changes.append(with_it - without)
    assert np.mean(changes) > -0.01


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"draw": "any"}, "draw=any: "),
        ({"draw": "fair", "balance": True}, "every class is to count alike"),
        (
            {"draw": "fair", "few": True},
            f"expected at least {MIN_IMAGES} images, labelled or not, got {MIN_IMAGES - 1}",
        ),
    ],
)
def test_why_it_is_not_tried(prepared: PreparedBase, labelled: Support, change: dict[str, object], why: str) -> None:
    few = change.pop("few", False)
    support = labelled.subset(np.arange(MIN_IMAGES - 1)) if few else labelled
    outcome = run(prepared, support, None, rungs=("frequencies",), **change).outcome
    assert outcome.not_tried["frequencies"].startswith(why)
    is_told = change["draw"] == "fair" and not few
    assert (outcome.classes is not None) == is_told


def test_a_network_without_a_linear_last_layer_reports_and_is_left_as_it_is(
    prepared: PreparedBase, labelled: Support, stream: Support, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreparedBase, "head_key", None)
    outcome = run(PreparedBase(prepared.base), labelled, stream, rungs=("frequencies",), draw="fair").outcome
    assert outcome.not_tried == {"frequencies": "the network has no linear last layer"}
    assert outcome.classes is not None


def test_images_without_any_label_report_frequencies_with_wide_intervals(
    prepared: PreparedBase, labelled: Support, stream: Support
) -> None:
    current = default_soup(prepared.manifest)
    _, outcome = recalibrate(prepared, stream.images, current=current)
    assert outcome.classes is not None
    calibrated = run(prepared, labelled, stream).outcome.classes
    assert calibrated is not None
    assert sum(each.high - each.low for each in outcome.classes) > sum(each.high - each.low for each in calibrated)
    _, few = recalibrate(prepared, stream.images[: MIN_IMAGES - 1], current=current)
    assert few.classes is None
    # What an earlier search added to the biases is not counted again.
    shifted = run(prepared, labelled, stream, rungs=("frequencies",), draw="fair").soup
    assert shifted.patch is not None
    plain = shifted.model_copy(update={"patch": None, "temperature": prepared.manifest.default_temperature})
    found = [recalibrate(prepared, stream.images, current=soup)[1].classes for soup in (plain, shifted)]
    assert found[0] == found[1]


def selected(task: Task, rungs: tuple[str, ...]) -> tuple[Library, list[Model]]:
    library = Library(task, search_surrogate(task, lattice("affine")))
    found = select(library, [make(library) for name, make in LADDER.items() if name in rungs])
    return library, [*found.without, found.model]


def test_labels_of_a_fold_have_no_say_in_the_frequencies_that_answer_it(
    prepared: PreparedBase,
    labelled: Support,
    stream: Support,
    task_for: Callable[..., Task],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Frequencies, "is_better", lambda *_: True)
    folds = labelled.folds(5, seed=0, by_class=False)
    task = task_for(prepared, labelled, recalibrate=True, unlabelled=stream.images, folds=folds, draw="fair")
    _, before = selected(task, RUNGS)
    assert all("frequencies" in model.rungs for model in before)
    change = np.where(folds == 3, (labelled.labels + 1) % 3, labelled.labels)
    _, after = selected(replace(task, support=replace(labelled, labels=change)), RUNGS)

    def of(model: Model) -> tuple[float, dict[str, bytes]]:
        return model.temperature, {key: array.tobytes() for key, array in model.tensors.items()}

    assert of(after[3]) == of(before[3])
    assert of(after[0]) != of(before[0])


def test_first_layers_are_trained_with_the_frequencies_on_their_own_last_layer(
    prepared: PreparedBase, labelled: Support, stream: Support, task_for: Callable[..., Task]
) -> None:
    task = task_for(
        prepared,
        labelled,
        recalibrate=True,
        unlabelled=stream.images,
        folds=labelled.folds(5, seed=0, by_class=False),
        draw="fair",
    )
    library, models = selected(task, ("statistics", "frequencies"))
    below = models[-1]
    assert below.frequencies is not None
    early = LADDER["early"](library)
    whole = Part(np.ones(len(labelled), dtype=np.bool_), library.pool.eligible)
    assert early.refuse(below, whole) is None
    (model,) = early.fit(below, whole)
    key = f"{prepared.head_key}.bias"
    np.testing.assert_array_equal(model.tensors[key], below.tensors[key])
    assert model.frequencies is not None
    assert model.rungs == (*below.rungs, "early")


def test_folds_that_judge_frequencies_are_dealt_out_at_random(labelled: Support) -> None:
    by_class, at_random = (labelled.folds(5, seed=0, by_class=by_class) for by_class in (True, False))
    spreads = []
    for folds in (by_class, at_random):
        counts = np.stack([np.bincount(labelled.labels[folds == fold], minlength=3) for fold in range(5)])
        assert counts.sum(axis=1).tolist() == [20] * 5
        spreads.append(np.ptp(counts, axis=0).max())
    assert spreads[0] <= 1 < spreads[1]
