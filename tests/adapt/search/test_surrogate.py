from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.documents.soup import default_soup, make_soup
from adapt.evidence.scores import temp_ce
from adapt.images.support import Support
from adapt.networks.forward import evaluate_soups, score_logits, soup_logits
from adapt.networks.prepared import PreparedBase
from adapt.rungs.pool import Pool
from adapt.rungs.task import Task
from adapt.search.config import SearchConfig
from adapt.search.grid import affine, lattice
from adapt.search.search import search
from adapt.search.surrogate import (
    PROMISING,
    _descend,
    interpolation,
    nodes,
    num_evaluated,
    search_grid,
    search_surrogate,
)
from tests.adapt.pictures import HIDDEN, support_for
from training.bases import load_base_set


@given(num=st.integers(2, 8), seed=st.integers(0, 100))
@settings(max_examples=40)
def test_the_interpolation_is_exact_for_every_quadratic(num: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    square, linear, constant = generator.normal(size=(num, num)), generator.normal(size=num), generator.normal()

    def value(rows: np.ndarray) -> np.ndarray:
        return np.einsum("ci,ij,cj->c", rows, square, rows) + rows @ linear + constant

    rows = generator.normal(size=(20, num))
    rows /= rows.sum(axis=1, keepdims=True)
    known = nodes(num)
    assert len(known) == num * (num + 1) // 2
    np.testing.assert_allclose(interpolation(rows) @ value(known), value(rows), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(interpolation(known), np.eye(len(known)), atol=1e-12)


def test_logits_have_the_scores_of_the_soups(prepared: PreparedBase) -> None:
    support = support_for(prepared, 70)
    rows = affine(4)[::20]
    logits = soup_logits(prepared, rows, support.images)
    assert logits.shape == (len(rows), 70, 3)
    found, expected = (
        score_logits(logits, support.labels),
        evaluate_soups(prepared, rows, support.images, support.labels),
    )
    assert np.array_equal(found.losses, expected.losses)
    assert np.array_equal(found.correct, expected.correct)


@pytest.mark.parametrize("rungs", [(), ("statistics",)])
def test_the_surrogate_finds_what_the_grid_finds_at_a_sixth_of_the_cost(
    prepared: PreparedBase, rungs: tuple[str, ...]
) -> None:
    losses = []
    for seed in range(2):
        support = support_for(prepared, 100, seed=seed)
        found, full = (
            search(
                prepared, support, SearchConfig(strategy=strategy, rungs=rungs), current=default_soup(prepared.manifest)
            )
            for strategy in ("surrogate", "grid")
        )
        assert found.outcome.search.image_forwards <= full.outcome.search.image_forwards / 6
        best, reached = (temp_ce(run.scores.losses)[0][run.choice.candidate] for run in (full, found))
        losses.append(reached - best)
        assert found.outcome.state == "promoted"
    assert max(losses) < 0.02


def allowed_without(pool: Pool, fold: int) -> set[tuple[float, ...]]:
    """Return the candidates that the choice without a fold may fall on."""
    assert pool.eligible_without is not None
    return {tuple(row) for row in pool.coefficients[pool.eligible_without[fold]].round(9)}


def spoilt(support: Support, held_out: np.ndarray) -> Support:
    return replace(support, labels=np.where(held_out, (support.labels + 1) % 3, support.labels))


def test_a_fold_may_choose_only_what_was_promising_without_it(
    prepared: PreparedBase, task_for: Callable[..., Task]
) -> None:
    """Spoil a fold's labels: what the choice without it may fall on stays the same."""
    support = support_for(prepared, 100)
    task = task_for(prepared, support)
    before = search_surrogate(task, lattice("affine"))
    after = search_surrogate(replace(task, support=spoilt(support, task.folds == 0)), lattice("affine"))
    assert allowed_without(before, 0) == allowed_without(after, 0)
    assert before.eligible_without is not None
    assert not before.eligible_without.all()
    assert before.eligible_without[:, 0].all()  # the current soup always competes


def test_no_soup_is_evaluated_twice_and_the_count_is_honest(
    prepared: PreparedBase, task_for: Callable[..., Task]
) -> None:
    support = support_for(prepared, 50)
    pool = search_surrogate(task_for(prepared, support), lattice("affine"))
    rows = pool.coefficients
    # The current soup is a node here, evaluated both with its like and by itself.
    assert len({tuple(row) for row in rows.round(9)}) == len(rows) - 1 < num_evaluated(4)
    assert pool.image_forwards == len(rows) * 50
    again = evaluate_soups(prepared, rows, support.images, support.labels)
    np.testing.assert_allclose(pool.scores.losses, again.losses, rtol=1e-4, atol=1e-5)
    assert {tuple(row) for row in np.eye(4)} <= {tuple(row) for row in rows}


def test_raw_mode_passes_over_soups_that_cannot_be_mixed(prepared: PreparedBase, task_for: Callable[..., Task]) -> None:
    pool = search_surrogate(task_for(prepared, support_for(prepared, 60), bn_mode="raw"), lattice("affine"))
    assert np.isfinite(pool.scores.losses).all()


def test_two_images_are_enough_and_one_holds_nothing_out(prepared: PreparedBase) -> None:
    for n in (1, 2):
        found = search(
            prepared,
            support_for(prepared, n),
            SearchConfig(strategy="surrogate"),
            current=default_soup(prepared.manifest),
        )
        assert (found.fit is None) == (n == 1)


@pytest.mark.parametrize("num_ingredients", [2, 9])
def test_pools_of_any_size(tmp_path: Path, base_set_factory: Callable[..., Path], num_ingredients: int) -> None:
    names = tuple(f"ingredient{number}" for number in range(num_ingredients))
    prepared = PreparedBase(load_base_set(base_set_factory(tmp_path / "pool", names=names)))
    hidden = dict.fromkeys(names, 0.0) | {"ingredient0": 0.5, "ingredient1": 0.5}
    support = support_for(prepared, 60, hidden=hidden)
    current = make_soup(prepared.manifest, dict.fromkeys(names, 0.0) | {names[-1]: 1.0})
    found = search(prepared, support, SearchConfig(rungs=()), current=current)
    assert found.outcome.search.strategy == ("grid" if num_ingredients == 2 else "surrogate")
    assert found.outcome.search.candidates <= 1 + len(nodes(num_ingredients)) + 6 * PROMISING  # 5 folds, and all
    values, _ = temp_ce(found.scores.losses)
    assert values[found.choice.candidate] < values[0]


def test_the_grid_pool_lets_every_choice_fall_on_everything(
    prepared: PreparedBase, task_for: Callable[..., Task]
) -> None:
    pool = search_grid(task_for(prepared, support_for(prepared, 20)), lattice("affine", 0.5))
    assert pool.eligible.all()
    assert pool.eligible_without is not None
    assert pool.eligible_without.all()
    assert HIDDEN.keys() == set(prepared.manifest.ingredient_names)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory, base_set_factory: Callable[..., Path]) -> PreparedBase:
    """A pool too large for a grid: it is searched by a descent."""
    names = tuple(f"ingredient{number}" for number in range(9))
    return PreparedBase(load_base_set(base_set_factory(tmp_path_factory.mktemp("bases") / "nine", names=names)))


def test_the_descent_of_a_large_pool_stays_on_the_lattice(nine: PreparedBase, task_for: Callable[..., Task]) -> None:
    points = lattice("affine")
    assert not points.is_small(9)
    hidden = dict.fromkeys(nine.manifest.ingredient_names, 1 / 9)
    pool = search_surrogate(task_for(nine, support_for(nine, 40, hidden=hidden)), points)
    assert pool.coefficients.min() >= -0.25 - 1e-9
    assert pool.coefficients.max() <= 1.25 + 1e-9
    assert torch.tensor(pool.coefficients).sum(1).allclose(torch.ones(len(pool.coefficients), dtype=torch.float64))


@pytest.mark.parametrize("seed", range(4))
def test_the_descent_of_a_choice_does_not_depend_on_the_walks_of_the_others(seed: int) -> None:
    """Rough ground, on which every walk ends elsewhere: one choice's values stay, the other's change."""
    points = lattice("simplex", 0.1)

    def known(other: float) -> dict[tuple[float, ...], float]:
        def predict(rows: np.ndarray) -> list[np.ndarray]:
            waves = np.arange(1, 6) * (3 + seed)
            return [np.sin(rows @ waves * scale) + rows @ np.cos(waves) for scale in (other, 1.0)]

        rows, values = _descend(predict, points, 5, 2)
        finite = np.isfinite(values[1])
        assert not finite.all()
        return {tuple(row): value for row, value in zip(rows[finite].tolist(), values[1][finite].tolist(), strict=True)}

    assert known(2.0) == known(-1.0)
