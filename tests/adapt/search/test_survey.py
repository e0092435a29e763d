"""The landscape of a search: what was evaluated, as it was, and the plain soups that fix a quadratic."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adapt.documents.landscape import MAX_POINTS, Landscape
from adapt.documents.patch import make_patch
from adapt.documents.soup import default_soup, make_soup
from adapt.evidence.scores import temp_ce
from adapt.images.support import Support
from adapt.networks.forward import evaluate_soups
from adapt.networks.network import Cancelled
from adapt.networks.prepared import PreparedBase
from adapt.search.config import SearchConfig
from adapt.search.search import Search, search
from adapt.search.surrogate import nodes
from adapt.search.survey import MAX_MISSING, seen, survey
from tests.adapt.pictures import support_for
from training.bases import load_base_set


@pytest.fixture(scope="module")
def support(prepared: PreparedBase) -> Support:
    """Images whose contrast has faded since they were labelled: new statistics are what helps, not another mixture."""
    support = support_for(prepared, 60)
    return replace(support, images=(support.images * 0.15 + 10).astype(np.uint8))


@pytest.fixture(scope="module")
def found(prepared: PreparedBase, support: Support) -> Search:
    return search(prepared, support, current=default_soup(prepared.manifest))


@pytest.fixture(scope="module")
def landscape(prepared: PreparedBase, support: Support, found: Search) -> Landscape:
    return survey(prepared, support, found, current=default_soup(prepared.manifest))


def test_it_holds_what_the_search_evaluated(
    landscape: Landscape, found: Search, prepared: PreparedBase, support: Support
):
    losses, _ = temp_ce(found.scores.losses)
    expected = list(
        zip(
            [tuple(row) for row in found.coefficients.round(6).tolist()],
            ["recalibrated" if anew else "plain" for anew in found.pool.recalibrated],
            found.scores.accuracy.round(6).tolist(),
            losses.round(6).tolist(),
            strict=True,
        )
    )
    points = [(point.coefficients, point.kind, point.accuracy, point.temp_ce) for point in landscape.points]
    assert points[: len(expected)] == expected
    assert (
        seen(prepared, support, found, current=default_soup(prepared.manifest)).points
        == landscape.points[: len(expected)]
    )
    assert landscape.n == len(support)
    assert (landscape.current, landscape.chosen) == (0, found.choice.candidate)


def test_plain_nodes_are_there_as_the_dial_serves_them(
    landscape: Landscape, found: Search, prepared: PreparedBase, support: Support
):
    assert (~found.pool.recalibrated).sum() < len(nodes(4))  # the search left some out
    plain = {point.coefficients: point.accuracy for point in landscape.points if point.kind == "plain"}
    scores = evaluate_soups(prepared, nodes(4), support.images, support.labels)
    for row, accuracy in zip(nodes(4).tolist(), scores.accuracy.tolist(), strict=True):
        assert plain[tuple(row)] == pytest.approx(accuracy, abs=1e-6)


def test_ingredients_are_those_of_the_outcome(landscape: Landscape, found: Search):
    for position, (name, accuracy) in enumerate(found.outcome.ingredients.items()):
        assert landscape.ingredients[position] == name
        alone = tuple(float(position == other) for other in range(4))
        kept = [point.accuracy for point in landscape.points if (point.coefficients, point.kind) == (alone, "plain")]
        assert set(kept) == {round(accuracy, 6)}


def test_the_current_soup_with_a_patch_is_not_a_plain_one(prepared: PreparedBase, support: Support):
    key = prepared.head_key
    tensor = prepared.base.state_dicts["l1"][f"{key}.bias"].numpy()
    patch = make_patch({f"{key}.bias": tensor + 0.1}, rungs=["head"])
    current = make_soup(prepared.manifest, prepared.manifest.default_coefficients, patch=patch)
    found = search(prepared, support, SearchConfig(rungs=()), current=current)
    points = survey(prepared, support, found, current=current).points
    assert points[0].kind == "patched"
    assert {point.kind for point in points[1:]} == {"plain"}


def test_a_large_grid_is_thinned_and_keeps_what_matters(prepared: PreparedBase):
    support = support_for(prepared, 12)
    config = SearchConfig(strategy="grid", grid="simplex", step=0.1, rungs=("statistics",))
    found = search(prepared, support, config, current=default_soup(prepared.manifest))
    assert len(found.coefficients) > MAX_POINTS
    landscape = survey(prepared, support, found, current=default_soup(prepared.manifest))
    assert len(landscape.points) == MAX_POINTS
    assert len(landscape.model_dump_json()) < 60_000
    plain = {point.coefficients for point in landscape.points if point.kind == "plain"}
    assert {tuple(row) for row in nodes(4).tolist()} <= plain
    assert landscape.chosen is not None
    chosen = found.coefficients[found.choice.candidate].round(6)
    assert landscape.points[landscape.chosen].coefficients == tuple(chosen.tolist())


def test_with_many_ingredients_nothing_is_evaluated_for_the_map_alone(
    tmp_path: Path, base_set_factory: Callable[..., Path], support: Support
):
    names = tuple(f"m{number}" for number in range(6))
    prepared = PreparedBase(load_base_set(base_set_factory(tmp_path / "six", names=names)))
    assert len(nodes(6)) - 6 > MAX_MISSING
    found = search(prepared, support, current=default_soup(prepared.manifest))
    assert (~found.pool.recalibrated).sum() < len(nodes(6))
    landscape = survey(prepared, support, found, current=default_soup(prepared.manifest), should_stop=lambda: True)
    assert len(landscape.points) == len(found.coefficients)


def test_it_stops_when_told(prepared: PreparedBase, support: Support, found: Search):
    with pytest.raises(Cancelled):
        survey(prepared, support, found, current=default_soup(prepared.manifest), should_stop=lambda: True)


def test_the_accuracies_are_close_to_a_quadratic(landscape: Landscape, prepared: PreparedBase, support: Support):
    """What the page draws between the points: a quadratic in the free coefficients, by least squares."""

    def terms(rows: np.ndarray) -> np.ndarray:
        first, second = np.triu_indices(3)
        free = rows[:, :3]
        return np.concatenate([np.ones((len(rows), 1)), free, free[:, first] * free[:, second]], axis=1)

    plain = [point for point in landscape.points if point.kind == "plain"]
    rows = np.asarray([point.coefficients for point in plain])
    weights = np.linalg.lstsq(terms(rows), np.asarray([point.accuracy for point in plain]), rcond=None)[0]
    inside = np.random.default_rng(0).dirichlet(np.ones(4), 40)
    truth = evaluate_soups(prepared, inside, support.images, support.labels).accuracy
    assert np.sqrt(np.mean((terms(inside) @ weights - truth) ** 2)) < 0.08
