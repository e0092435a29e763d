from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adapt.documents.soup import SoupError, default_soup, make_soup
from adapt.evidence.scores import temp_ce
from adapt.images.support import Support
from adapt.networks.forward import evaluate_soups
from adapt.networks.network import Cancelled
from adapt.networks.prepared import PreparedBase
from adapt.reporting.report import make_report, table
from adapt.search.grid import GridTooLarge
from adapt.search.search import Search, find_soup, search
from training.bases import BaseSet, load_base_set

HIDDEN = {"linf": 0.25, "nominal": -0.25, "l2": 0.0, "l1": 1.0}


def support_for(prepared: PreparedBase, n: int, *, seed: int = 0, hidden: dict[str, float] = HIDDEN) -> Support:
    """Random images, labelled by a hidden soup of the base set: the truth a search can find."""
    images = np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    row = np.asarray([prepared.manifest.vector(hidden)])
    said = [evaluate_soups(prepared, row, images, np.full(n, label, dtype=np.int64)).correct[0] for label in range(3)]
    hashes = tuple(f"{seed}-{index}" for index in range(n))
    return Support(images, np.stack(said).argmax(axis=0).astype(np.int64), hashes, prepared.manifest.class_names)


@pytest.fixture(scope="module")
def support(prepared: PreparedBase) -> Support:
    return support_for(prepared, 120)


@pytest.fixture(scope="module")
def found(prepared: PreparedBase, support: Support) -> Search:
    return search(prepared, support, current=default_soup(prepared.manifest), strategy="grid", rungs=())


def test_a_soup_like_the_hidden_one_is_found_and_promoted(found: Search):
    outcome = found.outcome
    assert outcome.state == "promoted"
    assert found.scores.accuracy[found.choice.candidate] > 0.9
    assert outcome.accuracy is not None
    assert outcome.accuracy.candidate > max(0.85, outcome.accuracy.current)
    assert outcome.accuracy.p_value < 0.05
    assert outcome.accuracy.interval[0] > 0
    assert outcome.search.candidates == 149
    assert outcome.search.image_forwards == 149 * 120


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
    again = search(base, support, current=default_soup(base.manifest), strategy="grid", rungs=())
    assert again.outcome.model_copy(update={"search": found.outcome.search}) == found.outcome
    assert np.array_equal(again.scores.losses, found.scores.losses)


def test_find_soup_is_the_short_form(prepared: PreparedBase, support: Support, found: Search):
    soup, outcome = find_soup(prepared, support, current=default_soup(prepared.manifest), strategy="grid", rungs=())
    assert soup.coefficients == found.soup.coefficients
    assert outcome.accuracy == found.outcome.accuracy


def test_a_search_from_its_own_result_keeps_it(prepared: PreparedBase, support: Support, found: Search):
    soup, outcome = find_soup(prepared, support, current=found.soup, rungs=())
    assert outcome.state == "kept"
    assert "current soup is the best" in outcome.reason
    assert soup.coefficients == found.soup.coefficients


def test_a_current_soup_off_the_grid_competes_too(prepared: PreparedBase, support: Support):
    odd = {"linf": 0.3, "nominal": -0.31, "l2": 0.01, "l1": 1.0}  # close to the truth, which the simplex is not
    result = search(
        prepared,
        support,
        current=make_soup(prepared.manifest, odd),
        grid="simplex",
        step=0.5,
        strategy="grid",
        rungs=(),
    )
    assert len(result.coefficients) == 11
    assert result.coefficients[0].tolist() == list(odd.values())
    assert result.outcome.state == "kept"
    assert result.soup.coefficients == odd


def test_the_current_soup_is_judged_in_its_own_batchnorm_mode(prepared: PreparedBase, support: Support):
    current = make_soup(prepared.manifest, dict.fromkeys(HIDDEN, 0.25), bn_mode="raw")
    result = search(prepared, support, current=current, grid="simplex", step=0.25, strategy="grid", rungs=())
    alone = evaluate_soups(prepared, np.full((1, 4), 0.25), support.images, support.labels, bn_mode="raw")
    assert np.array_equal(result.scores.losses[0], alone.losses[0])
    assert len(result.coefficients) == 36
    assert result.soup.bn_mode == "folded"


def test_raw_mode_never_chooses_a_soup_that_cannot_be_mixed(prepared: PreparedBase, support: Support):
    result = search(prepared, support, current=default_soup(prepared.manifest), bn_mode="raw", rungs=())
    assert np.isfinite(result.scores.losses[result.choice.candidate]).all()
    assert result.soup.bn_mode == "raw"


def test_a_layernorm_net_searches_too(ln_base: BaseSet):
    prepared = PreparedBase(ln_base)
    result = search(prepared, support_for(prepared, 60), current=default_soup(ln_base.manifest), bn_mode="raw")
    assert result.soup.bn_mode == "folded"
    assert result.scores.accuracy[result.choice.candidate] > 0.8


@pytest.mark.parametrize(("promote", "state"), [("never", "kept"), ("always", "promoted")])
def test_promote_overrules_the_evidence(prepared: PreparedBase, promote: str, state: str):
    few = support_for(prepared, 4)
    _, outcome = find_soup(prepared, few, current=default_soup(prepared.manifest), promote=promote)
    assert outcome.state == state
    assert f"promote={promote}" in outcome.reason


@pytest.mark.parametrize("n", [1, 2, 9])
def test_too_few_images_are_kept_with_a_reason(prepared: PreparedBase, n: int):
    current = make_soup(prepared.manifest, {"linf": 0.0, "nominal": 1.0, "l2": 0.0, "l1": 0.0})
    _, outcome = find_soup(prepared, support_for(prepared, n), current=current)
    assert outcome.state == "kept"
    assert f"got {n}, expected 10" in outcome.reason
    assert (outcome.accuracy is None) == (n == 1)
    assert outcome.support.n == n


def test_one_class_is_kept_with_a_reason(prepared: PreparedBase, support: Support):
    one = support.subset(np.flatnonzero(support.labels == support.labels[0]))
    _, outcome = find_soup(prepared, one, current=default_soup(prepared.manifest))
    assert outcome.state == "kept"
    assert "of one class" in outcome.reason


def test_pure_noise_is_kept(prepared: PreparedBase):
    generator = np.random.default_rng(3)
    noise = Support(
        generator.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8),
        generator.integers(0, 3, 60),
        tuple(map(str, range(60))),
        prepared.manifest.class_names,
    )
    _, outcome = find_soup(prepared, noise, current=default_soup(prepared.manifest))
    assert outcome.state == "kept"


def test_progress_runs_to_the_end_and_a_stop_is_obeyed(prepared: PreparedBase, support: Support):
    told: list[tuple[float, str]] = []
    current = default_soup(prepared.manifest)
    find_soup(
        prepared, support, current=current, step=0.5, strategy="grid", rungs=(),
        progress=lambda done, message: told.append((done, message)),
    )  # fmt: skip
    fractions = [done for done, _ in told]
    assert fractions == sorted(fractions)
    assert told[-1][0] == pytest.approx(1.0)
    assert "soups on 120 images" in told[-1][1]
    with pytest.raises(Cancelled):
        find_soup(prepared, support, current=current, should_stop=lambda: True)


def test_a_large_pool_is_refused_by_grid_and_searched_by_auto(tmp_path: Path, base_set_factory: Callable[..., Path]):
    names = tuple(f"ingredient{number}" for number in range(6))
    prepared = PreparedBase(load_base_set(base_set_factory(tmp_path / "six", names=names)))
    hidden = dict.fromkeys(names, 0.0) | {"ingredient2": 1.0}
    support = support_for(prepared, 30, hidden=hidden)
    current = default_soup(prepared.manifest)
    with pytest.raises(GridTooLarge, match=r"coarser step, e\.g\. 0\.333"):
        find_soup(prepared, support, current=current, strategy="grid")
    _, outcome = find_soup(prepared, support, current=current, rungs=())
    assert outcome.search.strategy == "surrogate"
    assert outcome.search.candidates <= 1 + 21 + 12
    assert outcome.coefficients["ingredient2"] > 0.7
    assert len(outcome.ingredients) == 6


def test_a_soup_of_another_base_set_is_refused(prepared: PreparedBase, support: Support, ln_base: BaseSet):
    with pytest.raises(SoupError, match="tiny-ln"):
        find_soup(prepared, support, current=default_soup(ln_base.manifest))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0.3}, "1 divided by a whole number"),
        ({"p_threshold": 1.5}, "p_threshold"),
        ({"device": "tpu"}, "cpu, cuda or auto"),
        ({"rungs": ("head", "stem")}, r"rungs of \['statistics', 'head', 'early'\], got \['stem'\]"),
        ({"unlabelled": np.zeros((2, 8, 8, 3), dtype=np.uint8)}, r"\(m, 16, 16, 3\), got uint8 \(2, 8, 8, 3\)"),
    ],
)
def test_bad_options_are_refused(base: BaseSet, support: Support, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        find_soup(base, support, current=default_soup(base.manifest), **options)


def test_the_table_says_what_was_decided_and_names_every_ingredient(found: Search, prepared: PreparedBase):
    text = table(make_report(found, default_soup(prepared.manifest), duplicates=3))
    assert text.startswith("promoted: better on held-out images")
    assert "3 repeats left out" in text
    assert all(f"\n{name} " in text for name in prepared.manifest.ingredient_names)
    assert "best soup 5" in text
