from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapt.rungs.ladder import MIN_HEAD_IMAGES

from adapt.documents.soup import RUNGS, Rung, SoupError, default_soup
from adapt.images.support import Support
from adapt.networks.forward import run_soups, served_logits
from adapt.networks.prepared import PreparedBase
from adapt.rungs.head import fit_heads
from adapt.search.search import Search, search
from adapt.search.surrogate import num_evaluated
from adapt.search.unlabelled import recalibrate
from tests.adapt.search.test_search import support_for
from training.bases import BaseSet, load_base_set, save_base_set

BELOW: tuple[Rung, ...] = ("statistics", "head")  # what is below the training of first layers


def coloured(n: int, classes: tuple[str, ...], *, seed: int = 0, contrast: float = 1.0) -> Support:
    """Noise with a tint for each class: what a last layer can learn on an untrained network."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    pixels = generator.normal(128, 30, (n, 16, 16, 3)) + 45 * np.eye(3)[labels][:, None, None, :]
    images = (128 + contrast * (pixels.clip(0, 255) - 128)).round().astype(np.uint8)
    return Support(images, labels, tuple(f"{seed}-{contrast}-{index}" for index in range(n)), classes)


def turned(support: Support) -> Support:
    """The same images, each labelled as the next class."""
    return replace(support, labels=(support.labels + 1) % 3)


@pytest.fixture(scope="module")
def prepared(tiny_base_set: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedBase:
    """A base set whose last layers know the tints, and whose BatchNorm statistics are those of such images."""
    base = load_base_set(tiny_base_set)
    blank = PreparedBase(base)
    clean = coloured(300, base.manifest.class_names, seed=100)
    state_dicts = {}
    for position, (name, state_dict) in enumerate(base.state_dicts.items()):
        row = np.eye(4)[[position]]
        run = run_soups(blank, row, clean.images, recalibrate=True)
        own = blank.head(row[0].tolist())
        assert own is not None
        assert run.features[0] is not None
        assert run.statistics[0] is not None
        head = fit_heads(run.features[0], clean.labels, own)[-1]
        patched = {key: torch.from_numpy(array) for key, array in run.statistics[0].items()}
        layer = {"head.weight": head.weight.float(), "head.bias": head.bias.float()}
        state_dicts[name] = {**state_dict, **patched, **layer}
    folder = tmp_path_factory.mktemp("bases") / "tinted"
    save_base_set(folder, base.manifest, state_dicts)
    return PreparedBase(load_base_set(folder))


@pytest.fixture(scope="module")
def dim(prepared: PreparedBase) -> Support:
    return coloured(150, prepared.manifest.class_names, contrast=0.2)


@pytest.fixture(scope="module")
def found(prepared: PreparedBase, dim: Support) -> Search:
    return search(prepared, dim, current=default_soup(prepared.manifest), rungs=BELOW)


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


def test_what_was_chosen_is_what_is_served(prepared: PreparedBase, found: Search, dim: Support) -> None:
    said = served_logits(prepared, found.soup, dim.images) / found.soup.temperature
    features = found.pool.features[found.choice.candidate]
    assert found.choice.head is not None
    assert features is not None
    torch.testing.assert_close(said, found.choice.head(features).float(), rtol=1e-3, atol=1e-3)
    own = search(prepared, dim, current=default_soup(prepared.manifest), rungs=("statistics",))
    said = served_logits(prepared, own.soup, dim.images) / own.soup.temperature
    losses = torch.nn.functional.cross_entropy(said, torch.from_numpy(dim.labels), reduction="none")
    chosen = own.scores.losses[own.choice.candidate, own.choice.temperature]
    np.testing.assert_allclose(losses.numpy(), chosen, rtol=1e-3, atol=1e-3)
    assert found.outcome.patch == (None if found.soup.patch is None else found.soup.patch.summary)
    assert found.outcome.temperature == found.soup.temperature


def test_the_cost_is_a_sixth_of_a_grid_of_one_kind(found: Search) -> None:
    assert found.outcome.search.image_forwards <= 149 * 150 / 6
    assert found.outcome.search.candidates <= num_evaluated(4, both_kinds=True) <= 149 / 6


@pytest.mark.parametrize("strategy", ["grid", "surrogate"])
def test_a_permuted_last_layer_is_fitted_again(prepared: PreparedBase, strategy: str) -> None:
    support = coloured(300, prepared.manifest.class_names)
    permuted = turned(support)
    current = default_soup(prepared.manifest)
    result = search(prepared, permuted, current=current, strategy=strategy, step=0.5, rungs=("head",))
    assert result.outcome.state == "promoted"
    assert result.choice.head is not None
    assert result.soup.patch is not None
    assert result.soup.patch.head
    assert result.soup.patch.recalibrated == 0
    assert result.soup.temperature == 1.0
    unseen = turned(coloured(300, prepared.manifest.class_names, seed=9))
    after = (served_logits(prepared, result.soup, unseen.images).argmax(1).numpy() == unseen.labels).mean()
    assert result.outcome.accuracy is not None
    assert after > 0.6
    assert abs(result.outcome.accuracy.candidate - after) < 0.1
    head = result.choice.head(result.pool.features[result.choice.candidate]) if strategy == "surrogate" else None
    if head is not None:
        np.testing.assert_allclose(
            served_logits(prepared, result.soup, support.images).numpy(), head.float().numpy(), rtol=1e-3, atol=1e-3
        )


def test_a_class_without_images_or_too_few_images_leave_the_last_layer(prepared: PreparedBase) -> None:
    support = coloured(300, prepared.manifest.class_names)
    permuted = turned(support)
    current = default_soup(prepared.manifest)
    two = permuted.subset(np.flatnonzero(permuted.labels != 0))
    assert search(prepared, two, current=current, rungs=("head",)).choice.head is None
    few = permuted.subset(np.arange(MIN_HEAD_IMAGES - 1))
    assert search(prepared, few, current=current, rungs=("head",)).choice.head is None


def test_a_current_soup_with_a_patch_is_judged_with_it_and_kept_as_it_is(prepared: PreparedBase, found: Search) -> None:
    support = coloured(60, prepared.manifest.class_names, seed=3, contrast=0.2)
    again = search(prepared, support, current=found.soup, rungs=())
    expected = served_logits(prepared, found.soup, support.images).argmax(1).numpy() == support.labels
    assert again.scores.correct[0].tolist() == expected.tolist()
    assert again.choice.candidate == 0
    assert again.outcome.state == "kept"
    assert again.soup.patch == found.soup.patch
    assert again.soup.bn_mode == found.soup.bn_mode


def test_unlabelled_images_count_in_the_statistics(prepared: PreparedBase) -> None:
    support = coloured(30, prepared.manifest.class_names, contrast=0.2)
    more = coloured(200, prepared.manifest.class_names, seed=8, contrast=0.2).images
    result = search(prepared, support, current=default_soup(prepared.manifest), unlabelled=more, rungs=("statistics",))
    assert result.outcome.support.unlabelled == 200
    assert result.soup.patch is not None
    assert result.soup.patch.recalibrated == 230


def test_a_network_without_batchnorm_climbs_only_to_its_last_layer(ln_base: BaseSet) -> None:
    prepared = PreparedBase(ln_base)
    result = search(prepared, support_for(prepared, 90), current=default_soup(ln_base.manifest), rungs=RUNGS)
    assert not result.pool.recalibrated.any()
    with pytest.raises(ValueError, match="no BatchNorm"):
        recalibrate(prepared, support_for(prepared, 5).images, current=default_soup(ln_base.manifest))


def test_a_network_without_batchnorm_climbs_on_where_its_moments_are_known(prepared_moments: PreparedBase) -> None:
    manifest = prepared_moments.manifest
    dim = coloured(60, manifest.class_names, contrast=0.2)
    result = search(prepared_moments, dim, current=default_soup(manifest), rungs=("statistics",))
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
        assert soup.patch.head == (current.patch is not None and current.patch.head)
    with pytest.raises(ValueError, match="at least one"):
        recalibrate(prepared, images[:0], current=default_soup(prepared.manifest))
    with pytest.raises(ValueError, match=r"16, 16, 3"):
        recalibrate(prepared, images[:, :8], current=default_soup(prepared.manifest))


def test_recalibration_belongs_to_its_base_set(prepared: PreparedBase, ln_base: BaseSet) -> None:
    with pytest.raises(SoupError):
        recalibrate(prepared, support_for(prepared, 5).images, current=default_soup(ln_base.manifest))


def test_a_search_with_statistics_and_head_is_repeatable(prepared: PreparedBase, found: Search, dim: Support) -> None:
    again = search(prepared, dim, current=default_soup(prepared.manifest), rungs=BELOW)
    assert again.outcome.model_copy(update={"search": found.outcome.search}) == found.outcome
    assert again.soup.patch == found.soup.patch


def test_labels_of_a_fold_do_not_judge_themselves(prepared: PreparedBase) -> None:
    """Random labels: what is fitted to them must look no better than chance on the images held out."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    labels = generator.integers(0, 3, 300)
    support = Support(images, labels, tuple(map(str, range(300))), prepared.manifest.class_names)
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
        search(prepared, some, current=default_soup(prepared.manifest), balance=balance) for balance in (False, True)
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
