"""Scales and shifts, trained on images with labels and without."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from adapt.documents.soup import default_soup
from adapt.images.support import Support
from adapt.networks.forward import served_logits
from adapt.networks.network import Cancelled
from adapt.networks.prepared import PreparedBase
from adapt.rungs import stream
from adapt.rungs.certainty import Guard
from adapt.rungs.mixture import Mixture
from adapt.rungs.pool import Library
from adapt.rungs.registry import LADDER
from adapt.rungs.stream import SHARES, TEMPERATURES, Stream, norm_affines
from adapt.rungs.task import Part, Task
from adapt.search import trials
from adapt.search.config import SearchConfig
from adapt.search.grid import lattice
from adapt.search.search import search
from adapt.search.selection import TOO_SLOW, Selected, select
from adapt.search.surrogate import search_surrogate
from adapt.search.unlabelled import recalibrate
from tests.adapt.pictures import coloured, noise, swapped

ALL = ("statistics", "head", "stream")
FULL = SearchConfig(effort="full", rungs=ALL)


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    """Tiny networks learn at a higher rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "LEARNING_RATE", 1e-2)
        yield


@pytest.fixture(scope="module")
def prepared(tinted: PreparedBase) -> PreparedBase:
    return tinted


@pytest.fixture(scope="module")
def pictures(prepared: PreparedBase) -> Support:
    return swapped(coloured(90, prepared.manifest.class_names))


@pytest.fixture(scope="module")
def unlabelled(prepared: PreparedBase) -> np.ndarray:
    return swapped(coloured(210, prepared.manifest.class_names, seed=9)).images


def chosen(task: Task, rungs: tuple[str, ...]) -> Selected:
    library = Library(task, search_surrogate(task, lattice("affine")))
    return select(library, [LADDER[name](library) for name in rungs])


def fitted(task: Task) -> tuple[Library, Part, list]:  # type: ignore[type-arg]
    library = Library(task, search_surrogate(task, lattice("affine")))
    whole = Part(np.ones(len(task.support), dtype=np.bool_), library.pool.eligible)
    return library, whole, list(Stream(library).fit(Mixture(library).fit(whole), whole))


def test_only_scales_and_shifts_and_statistics_are_in_the_patch_and_what_was_judged_is_what_is_served(
    prepared: PreparedBase, pictures: Support, unlabelled: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "is_better", lambda *_: True)
    monkeypatch.setattr(trials, "HOPELESS", 1e9)
    config = SearchConfig(effort="full", rungs=("stream",))
    found = search(prepared, pictures, config, current=default_soup(prepared.manifest), unlabelled=unlabelled)
    assert found.soup.patch is not None
    assert found.soup.patch.rungs == ("stream",)
    assert found.soup.patch.recalibrated == len(pictures) + len(unlabelled)
    tensors = found.soup.patch.tensors()
    affines = set(norm_affines(prepared.model("raw").net))
    assert affines < set(tensors)
    assert all(key in affines or "running_" in key for key in tensors)
    everything = np.ones(len(pictures), dtype=np.bool_)
    served = served_logits(prepared, found.soup, pictures.images) / found.soup.temperature
    torch.testing.assert_close(served, found.choice.logits(everything), rtol=1e-3, atol=1e-4)


def test_it_helps_where_scales_and_shifts_can(
    prepared: PreparedBase, pictures: Support, unlabelled: np.ndarray
) -> None:
    current = default_soup(prepared.manifest)
    config = SearchConfig(effort="full", rungs=("stream",))
    found = search(prepared, pictures, config, current=current, unlabelled=unlabelled)
    plain = search(prepared, pictures, SearchConfig(rungs=()), current=current)
    assert found.choice.rungs == ("stream",)
    unseen = swapped(coloured(400, prepared.manifest.class_names, seed=5))
    after, before = (
        float((served_logits(prepared, one.soup, unseen.images).argmax(1).numpy() == unseen.labels).mean())
        for one in (found, plain)
    )
    assert after > before + 0.05


def test_it_is_not_taken_where_nothing_can_be_learned(prepared: PreparedBase) -> None:
    nothing = noise(90, prepared.manifest.class_names, seed=3)
    more = noise(200, prepared.manifest.class_names, seed=4).images
    found = search(prepared, nothing, FULL, current=default_soup(prepared.manifest), unlabelled=more)
    assert found.outcome.state == "kept"


def test_shares_lie_between_the_start_and_what_was_trained(
    prepared: PreparedBase,
    pictures: Support,
    unlabelled: np.ndarray,
    task_for: Callable[..., Task],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "SHARES", (0.0, 0.5, 1.0))
    _, _, models = fitted(task_for(prepared, pictures, unlabelled=unlabelled, bn_mode="raw"))
    start, half, trained = models[:: len(TEMPERATURES)]
    weights = prepared.model("raw")
    weights.set(start.coefficients, None)
    for key in norm_affines(weights.net):
        np.testing.assert_allclose(start.tensors[key], weights.net.get_parameter(key).numpy(), rtol=1e-5, atol=1e-6)
        middle = (start.tensors[key] + trained.tensors[key]) / 2
        np.testing.assert_allclose(half.tensors[key], middle, rtol=1e-4, atol=1e-6)
    assert any((start.tensors[key] != trained.tensors[key]).any() for key in norm_affines(weights.net))


def test_variants_are_every_share_at_every_temperature_and_share_their_answers(
    prepared: PreparedBase, pictures: Support, unlabelled: np.ndarray, task_for: Callable[..., Task]
) -> None:
    library, whole, models = fitted(task_for(prepared, pictures, unlabelled=unlabelled, bn_mode="raw"))
    assert len(models) == Stream(library).num_variants == len(SHARES) * len(TEMPERATURES)
    for model in models:
        model.answer(whole.images)
    before = library.image_forwards
    assert models[1].temperature == pytest.approx(models[0].temperature * TEMPERATURES[1])
    torch.testing.assert_close(models[0].answer(whole.images), models[1].answer(whole.images))
    assert library.image_forwards == before


def test_what_collapses_leaves_the_model_below(
    prepared: PreparedBase,
    pictures: Support,
    unlabelled: np.ndarray,
    task_for: Callable[..., Task],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Guard, "see", lambda guard, _: setattr(guard, "has_collapsed", True))
    library, whole, models = fitted(task_for(prepared, pictures, unlabelled=unlabelled, bn_mode="raw"))
    below = Mixture(library).fit(whole)
    assert all(model.rungs == () and model.coefficients == below.coefficients for model in models)
    assert len(models) == len(SHARES) * len(TEMPERATURES)


def test_what_a_fold_is_answered_by_knows_nothing_of_its_labels(
    prepared: PreparedBase,
    pictures: Support,
    unlabelled: np.ndarray,
    task_for: Callable[..., Task],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it is taken, and which variant, may: see `Rung.num_parts`. So one is taken, whatever they say."""
    monkeypatch.setattr(trials, "HOPELESS", 1e9)
    monkeypatch.setattr(trials.Trial, "best", lambda trial, _: trials.Choice(trial, 1, 1.0))
    task = task_for(prepared, pictures, unlabelled=unlabelled, recalibrate=True)
    before = chosen(task, ALL)
    assert all("stream" in model.rungs for model in (before.model, *before.without))
    labels = pictures.labels.copy()
    labels[task.folds == 3] = 0
    after = chosen(replace(task, support=replace(pictures, labels=labels)), ALL)
    for fold in range(5):
        held_out = task.held_out_parts()[fold]
        same = torch.equal(before.without[fold].answer(held_out), after.without[fold].answer(held_out))
        assert same == (fold in (2, 3))  # folds 2 and 3 are held out together


def test_training_is_repeatable_and_sees_every_image_without_a_label(
    prepared: PreparedBase, pictures: Support, unlabelled: np.ndarray, task_for: Callable[..., Task]
) -> None:
    task = task_for(prepared, pictures, unlabelled=unlabelled, bn_mode="raw")
    (_, _, once), (_, _, again) = fitted(task), fitted(task)
    others = unlabelled.copy()
    others[-1] = 255 - others[-1]
    _, _, changed = fitted(replace(task, unlabelled=others))
    keys = norm_affines(prepared.model("raw").net)
    assert all(np.array_equal(once[-1].tensors[key], again[-1].tensors[key]) for key in keys)
    assert any(not np.array_equal(once[-1].tensors[key], changed[-1].tensors[key]) for key in keys)


def test_few_images_and_a_missing_class_are_refused(
    prepared: PreparedBase, pictures: Support, unlabelled: np.ndarray
) -> None:
    current = default_soup(prepared.manifest)
    few = pictures.subset(np.arange(79))
    many = swapped(coloured(150, prepared.manifest.class_names))
    two = many.subset(np.flatnonzero(many.labels != 0))

    def not_tried(support: Support, more: np.ndarray | None) -> str:
        found = search(prepared, support, FULL, current=current, unlabelled=more)
        assert "stream" not in found.choice.rungs
        return found.outcome.not_tried.get("stream", "")

    assert not_tried(pictures, None) == "expected at least 200 images without labels, got 0"
    assert not_tried(pictures, unlabelled[:199]) == "expected at least 200 images without labels, got 199"
    assert not_tried(few, unlabelled) == "expected at least 80 labelled images, got 79"
    assert not_tried(two, unlabelled).startswith("expected labelled images of all 3 classes, got 2")
    quick = search(prepared, pictures, SearchConfig(rungs=ALL), current=current, unlabelled=unlabelled)
    assert quick.outcome.not_tried["stream"] == TOO_SLOW


def test_it_stops_within_a_step(prepared: PreparedBase, pictures: Support, unlabelled: np.ndarray) -> None:
    told: list[str] = []
    with pytest.raises(Cancelled):
        search(
            prepared,
            pictures,
            FULL,
            current=default_soup(prepared.manifest),
            unlabelled=unlabelled,
            progress=lambda _, message: told.append(message),
            should_stop=lambda: any("scales and shifts" in message for message in told),
        )
    assert sum("scales and shifts" in message for message in told) == 1


def test_networks_without_batchnorm_are_trained_and_not_recalibrated_apart(
    prepared_moments: PreparedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments of the ingredients would undo the scales that training has found."""
    monkeypatch.setattr(Stream, "is_better", lambda *_: True)
    monkeypatch.setattr(trials, "HOPELESS", 1e9)
    names = prepared_moments.manifest.class_names
    more = coloured(200, names, seed=2).images
    current = default_soup(prepared_moments.manifest)
    config = SearchConfig(effort="full", rungs=("stream",))  # with a fitted layer, all answers would soon be sure
    found = search(prepared_moments, coloured(90, names), config, current=current, unlabelled=more)
    assert found.choice.rungs == ("stream",)
    with pytest.raises(ValueError, match="roll back first"):
        recalibrate(prepared_moments, more, current=found.soup)
