import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from pydantic import JsonValue

from adapt.documents.patch import STATISTICS
from adapt.documents.soup import Judged, default_soup
from adapt.images.support import Support
from adapt.networks.forward import served_logits
from adapt.networks.mixing import mix
from adapt.networks.network import Cancelled
from adapt.networks.prepared import PreparedBase
from adapt.rungs import training
from adapt.rungs.early import MIN_IMAGES, STEPS, FirstLayers, early_keys, early_plan
from adapt.rungs.model import Answers
from adapt.rungs.pool import Library
from adapt.rungs.task import Task
from adapt.rungs.training import Start, Trained, _rate, moved, train
from adapt.search import trials
from adapt.search.config import RUNGS, SearchConfig
from adapt.search.grid import lattice
from adapt.search.search import Search, search
from adapt.search.selection import TOO_SLOW, select
from adapt.search.surrogate import search_grid
from adapt.search.unlabelled import recalibrate
from tests.adapt.pictures import coloured, noise, swapped
from tests.blind import blue_pictures, make_blind
from training.bases import BaseSet, load_base_set

FIRST: tuple[str, ...] = ("statistics", "early")
WITH_HEAD = ("statistics", "head", "early")


@pytest.fixture(scope="module")
def prepared(tinted: PreparedBase) -> PreparedBase:
    return tinted


@pytest.fixture(scope="module")
def pictures(prepared: PreparedBase) -> Support:
    return swapped(coloured(150, prepared.manifest.class_names))


@pytest.fixture(scope="module")
def found(prepared: PreparedBase, pictures: Support) -> Search:
    return search(prepared, pictures, SearchConfig(effort="full", rungs=FIRST), current=default_soup(prepared.manifest))


def accuracy(prepared: PreparedBase, found: Search, unseen: Support) -> float:
    return float((served_logits(prepared, found.soup, unseen.images).argmax(1).numpy() == unseen.labels).mean())


POSITIONS = ("pos_embed", "relative_position_bias_table")


def test_first_filters_and_all_vectors_are_trained_and_nothing_of_the_last_layer(
    base: BaseSet, ln_base: BaseSet
) -> None:
    for one in (base, ln_base):
        net = one.model().net
        head = PreparedBase(one).head_key
        assert head is not None
        keys = early_keys(net, head)
        inner = {name: p for name, p in net.named_parameters() if not name.startswith(head)}
        filters = [name for name, p in inner.items() if name.endswith("weight") and p.dim() > 1]
        others = inner.keys() - filters
        assert {name for name in others if not name.endswith(POSITIONS)} <= set(keys) <= set(inner)
        trained = [name for name in filters if name in keys]
        assert trained == filters[: len(trained)]
        assert (
            0
            < sum(inner[name].numel() for name in trained)
            <= 0.1 * sum(p.numel() for p in net.parameters() if p.dim() > 1)
        )


@pytest.mark.parametrize(
    ("name", "kwargs", "filters"),
    [
        # Each block is a twentieth.
        ("vit_tiny_patch16_224", {"depth": 20, "embed_dim": 24, "num_heads": 2, "patch_size": 4, "img_size": 64}, 8),
        ("vit_tiny_patch16_224", {}, 1),  # the filters of its patches alone are more than `MAX_WEIGHTS`
        ("swin_tiny_patch4_window7_224", {"depths": [2, 2], "embed_dim": 24, "num_heads": [2, 4]}, 4),
        ("volo_d1_224", {}, 2),
        ("cait_xxs24_224", {}, 1),
    ],
    ids=["deep", "wide", "swin", "volo", "cait"],
)
def test_of_vision_transformers_the_patch_embedding_and_what_follows_are_trained(
    name: str, kwargs: dict[str, JsonValue], filters: int
) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=3, **kwargs)
    keys = early_keys(net, "head")
    inner = dict(net.named_parameters())
    trained = [key for key in keys if key.endswith("weight") and inner[key].dim() > 1]
    assert len(trained) == filters
    assert trained[0].startswith("patch_embed.")
    assert all(key.startswith(("patch_embed.", "blocks.0.", "blocks.1", "layers.0.blocks.0.")) for key in trained)
    assert not any(key.endswith(POSITIONS) for key in keys)
    assert ("cls_token" in keys) == ("cls_token" in inner)


def test_swapped_colours_are_learned_and_what_was_judged_is_what_is_served(
    prepared: PreparedBase,
    found: Search,
    pictures: Support,
) -> None:
    assert found.outcome.state == "promoted"
    assert found.soup.patch is not None
    assert found.soup.patch.rungs == FIRST
    assert found.soup.patch.recalibrated == 150
    assert found.soup.bn_mode == "raw"
    without = search(
        prepared,
        pictures,
        SearchConfig(effort="full", rungs=("statistics",)),
        current=default_soup(prepared.manifest),
    )
    unseen = swapped(coloured(400, prepared.manifest.class_names, seed=5))
    after = accuracy(prepared, found, unseen)
    assert after > accuracy(prepared, without, unseen) + 0.2
    assert found.outcome.accuracy is not None
    assert abs(found.outcome.accuracy.candidate - after) < 0.1
    assert found.outcome.patch == found.soup.patch.summary


def test_the_patch_over_mixed_weights_is_the_network_that_was_trained(
    prepared: PreparedBase,
    found: Search,
    pictures: Support,
) -> None:
    assert found.soup.patch is not None
    tensors = found.soup.patch.tensors()
    weights = mix(
        list(prepared.base.state_dicts.values()), torch.tensor(found.soup.vector(prepared.manifest)), patch=tensors
    )
    net = prepared.base.model().net
    net.load_state_dict(weights)
    with torch.no_grad():
        expected = net.eval()(prepared.normalise(torch.from_numpy(pictures.images).permute(0, 3, 1, 2) / 255))
    torch.testing.assert_close(served_logits(prepared, found.soup, pictures.images), expected, rtol=1e-3, atol=1e-4)
    changed = set(early_keys(net, "head")) | {key for key in weights if key.endswith(STATISTICS)}
    assert set(tensors) == changed


@pytest.mark.slow
def test_a_training_is_repeatable_and_no_worse_on_held_out_images(
    prepared: PreparedBase,
    found: Search,
    pictures: Support,
) -> None:
    current = default_soup(prepared.manifest)
    again = search(prepared, pictures, SearchConfig(effort="full", rungs=FIRST), current=current)
    assert again.soup.patch == found.soup.patch
    assert again.outcome.accuracy == found.outcome.accuracy
    other = search(prepared, pictures, SearchConfig(effort="full", rungs=FIRST, seed=1), current=current)
    assert other.soup.patch != found.soup.patch
    clean = coloured(150, prepared.manifest.class_names, seed=2)
    for support in (pictures, clean):
        below, above = (
            search(prepared, support, SearchConfig(effort="full", rungs=r), current=current)
            for r in (("statistics", "head"), RUNGS)
        )
        assert below.fit is not None
        assert above.fit is not None
        assert above.fit.candidate_losses.mean() <= below.fit.candidate_losses.mean()
        assert above.fit.share(above.fit.candidate) >= below.fit.share(below.fit.candidate)


def test_few_images_a_missing_class_and_folded_batchnorm_are_not_trained_on(
    prepared: PreparedBase,
    pictures: Support,
) -> None:
    current = default_soup(prepared.manifest)
    few = pictures.subset(np.arange(MIN_IMAGES - 1))
    two = pictures.subset(np.flatnonzero(pictures.labels != 0))
    for support, rungs, why in (
        (few, FIRST, f"expected at least {MIN_IMAGES} labelled images, got {MIN_IMAGES - 1}"),
        (two, FIRST, "expected labelled images of all 3 classes, got 2"),
        (pictures, ("early",), "BatchNorm is folded"),
    ):
        found = search(prepared, support, SearchConfig(effort="full", rungs=rungs), current=current)
        assert "early" not in found.choice.rungs
        assert found.outcome.not_tried["early"].startswith(why)
    raw = SearchConfig(effort="full", rungs=("early",), bn_mode="raw")
    assert search(prepared, pictures, raw, current=current).choice.rungs == ("early",)


def test_a_quick_search_trains_nothing_and_says_so_where_it_could(prepared: PreparedBase, pictures: Support) -> None:
    current = default_soup(prepared.manifest)
    for support, why in (
        (pictures, TOO_SLOW),
        (pictures.subset(np.arange(60)), f"expected at least {MIN_IMAGES} labelled images, got 60"),
    ):
        found = search(prepared, support, SearchConfig(rungs=WITH_HEAD), current=current)
        assert found.choice.rungs == ("statistics", "head")
        assert found.outcome.not_tried == {"early": why}


@pytest.fixture(scope="module")
def blind(tiny_base_set: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedBase:
    return PreparedBase(load_base_set(make_blind(tiny_base_set, tmp_path_factory.mktemp("bases") / "blind")))


def blue(prepared: PreparedBase, n: int, *, seed: int) -> Support:
    images, labels = blue_pictures(n, seed=seed)
    return Support(images, labels, tuple(f"blue-{seed}-{i}" for i in range(n)), prepared.manifest.class_names)


@pytest.mark.slow
def test_a_full_search_beats_what_a_quick_one_on_the_same_images_found(blind: PreparedBase) -> None:
    """The fault: the version that a quick search had made from the images led, and so nothing was trained."""
    pictures, unseen = blue(blind, 240, seed=0), blue(blind, 600, seed=5)
    quick = search(blind, pictures, SearchConfig(rungs=WITH_HEAD), current=default_soup(blind.manifest))
    assert quick.outcome.state == "promoted"
    assert "head" in quick.choice.rungs
    full = search(blind, pictures, SearchConfig(effort="full", rungs=WITH_HEAD), current=quick.soup)
    assert full.outcome.not_tried == {}
    assert "early" in full.choice.rungs
    assert full.outcome.state == "promoted"
    assert full.outcome.accuracy is not None
    assert full.outcome.accuracy.judged == Judged(fresh=0, held_out=240, left_out=0)
    before, after = (accuracy(blind, found, unseen) for found in (quick, full))
    assert after > before + 0.1
    assert full.outcome.accuracy.current == pytest.approx(before, abs=0.1)


def test_a_full_search_that_finds_the_version_again_keeps_it(
    blind: PreparedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault: it was promoted over itself, as the temperature it is judged at is fitted to other folds' answers."""
    pictures = blue(blind, 200, seed=3)
    first = search(blind, pictures, SearchConfig(rungs=WITH_HEAD), current=default_soup(blind.manifest))
    assert first.soup.patch is not None
    monkeypatch.setattr(FirstLayers, "refuse", lambda *_: "not here")
    again = search(blind, pictures, SearchConfig(effort="full", rungs=WITH_HEAD), current=first.soup)
    assert not again.pool.eligible[0]
    assert again.soup.patch == first.soup.patch
    assert again.is_current
    assert again.outcome.state == "kept"


def test_what_a_fold_is_judged_by_never_saw_it(
    prepared: PreparedBase, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random labels: trainings that fit them must look no better than chance on the images held out."""
    monkeypatch.setattr(trials, "HOPELESS", 1e9)
    support = noise(300, prepared.manifest.class_names)
    current = default_soup(prepared.manifest).model_copy(update={"bn_mode": "raw"})
    task = task_for(prepared, support, current=current, bn_mode="raw")
    pool = search_grid(task, lattice("simplex", 1.0))
    library = Library(task, pool)
    found = select(library, [FirstLayers(library)])
    (own,) = found.tried
    assert library.image_forwards > 0
    assert found.fit is not None
    assert not np.array_equal(own.losses, found.fit.candidate_losses)
    assert abs(own.right.mean() - 1 / 3) < 0.09


def test_it_stops_when_told_and_says_how_far_it_is(prepared: PreparedBase, pictures: Support) -> None:
    said: list[tuple[float, str]] = []
    watched = partial(
        search,
        prepared,
        pictures,
        SearchConfig(effort="full", rungs=FIRST),
        current=default_soup(prepared.manifest),
        progress=lambda done, message: said.append((done, message)),
    )
    watched()
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    assert said[-1] == (pytest.approx(1.0), "training first layers on 150 images")

    said.clear()
    with pytest.raises(Cancelled):
        watched(should_stop=lambda: bool(said) and said[-1][1].startswith("training"))
    assert said[-1][0] < 0.5


def test_a_trained_soup_is_a_current_soup_like_any_other(
    prepared: PreparedBase,
    found: Search,
) -> None:
    fresh = swapped(coloured(90, prepared.manifest.class_names, seed=3))
    again = search(prepared, fresh, SearchConfig(effort="full", rungs=FIRST), current=found.soup)
    assert again.fit is not None
    assert again.fit.share(again.fit.candidate) >= 0.9 * again.fit.share(again.fit.current)
    kept = search(prepared, fresh, SearchConfig(effort="full", rungs=()), current=found.soup)
    assert kept.soup.patch == found.soup.patch
    images = swapped(coloured(200, prepared.manifest.class_names, seed=6)).images
    soup, outcome = recalibrate(prepared, images, current=found.soup)
    assert outcome.patch is not None
    assert (outcome.patch.rungs, outcome.patch.recalibrated) == (FIRST, 200)
    unseen = swapped(coloured(300, prepared.manifest.class_names, seed=7))
    after = (served_logits(prepared, soup, unseen.images).argmax(1).numpy() == unseen.labels).mean()
    assert after > accuracy(prepared, found, unseen) - 0.1


def train_first(prepared: PreparedBase, start: Start, support: Support, prior: torch.Tensor) -> Trained:
    assert prepared.head_key is not None
    plan = early_plan(prepared.model(start.bn_mode).net, prepared.head_key, len(support))
    return train(prepared, start, plan, support.images, support.labels, prior=prior)


@pytest.mark.parametrize("with_moments", [False, True])
def test_a_network_without_batchnorm_is_trained_too(
    ln_base: BaseSet, prepared_moments: PreparedBase, with_moments: bool
) -> None:
    layer_norm = prepared_moments if with_moments else PreparedBase(ln_base)
    support = coloured(120, layer_norm.manifest.class_names)
    start = Start([1.0, 0.0, 0.0, 0.0], "folded", None, 1.0)
    prior = torch.full((120, 3), 1 / 3)
    trained = train_first(layer_norm, start, support, prior)
    assert layer_norm.head_key is not None
    assert set(trained.tensors) == set(early_keys(layer_norm.base.model().net, layer_norm.head_key))
    assert all(np.isfinite(array).all() for array in trained.tensors.values())
    result = search(
        layer_norm, support, SearchConfig(effort="full", rungs=FIRST), current=default_soup(layer_norm.manifest)
    )
    assert result.fit is not None
    below = search(
        layer_norm,
        support,
        SearchConfig(effort="full", rungs=("statistics",)),
        current=default_soup(layer_norm.manifest),
    )
    assert below.fit is not None
    assert result.fit.candidate_losses.mean() <= below.fit.candidate_losses.mean()
    if result.soup.patch is not None and "early" in result.soup.patch.rungs:
        assert result.soup.patch.recalibrated in (0, 120)


def test_the_answers_of_the_rung_below_count_as_images(prepared: PreparedBase, pictures: Support) -> None:
    """Whatever the labels say, a training leans towards the classes that the prior calls likely."""
    start = Start([1.0, 0.0, 0.0, 0.0], "raw", None, 1.0)
    shares = []
    for label in range(3):
        prior = torch.full((150, 3), 0.05)
        prior[:, label] = 0.9
        trained = train_first(prepared, start, pictures, prior)
        run = prepared.run(np.eye(4)[[0]], pictures.images, bn_mode="raw", patch=trained.tensors)
        shares.append(run.logits[0].softmax(dim=1).mean(dim=0))
    found = torch.stack(shares)
    assert found.argmax(dim=0).tolist() == [0, 1, 2]
    assert (found.diagonal() > found.mean(dim=0) + 0.05).all()


def test_images_are_moved_each_by_itself_and_by_an_eighth_of_a_side_at_most() -> None:
    image = torch.arange(3 * 16 * 16, dtype=torch.float32).view(1, 3, 16, 16)
    seen = moved(image.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0), mirrored=False)
    assert seen.shape == (200, 3, 16, 16)
    centre = image[0, :, 8, 8]
    place = [(found == centre[:, None, None]).all(dim=0).nonzero() for found in seen]
    offsets = {tuple((spot[0] - 8).tolist()) for spot in place if len(spot)}
    assert len(offsets) == 25  # every one within two pixels, up and down, left and right
    assert all(abs(down) <= 2 and abs(right) <= 2 for down, right in offsets)


def test_training_sees_moved_images(prepared: PreparedBase, pictures: Support, monkeypatch: pytest.MonkeyPatch) -> None:
    start, prior = Start([1.0, 0.0, 0.0, 0.0], "raw", None, 1.0), torch.full((150, 3), 1 / 3)
    first = train_first(prepared, start, pictures, prior).tensors
    seen: list[int] = []

    def still(x: torch.Tensor, generator: torch.Generator, *, mirrored: bool) -> torch.Tensor:
        seen.append(len(x))
        return x

    monkeypatch.setattr(training, "moved", still)
    unmoved = train_first(prepared, start, pictures, prior).tensors
    assert len(seen) == math.ceil(150**STEPS)
    assert any(not np.allclose(first[key], unmoved[key], atol=1e-4) for key in first)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [_rate((step + 0.5) / 100) for step in range(100)]
    top = int(np.argmax(rates))
    assert 5 <= top <= 15
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert max(rates[0], rates[-1]) < 0.06


@pytest.mark.parametrize(
    ("losses", "right", "expected"),
    [((0.5, 0.5), (True, True), True), ((0.5, 0.5), (True, False), False), ((1.5, 0.6), (True, True), False)],
)
def test_first_layers_are_taken_where_losses_are_lower_and_no_fewer_answers_right(
    losses: tuple[float, float], right: tuple[bool, bool], expected: bool
) -> None:
    below = Answers(np.ones(2, dtype=np.float32), np.ones(2, dtype=np.bool_))
    own = Answers(np.asarray(losses, dtype=np.float32), np.asarray(right))
    assert FirstLayers.is_better(FirstLayers.__new__(FirstLayers), below, own, None) == expected
