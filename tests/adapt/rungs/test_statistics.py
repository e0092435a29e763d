from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from adapt.documents.soup import SoupError, default_soup
from adapt.images.support import Support
from adapt.networks.forward import run_soups, served_logits
from adapt.networks.prepared import PreparedBase
from adapt.rungs.head import MIN_IMAGES
from adapt.rungs.mixture import Mixture
from adapt.rungs.model import Answers
from adapt.rungs.pool import Library
from adapt.rungs.statistics import DOUBT, Statistics
from adapt.rungs.task import Part, Task
from adapt.search.config import RUNGS, SearchConfig
from adapt.search.grid import lattice
from adapt.search.search import Search, search
from adapt.search.surrogate import num_evaluated, search_grid
from adapt.search.unlabelled import recalibrate
from tests.adapt.pictures import coloured, noise, support_for, turned
from training.bases import BaseSet

BELOW: tuple[str, ...] = ("statistics", "head")  # what is below the training of first layers


@pytest.fixture(scope="module")
def prepared(tinted: PreparedBase) -> PreparedBase:
    return tinted


@pytest.fixture(scope="module")
def dim(prepared: PreparedBase) -> Support:
    return coloured(150, prepared.manifest.class_names, contrast=0.2)


@pytest.fixture(scope="module")
def found(prepared: PreparedBase, dim: Support) -> Search:
    return search(prepared, dim, SearchConfig(rungs=BELOW), current=default_soup(prepared.manifest))


def test_a_shift_of_the_statistics_is_recalibrated_and_promoted(prepared: PreparedBase, found: Search) -> None:
    assert found.outcome.state == "promoted"
    assert found.soup.patch is not None
    assert found.soup.patch.recalibrated == 150
    assert found.soup.bn_mode == "raw"
    unseen = coloured(400, prepared.manifest.class_names, seed=5, contrast=0.2)
    before, after = (
        (served_logits(prepared, soup, unseen.images).argmax(1).numpy() == unseen.labels).mean()
        for soup in (default_soup(prepared.manifest), found.soup)
    )
    assert after > before + 0.1
    assert found.outcome.accuracy is not None
    assert abs(found.outcome.accuracy.candidate - after) < 0.12


@pytest.mark.parametrize("rungs", [("statistics",), BELOW])
def test_what_was_chosen_is_what_is_served(prepared: PreparedBase, dim: Support, rungs: tuple[str, ...]) -> None:
    found = search(prepared, dim, SearchConfig(rungs=rungs), current=default_soup(prepared.manifest))
    said = served_logits(prepared, found.soup, dim.images) / found.soup.temperature
    everything = np.ones(len(dim), dtype=np.bool_)
    torch.testing.assert_close(said, found.choice.logits(everything).float(), rtol=1e-3, atol=1e-3)
    assert found.choice.rungs == rungs
    assert found.outcome.patch == (None if found.soup.patch is None else found.soup.patch.summary)
    assert found.outcome.temperature == found.soup.temperature


def test_the_cost_is_a_quarter_of_a_grid_of_one_kind(found: Search) -> None:
    assert found.outcome.search.image_forwards <= 149 * 150 / 4
    assert found.outcome.search.candidates <= num_evaluated(4) <= 149 / 6


@pytest.mark.parametrize("strategy", ["grid", "surrogate"])
def test_a_permuted_last_layer_is_fitted_again(prepared: PreparedBase, strategy: str) -> None:
    support = coloured(300, prepared.manifest.class_names)
    permuted = turned(support)
    current = default_soup(prepared.manifest)
    result = search(prepared, permuted, SearchConfig(strategy=strategy, step=0.5, rungs=("head",)), current=current)
    assert result.outcome.state == "promoted"
    assert result.soup.patch is not None
    assert result.soup.patch.rungs == ("head",)
    assert result.soup.patch.recalibrated == 0
    assert result.soup.temperature == 1.0
    unseen = turned(coloured(300, prepared.manifest.class_names, seed=9))
    after = (served_logits(prepared, result.soup, unseen.images).argmax(1).numpy() == unseen.labels).mean()
    assert result.outcome.accuracy is not None
    assert after > 0.6
    assert abs(result.outcome.accuracy.candidate - after) < 0.1
    everything = np.ones(300, dtype=np.bool_)
    served = served_logits(prepared, result.soup, support.images)
    torch.testing.assert_close(served, result.choice.logits(everything).float(), rtol=1e-3, atol=1e-3)


def test_too_few_images_leave_the_last_layer(prepared: PreparedBase) -> None:
    few = turned(coloured(300, prepared.manifest.class_names)).subset(np.arange(MIN_IMAGES - 1))
    current = default_soup(prepared.manifest)
    found = search(prepared, few, SearchConfig(rungs=("head",)), current=current)
    assert found.choice.rungs == ()
    assert found.outcome.not_tried == {"head": f"expected at least {MIN_IMAGES} labelled images, got {MIN_IMAGES - 1}"}


def test_a_current_soup_with_a_patch_is_judged_with_it_and_kept_as_it_is(prepared: PreparedBase, found: Search) -> None:
    support = coloured(60, prepared.manifest.class_names, seed=3, contrast=0.2)
    again = search(prepared, support, SearchConfig(rungs=()), current=found.soup)
    expected = served_logits(prepared, found.soup, support.images).argmax(1).numpy() == support.labels
    assert again.scores.correct[0].tolist() == expected.tolist()
    assert again.choice.candidate == 0
    assert again.outcome.state == "kept"
    assert again.soup.patch == found.soup.patch
    assert again.soup.bn_mode == found.soup.bn_mode


def test_unlabelled_images_count_in_the_statistics(prepared: PreparedBase) -> None:
    support = coloured(30, prepared.manifest.class_names, contrast=0.2)
    more = coloured(200, prepared.manifest.class_names, seed=8, contrast=0.2).images
    result = search(
        prepared, support, SearchConfig(rungs=("statistics",)), current=default_soup(prepared.manifest), unlabelled=more
    )
    assert result.outcome.support.unlabelled == 200
    assert result.soup.patch is not None
    assert result.soup.patch.recalibrated == 230


def test_a_network_without_batchnorm_climbs_only_to_its_last_layer(ln_base: BaseSet) -> None:
    prepared = PreparedBase(ln_base)
    result = search(
        prepared, support_for(prepared, 90), SearchConfig(rungs=RUNGS), current=default_soup(ln_base.manifest)
    )
    assert not result.pool.recalibrated.any()
    with pytest.raises(ValueError, match="no BatchNorm"):
        recalibrate(prepared, support_for(prepared, 5).images, current=default_soup(ln_base.manifest))


def test_a_network_without_batchnorm_climbs_on_where_its_moments_are_known(prepared_moments: PreparedBase) -> None:
    manifest = prepared_moments.manifest
    dim = coloured(60, manifest.class_names, contrast=0.2)
    result = search(prepared_moments, dim, SearchConfig(rungs=("statistics",)), current=default_soup(manifest))
    assert result.pool.recalibrated.any()
    chosen = result.pool.recalibrated & result.pool.eligible
    assert np.isfinite(result.pool.scores.losses[chosen]).all()
    soup, outcome = recalibrate(prepared_moments, dim.images, current=default_soup(manifest))
    assert outcome.state == "kept"
    assert soup.patch is not None
    served = served_logits(prepared_moments, soup, dim.images)
    row = np.asarray([soup.vector(manifest)])
    torch.testing.assert_close(served, run_soups(prepared_moments, row, dim.images, recalibrate=True).logits[0])


def test_without_labels_the_current_soup_is_recalibrated_and_kept(prepared: PreparedBase, found: Search) -> None:
    images = coloured(120, prepared.manifest.class_names, seed=6, contrast=0.2).images
    for current in (default_soup(prepared.manifest), found.soup):
        soup, outcome = recalibrate(prepared, images, current=current)
        assert outcome.state == "kept"
        assert "no labelled images" in outcome.reason
        assert outcome.support.n == 0
        assert outcome.support.unlabelled == 120
        assert outcome.accuracy is None
        assert soup.coefficients == current.coefficients
        assert soup.patch is not None
        assert soup.patch.recalibrated == 120
        assert soup.patch.rungs == ("statistics", "head") if current is found.soup else ("statistics",)
    with pytest.raises(ValueError, match="at least one"):
        recalibrate(prepared, images[:0], current=default_soup(prepared.manifest))
    with pytest.raises(ValueError, match=r"16, 16, 3"):
        recalibrate(prepared, images[:, :8], current=default_soup(prepared.manifest))


def test_recalibration_belongs_to_its_base_set(prepared: PreparedBase, ln_base: BaseSet) -> None:
    with pytest.raises(SoupError):
        recalibrate(prepared, support_for(prepared, 5).images, current=default_soup(ln_base.manifest))


def test_a_search_with_statistics_and_head_is_repeatable(prepared: PreparedBase, found: Search, dim: Support) -> None:
    again = search(prepared, dim, SearchConfig(rungs=BELOW), current=default_soup(prepared.manifest))
    assert again.outcome.model_copy(update={"search": found.outcome.search}) == found.outcome
    assert again.soup.patch == found.soup.patch


def test_labels_of_a_fold_do_not_judge_themselves(prepared: PreparedBase) -> None:
    """Random labels: what is fitted to them must look no better than chance on the images held out."""
    support = noise(300, prepared.manifest.class_names)
    result = search(prepared, support, current=default_soup(prepared.manifest))
    assert result.outcome.state == "kept"
    assert result.outcome.accuracy is not None
    assert abs(result.outcome.accuracy.candidate - 1 / 3) < 0.1


def test_balance_makes_a_rare_class_count_as_much(prepared: PreparedBase) -> None:
    """The default soup is right on the frequent class alone; what is right on all of them is better when balanced."""
    support = coloured(300, prepared.manifest.class_names)
    rare = np.flatnonzero((support.labels == 0) | (np.arange(300) < 30))
    some = support.subset(rare)
    plain, even = (
        search(prepared, some, SearchConfig(balance=balance), current=default_soup(prepared.manifest))
        for balance in (False, True)
    )
    assert plain.fit is not None
    assert even.fit is not None
    assert even.fit.weights is not None
    assert even.fit.weights.mean() == pytest.approx(1)
    sums = [even.fit.weights[some.labels == label].sum() for label in range(3)]
    assert sums == pytest.approx([len(some) / 3] * 3, rel=1e-4)
    assert even.outcome.accuracy is not None
    hits = even.fit.candidate
    assert even.outcome.accuracy.candidate == pytest.approx(
        np.mean([hits[some.labels == label].mean() for label in range(3)]), abs=1e-6
    )


@pytest.mark.parametrize(
    ("behind", "expected"), [(-1.0, True), (0.9 * DOUBT, True), (1.1 * DOUBT, False), (3.0, False), (50.0, False)]
)
def test_recalibrated_soups_may_be_behind_by_one_standard_error(behind: float, expected: bool) -> None:
    excess = np.random.default_rng(0).standard_normal(100)
    excess = (excess - excess.mean()) / excess.std()  # mean 0, standard error 0.1
    below = Answers(np.full(100, 30, dtype=np.float32), np.ones(100, dtype=np.bool_))
    own = Answers((30 + excess + 0.1 * behind).astype(np.float32), below.right)
    assert Statistics.is_better(Statistics.__new__(Statistics), below, own, None) == expected


def test_an_unusable_soup_gives_way_to_a_recalibrated_one_and_not_the_other_way_round() -> None:
    right = np.ones(4, dtype=np.bool_)
    fine, lost = Answers(np.ones(4, dtype=np.float32), right), Answers(np.full(4, np.inf, dtype=np.float32), right)
    rung = Statistics.__new__(Statistics)
    assert rung.is_better(lost, fine, None)
    assert not rung.is_better(fine, lost, None)


def test_candidate_and_temperature_are_fitted_to_the_part_alone(
    prepared: PreparedBase, dim: Support, task_for: Callable[..., Task]
) -> None:
    half = np.arange(150) < 75
    wrong = replace(dim, labels=np.where(half, dim.labels, (dim.labels + 1) % 3))
    found = []
    for support in (dim, wrong):
        task = task_for(prepared, support, recalibrate=True)
        library = Library(task, search_grid(task, lattice("simplex", 1.0)))
        part = Part(half, library.pool.eligible)
        model = Statistics(library).fit(Mixture(library).fit(part), part)[0]
        assert model.recalibrated == 75
        found.append((model.coefficients, model.temperature))
        everything = Part(np.ones(150, dtype=np.bool_), library.pool.eligible)
        found.append(Statistics(library).fit(Mixture(library).fit(everything), everything)[0].temperature)
    assert found[0] == found[2]
    assert found[1] != found[3]
