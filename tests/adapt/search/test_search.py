from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from timm.models import register_model
from torch import nn

from adapt.documents.soup import SoupError, default_soup, make_soup
from adapt.evidence.levels import attempt_level, p_threshold
from adapt.evidence.scores import temp_ce
from adapt.evidence.significance import fold_dependence, paired_p
from adapt.images.support import Support
from adapt.networks.forward import evaluate_soups, served_logits
from adapt.networks.network import Cancelled
from adapt.networks.prepared import PreparedBase
from adapt.reporting.report import job_object, make_report, table
from adapt.rungs.head import PENALTIES
from adapt.search.config import SearchConfig
from adapt.search.grid import GridTooLarge
from adapt.search.search import Search, search
from tests.adapt.pictures import HIDDEN, coloured, noise, support_for
from training.bases import BaseSet, load_base_set
from training.manifest import Architecture


@pytest.fixture(scope="module")
def support(prepared: PreparedBase) -> Support:
    return support_for(prepared, 120)


@pytest.fixture(scope="module")
def found(prepared: PreparedBase, support: Support) -> Search:
    return search(prepared, support, SearchConfig(strategy="grid", rungs=()), current=default_soup(prepared.manifest))


def test_a_soup_like_the_hidden_one_is_found_and_promoted(found: Search):
    outcome = found.outcome
    assert outcome.state == "promoted"
    assert found.scores.accuracy[found.choice.candidate] > 0.9
    assert outcome.accuracy is not None
    assert outcome.accuracy.candidate > max(0.85, outcome.accuracy.current)
    assert outcome.accuracy.p_value < 0.05
    assert outcome.accuracy.interval[0] > 0
    assert outcome.search.candidates == 149
    # Logits of a grid are not kept: the few that are chosen are run once more.
    assert 149 * 120 <= outcome.search.image_forwards <= (149 + 6) * 120


def test_the_outcome_is_the_soups_evidence(found: Search, prepared: PreparedBase):
    soup = found.soup
    assert soup.evidence == found.outcome
    assert soup.base_digest == prepared.manifest.digest
    assert soup.coefficients == found.outcome.coefficients
    assert soup.temperature == found.outcome.temperature


def test_the_candidate_has_the_least_temp_ce_of_all(found: Search):
    values, _ = temp_ce(found.scores.losses)
    assert values[found.choice.candidate] == values.min()


def test_every_soup_is_evaluated_once_and_the_current_one_first(found: Search, prepared: PreparedBase):
    assert found.coefficients[0].tolist() == prepared.manifest.vector(prepared.manifest.default_coefficients)
    assert len({tuple(row) for row in found.coefficients.round(9)}) == len(found.coefficients)


def test_ingredients_have_their_own_accuracy(found: Search, prepared: PreparedBase, support: Support):
    scores = evaluate_soups(prepared, np.eye(4), support.images, support.labels)
    assert found.outcome.ingredients == dict(
        zip(prepared.manifest.ingredient_names, scores.accuracy.tolist(), strict=True)
    )


def test_a_search_is_repeatable_and_a_prepared_base_set_changes_nothing(base: BaseSet, found: Search, support: Support):
    again = search(base, support, SearchConfig(strategy="grid", rungs=()), current=default_soup(base.manifest))
    assert again.outcome.model_copy(update={"search": found.outcome.search}) == found.outcome
    assert np.array_equal(again.scores.losses, found.scores.losses)


def test_a_search_from_its_own_result_keeps_it(prepared: PreparedBase, support: Support, found: Search):
    again = search(prepared, support, SearchConfig(rungs=()), current=found.soup)
    assert again.outcome.state == "kept"
    assert again.soup.coefficients == found.soup.coefficients


def test_a_current_soup_off_the_grid_competes_too(prepared: PreparedBase, support: Support):
    odd = {"linf": 0.3, "nominal": -0.31, "l2": 0.01, "l1": 1.0}  # close to the truth, which the simplex is not
    result = search(
        prepared,
        support,
        SearchConfig(grid="simplex", step=0.5, strategy="grid", rungs=()),
        current=make_soup(prepared.manifest, odd),
    )
    assert len(result.coefficients) == 11
    assert result.coefficients[0].tolist() == list(odd.values())
    assert result.outcome.state == "kept"
    assert result.soup.coefficients == odd


def test_the_current_soup_is_judged_in_its_own_batchnorm_mode(prepared: PreparedBase, support: Support):
    current = make_soup(prepared.manifest, dict.fromkeys(HIDDEN, 0.25), bn_mode="raw")
    result = search(
        prepared, support, SearchConfig(grid="simplex", step=0.25, strategy="grid", rungs=()), current=current
    )
    alone = evaluate_soups(prepared, np.full((1, 4), 0.25), support.images, support.labels, bn_mode="raw")
    assert np.array_equal(result.scores.losses[0], alone.losses[0])
    assert len(result.coefficients) == 36
    assert result.soup.bn_mode == "folded"


def test_raw_mode_never_chooses_a_soup_that_cannot_be_mixed(prepared: PreparedBase, support: Support):
    result = search(prepared, support, SearchConfig(bn_mode="raw", rungs=()), current=default_soup(prepared.manifest))
    assert np.isfinite(result.scores.losses[result.choice.candidate]).all()
    assert result.soup.bn_mode == "raw"


def test_a_layernorm_net_searches_too(ln_base: BaseSet):
    prepared = PreparedBase(ln_base)
    result = search(
        prepared, support_for(prepared, 60), SearchConfig(bn_mode="raw"), current=default_soup(ln_base.manifest)
    )
    assert result.soup.bn_mode == "folded"
    assert result.scores.accuracy[result.choice.candidate] > 0.8


@pytest.mark.parametrize(("promote", "state"), [("never", "kept"), ("always", "promoted")])
def test_promote_overrules_the_evidence(prepared: PreparedBase, promote: str, state: str):
    few = support_for(prepared, 4)
    outcome = search(prepared, few, SearchConfig(promote=promote), current=default_soup(prepared.manifest)).outcome
    assert outcome.state == state
    assert f"promote={promote}" in outcome.reason


@pytest.mark.parametrize("n", [1, 2, 9])
def test_too_few_images_are_kept_with_a_reason(prepared: PreparedBase, n: int):
    current = make_soup(prepared.manifest, {"linf": 0.0, "nominal": 1.0, "l2": 0.0, "l1": 0.0})
    outcome = search(prepared, support_for(prepared, n), current=current).outcome
    assert outcome.state == "kept"
    assert f"got {n}, expected 10" in outcome.reason
    assert (outcome.accuracy is None) == (n == 1)
    assert outcome.support.n == n


def test_one_class_is_kept_with_a_reason(prepared: PreparedBase, support: Support):
    one = support.subset(np.flatnonzero(support.labels == support.labels[0]))
    outcome = search(prepared, one, current=default_soup(prepared.manifest)).outcome
    assert outcome.state == "kept"
    assert "of one class" in outcome.reason


def test_pure_noise_is_kept(prepared: PreparedBase):
    outcome = search(
        prepared, noise(60, prepared.manifest.class_names, seed=3), current=default_soup(prepared.manifest)
    ).outcome
    assert outcome.state == "kept"


def test_progress_runs_to_the_end_and_a_stop_is_obeyed(prepared: PreparedBase, support: Support):
    told: list[tuple[float, str]] = []
    current = default_soup(prepared.manifest)
    search(
        prepared,
        support,
        SearchConfig(step=0.5, strategy="grid", rungs=()),
        current=current,
        progress=lambda done, message: told.append((done, message)),
    )
    fractions = [done for done, _ in told]
    assert fractions == sorted(fractions)
    assert told[-1][0] == pytest.approx(1.0)
    assert "soups on 120 images" in told[-1][1]
    with pytest.raises(Cancelled):
        search(prepared, support, current=current, should_stop=lambda: True)


def test_a_large_pool_is_refused_by_grid_and_searched_by_auto(tmp_path: Path, base_set_factory: Callable[..., Path]):
    names = tuple(f"ingredient{number}" for number in range(6))
    prepared = PreparedBase(load_base_set(base_set_factory(tmp_path / "six", names=names)))
    hidden = dict.fromkeys(names, 0.0) | {"ingredient2": 1.0}
    support = support_for(prepared, 30, hidden=hidden)
    current = default_soup(prepared.manifest)
    with pytest.raises(GridTooLarge, match=r"coarser step, e\.g\. 0\.333"):
        search(prepared, support, SearchConfig(strategy="grid"), current=current)
    outcome = search(prepared, support, SearchConfig(rungs=()), current=current).outcome
    assert outcome.search.strategy == "surrogate"
    assert outcome.search.candidates <= 1 + 21 + 12
    assert outcome.coefficients["ingredient2"] > 0.7
    assert len(outcome.ingredients) == 6


def test_a_soup_of_another_base_set_is_refused(prepared: PreparedBase, support: Support, ln_base: BaseSet):
    with pytest.raises(SoupError, match="tiny-ln"):
        search(prepared, support, current=default_soup(ln_base.manifest))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.3}, "1 divided by a whole number"),
        ({"false_promotions": 1.5}, "less than 1"),
        ({"attempt": 0}, "greater than or equal to 1"),
        ({"attempt": 2, "earlier": (20, 30)}, "fewer sizes than attempt = 2, got 2"),
        ({"attempt": 2, "earlier": (-1,)}, "greater than or equal to 0"),
        ({"effort": "auto"}, "'quick' or 'full'"),
        ({"device": "tpu"}, "expected device cpu, cuda or auto"),
        (
            {"rungs": ("head", "stem")},
            r"some of \['statistics', 'head', 'frequencies', 'stream', 'early'.*\], each at most once, got \['stem'\]",
        ),
        ({"rungs": ("head", "head")}, "each at most once"),
    ],
)
def test_bad_settings_are_refused(base: BaseSet, support: Support, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        search(base, support, SearchConfig(**options), current=default_soup(base.manifest))


def test_unlabelled_images_of_another_size_are_refused(base: BaseSet, support: Support):
    with pytest.raises(ValueError, match=r"\(m, 16, 16, 3\), got uint8 \(2, 8, 8, 3\)"):
        search(
            base,
            support,
            current=default_soup(base.manifest),
            unlabelled=np.zeros((2, 8, 8, 3), dtype=np.uint8),
        )


def test_the_table_says_what_was_decided_and_names_every_ingredient(found: Search, prepared: PreparedBase):
    text = table(make_report(found, default_soup(prepared.manifest), duplicates=3))
    assert text.startswith("promoted: better on held-out images")
    assert "3 repeats left out" in text
    assert all(f"\n{name} " in text for name in prepared.manifest.ingredient_names)
    assert "best soup 5" in text


def test_the_p_value_allows_for_folds_that_share_images(prepared: PreparedBase):
    """Most labels are random: the soups are hard to tell apart, and all folds fall for the same luck."""
    images, generator = support_for(prepared, 80, seed=9), np.random.default_rng(9)
    labels = np.where(generator.random(80) < 0.7, generator.integers(0, 3, 80), images.labels)
    images = replace(images, labels=labels)
    config = SearchConfig(strategy="grid", grid="simplex", step=0.25, rungs=())
    found = search(prepared, images, config, current=default_soup(prepared.manifest))
    dependence = fold_dependence(found.scores, images.folds(5, seed=0), seed=0)
    assert dependence > 1.1
    assert found.fit is not None
    assert found.outcome.accuracy is not None
    plain, said = paired_p(found.fit.gains), found.outcome.accuracy.p_value
    assert 0.1 < plain < 0.4
    assert said == pytest.approx(paired_p(found.fit.gains, dependence=dependence))
    assert said > 1.1 * plain


def test_rungs_that_were_tried_count_as_rivals(tinted: PreparedBase):
    current, images = default_soup(tinted.manifest), coloured(60, tinted.manifest.class_names)
    with_head = search(tinted, images, SearchConfig(rungs=("head",)), current=current)
    assert len(with_head.selected.tried) == 1 + len(PENALTIES)  # the model below, and each strength of the pull
    without = search(tinted, images, SearchConfig(rungs=()), current=current)
    assert without.selected.tried == ()


def test_a_later_attempt_is_stricter(prepared: PreparedBase, support: Support, found: Search):
    current = default_soup(prepared.manifest)
    assert found.outcome.accuracy is not None
    p_value = found.outcome.accuracy.p_value
    n = len(support)
    attempt = next(k for k in range(1, 1000) if p_threshold(attempt_level(k), n) <= p_value)
    late = search(prepared, support, SearchConfig(strategy="grid", rungs=(), attempt=attempt), current=current).outcome
    assert (found.outcome.attempt, found.outcome.level) == (1, p_threshold(attempt_level(1), n))
    assert (late.state, late.attempt, late.level) == ("kept", attempt, p_threshold(attempt_level(attempt), n))
    nested = SearchConfig(strategy="grid", rungs=(), attempt=3, earlier=(0, n // 2))
    level = search(prepared, support, nested, current=current).outcome.level
    assert level == p_threshold(attempt_level(3, [n // 2, n]), n) > p_threshold(attempt_level(3), n)


def test_report_table_and_job_say_what_was_not_tried_and_why(prepared: PreparedBase):
    current = default_soup(prepared.manifest)
    found = search(prepared, support_for(prepared, 30), current=current)
    assert {"head", "early"} <= set(found.outcome.not_tried)
    report = make_report(found, current)
    for name, why in found.outcome.not_tried.items():
        assert f"not tried  {name}: {why}" in table(report)
        assert job_object(found.outcome)["not_tried"][name] == why
    assert report.outcome.not_tried == found.outcome.not_tried


@pytest.mark.parametrize("num_ingredients", [2, 3, 5])
@pytest.mark.parametrize("strategy", ["grid", "surrogate"])
def test_a_pool_of_any_size_is_searched_with_every_rung(
    tmp_path: Path, base_set_factory: Callable[..., Path], num_ingredients: int, strategy: Literal["grid", "surrogate"]
):
    names = tuple(f"ingredient{number}" for number in range(num_ingredients))
    prepared = PreparedBase(load_base_set(base_set_factory(tmp_path / "pool", names=names)))
    support = support_for(prepared, 60, hidden=dict.fromkeys(names, 1 / num_ingredients))
    config = SearchConfig(strategy=strategy, grid="simplex", step=0.5, rungs=("statistics", "head"))
    found = search(prepared, support, config, current=default_soup(prepared.manifest))
    assert found.outcome.accuracy is not None
    assert set(found.outcome.coefficients) == set(names)
    served = served_logits(prepared, found.soup, support.images) / found.soup.temperature
    everything = np.ones(60, dtype=np.bool_)
    np.testing.assert_allclose(served.numpy(), found.choice.logits(everything).float().numpy(), rtol=1e-3, atol=1e-3)


@register_model
def tied_net(pretrained: bool = False, num_classes: int = 3, **_: object) -> nn.Module:
    """Two layers that are one and the same parameter."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 12, 4, stride=4)
            self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
            self.second.weight = self.first.weight
            self.head = nn.Linear(12, num_classes)

        def get_classifier(self) -> nn.Module:
            return self.head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).mean(dim=(2, 3))
            found: torch.Tensor = self.head(self.second(self.first(x).relu()).relu())
            return found

    return Tied()


def test_a_network_with_shared_weights_is_searched(tmp_path: Path, base_set_factory: Callable[..., Path]):
    folder = base_set_factory(tmp_path / "tied", architecture=Architecture(name="tied_net", kwargs={}))
    prepared = PreparedBase(load_base_set(folder))
    net = prepared.model("folded").net
    assert net.first.weight.data_ptr() == net.second.weight.data_ptr()
    support = support_for(prepared, 100)
    config = SearchConfig()
    found = search(prepared, support, config, current=default_soup(prepared.manifest))
    assert found.outcome.accuracy is not None
    served = served_logits(prepared, found.soup, support.images) / found.soup.temperature
    everything = np.ones(100, dtype=np.bool_)
    np.testing.assert_allclose(served.numpy(), found.choice.logits(everything).float().numpy(), rtol=1e-3, atol=1e-3)
