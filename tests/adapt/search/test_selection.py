"""What is selected without a fold must not depend on the fold's labels."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from adapt.images.support import Support
from adapt.networks.prepared import PreparedBase
from adapt.rungs.early import FirstLayers
from adapt.rungs.model import Answers, Model
from adapt.rungs.pool import Library, Pool
from adapt.rungs.registry import LADDER
from adapt.rungs.task import Part, Task
from adapt.search import trials
from adapt.search.grid import lattice
from adapt.search.selection import Selected, select
from adapt.search.surrogate import search_grid, search_surrogate
from tests.adapt.pictures import coloured, turned

SEARCHES: dict[str, Callable[[Task], Pool]] = {
    "grid": lambda task: search_grid(task, lattice("simplex", 0.25)),
    "surrogate": lambda task: search_surrogate(task, lattice("affine")),
}
NESTED: tuple[tuple[str, ...], ...] = ((), ("statistics",), ("head",), ("statistics", "head"))


def chosen(task: Task, strategy: str, rungs: Sequence[str]) -> Selected:
    library = Library(task, SEARCHES[strategy](task))
    return select(library, [make(library) for name, make in LADDER.items() if name in rungs])


def of(model: Model) -> tuple[tuple[float, ...], float, tuple[str, ...], dict[str, bytes]]:
    """Return what makes a model."""
    tensors = {key: array.tobytes() for key, array in model.tensors.items()}
    return model.coefficients, model.temperature, model.rungs, tensors


def spoilt(support: Support, held_out: np.ndarray, seed: int) -> Support:
    """Return the images with the labels of some of them changed at random."""
    change = np.random.default_rng(seed).integers(1, 3, len(support))
    return replace(support, labels=np.where(held_out, (support.labels + change) % 3, support.labels))


@pytest.fixture(scope="module")
def pictures(tinted: PreparedBase) -> Support:
    """Faded images, a third of which are labelled as the next class: every rung has something to do."""
    support = coloured(100, tinted.manifest.class_names, contrast=0.3, spread=60)
    return replace(support, labels=np.where(np.arange(100) % 2 == 0, turned(support).labels, support.labels))


@pytest.mark.parametrize("strategy", list(SEARCHES))
@pytest.mark.parametrize("rungs", NESTED, ids="+".join)
def test_labels_of_a_fold_have_no_say_in_what_is_selected_without_it(
    tinted: PreparedBase, pictures: Support, task_for: Callable[..., Task], strategy: str, rungs: tuple[str, ...]
) -> None:
    task = task_for(tinted, pictures, recalibrate="statistics" in rungs)
    before = chosen(task, strategy, rungs)
    assert len(before.without) == 5
    assert any(set(model.rungs) == set(rungs) for model in before.without), "or the test would say nothing of them"
    after = chosen(replace(task, support=spoilt(pictures, task.folds == 3, 0)), strategy, rungs)
    assert of(after.without[3]) == of(before.without[3])
    # Where they are known, labels do matter.
    assert any(of(after.without[fold]) != of(before.without[fold]) for fold in (0, 1, 2, 4))


def test_first_layers_trained_without_a_fold_know_nothing_of_its_labels(
    tinted: PreparedBase, pictures: Support, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether they are taken may: see `Rung.num_parts`. So they are taken here, whatever the answers."""
    monkeypatch.setattr(trials, "HOPELESS", 1e9)
    monkeypatch.setattr(FirstLayers, "is_better", lambda *_: True)
    task = task_for(tinted, pictures, recalibrate=True)
    rungs = ("statistics", "head", "early")
    before = chosen(task, "surrogate", rungs)
    assert all("early" in model.rungs for model in (before.model, *before.without))
    after = chosen(replace(task, support=spoilt(pictures, task.folds == 2, 0)), "surrogate", rungs)
    assert of(after.without[2]) == of(before.without[2])
    assert of(after.without[1]) != of(before.without[1])


def test_every_fold_is_answered_by_the_model_selected_without_it(
    tinted: PreparedBase, pictures: Support, task_for: Callable[..., Task]
) -> None:
    task = task_for(tinted, pictures, recalibrate=True)
    found = chosen(task, "surrogate", ("statistics", "head"))
    assert found.logits is not None
    assert found.fit is not None
    for held_out, model in zip(task.held_out_parts(), found.without, strict=True):
        expected = model.logits(held_out).float()
        np.testing.assert_array_equal(found.logits[held_out].numpy(), expected.numpy())
        right = expected.argmax(dim=1).numpy() == pictures.labels[held_out]
        assert found.fit.candidate[held_out].tolist() == right.tolist()
        assert set(found.fit.chosen[held_out]) == {model.candidate}


def test_the_choice_without_a_fold_falls_on_what_is_eligible_to_it(
    tinted: PreparedBase, pictures: Support, task_for: Callable[..., Task]
) -> None:
    task = task_for(tinted, pictures)
    pool = SEARCHES["grid"](task)
    only = np.zeros((5, len(pool.coefficients)), dtype=np.bool_)
    only[np.arange(5), np.arange(2, 7)] = True
    library = Library(task, replace(pool, eligible_without=only))
    assert [model.candidate for model in select(library, []).without] == [2, 3, 4, 5, 6]


def test_a_rung_is_not_tried_where_nothing_can_be_held_out(
    tinted: PreparedBase, pictures: Support, task_for: Callable[..., Task]
) -> None:
    found = chosen(task_for(tinted, pictures, folds=None), "surrogate", ("head", "early"))
    assert found.not_tried == dict.fromkeys(("head", "early"), "nothing can be held out")
    assert found.model.rungs == ()
    assert (found.fit, found.without) == (None, ())


def test_a_dear_rung_far_behind_on_the_first_folds_is_given_up(
    tinted: PreparedBase, pictures: Support, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def poor(self: FirstLayers, below: Model, some: object) -> list[Model]:
        trained.append(some)
        return [replace(below, answer=lambda images: -20 * below.answer(images))]

    monkeypatch.setattr(FirstLayers, "fit", poor)
    found = chosen(task_for(tinted, pictures, recalibrate=True), "surrogate", ("statistics", "early"))
    assert len(trained) == 2
    assert "early" not in found.model.rungs


class Slow:
    """A slow rung that divides the logits of the model below, and asks to be taken."""

    num_variants = 1
    num_parts: int | None = 3

    def __init__(self, by: float) -> None:
        self.name, self._by = f"divided by {by}", by
        self.compared = list[tuple[Answers, Answers]]()

    def refuse(self, below: Model, part: Part) -> str | None:
        return None

    def fit(self, below: Model, part: Part) -> Sequence[Model]:
        return [replace(below, temperature=below.temperature * self._by, rungs=(*below.rungs, self.name))]

    def is_better(self, below: Answers, own: Answers, weights: np.ndarray | None) -> bool:
        self.compared.append((below, own))
        return True


def test_a_slow_rung_is_compared_with_a_model_that_lacks_the_same_images(
    tinted: PreparedBase, pictures: Support, task_for: Callable[..., Task]
) -> None:
    task, nothing = task_for(tinted, pictures, recalibrate=True), Slow(1.0)
    library = Library(task, search_surrogate(task, lattice("affine")))
    select(library, [LADDER["statistics"](library), LADDER["head"](library), nothing])
    assert len(nothing.compared) == 6  # on all images, and without each fold
    for below, own in nothing.compared:
        np.testing.assert_array_equal(below.losses, own.losses)
        np.testing.assert_array_equal(below.right, own.right)


@pytest.mark.parametrize("order", [(3.0, 1.1), (1.1, 3.0)], ids=str)
def test_of_slow_rungs_the_one_that_is_most_ahead_is_taken(
    tinted: PreparedBase, pictures: Support, task_for: Callable[..., Task], order: tuple[float, float]
) -> None:
    task, rungs = task_for(tinted, pictures, recalibrate=True), [Slow(by) for by in order]
    library = Library(task, search_surrogate(task, lattice("affine")))
    found = select(library, [LADDER["statistics"](library), *rungs])
    best = min(rungs, key=lambda rung: rung.compared[0][1].losses.sum())
    assert found.model.rungs[-1] == best.name
    for number, model in enumerate(found.without):
        assert model.rungs[-1] == min(rungs, key=lambda rung: rung.compared[number + 1][1].losses.sum()).name
