from dataclasses import replace
from functools import partial

import adapt.rungs.surgery
import numpy as np
import pytest
import torch
from adapt.rungs.ladder import Ladder
from adapt.rungs.surgery import Surgery

from adapt.documents.patch import STATISTICS
from adapt.documents.soup import RUNGS, Rung, default_soup
from adapt.images.support import Support
from adapt.networks.forward import served_logits
from adapt.networks.mixing import mix
from adapt.networks.network import Cancelled
from adapt.networks.prepared import PreparedBase
from adapt.rungs.early import MIN_IMAGES, TRAIN_FROM
from adapt.rungs.pool import Library
from adapt.rungs.task import Task
from adapt.rungs.training import Start, early_keys, train_early
from adapt.search.grid import lattice
from adapt.search.search import Search
from adapt.search.search import search as search_at_once
from adapt.search.surrogate import search_grid
from adapt.search.unlabelled import recalibrate
from tests.adapt.rungs.test_ladder import coloured, prepared  # noqa: F401
from training.bases import BaseSet

search = partial(search_at_once, train_from=MIN_IMAGES)

FIRST: tuple[Rung, ...] = ("statistics", "early")


def swapped(support: Support) -> Support:
    """The same pictures, red as green and so on: no statistics undo that, a first layer does."""
    return replace(support, images=np.roll(support.images, 1, axis=3))


@pytest.fixture(scope="module")
def pictures(prepared: PreparedBase) -> Support:  # noqa: F811
    return swapped(coloured(150, prepared.manifest.class_names))


@pytest.fixture(scope="module")
def found(prepared: PreparedBase, pictures: Support) -> Search:  # noqa: F811
    return search(prepared, pictures, current=default_soup(prepared.manifest), rungs=FIRST)


def accuracy(prepared: PreparedBase, found: Search, unseen: Support) -> float:  # noqa: F811
    return float((served_logits(prepared, found.soup, unseen.images).argmax(1).numpy() == unseen.labels).mean())


def test_first_weights_and_all_vectors_are_trained_and_nothing_of_the_last_layer(
    base: BaseSet, ln_base: BaseSet
) -> None:
    for one in (base, ln_base):
        net = one.model().net
        head = PreparedBase(one).head_key
        assert head is not None
        keys = early_keys(net, head)
        inner = {name: p for name, p in net.named_parameters() if not name.startswith(head)}
        assert {name for name, p in inner.items() if p.dim() == 1} <= set(keys) <= set(inner)
        weights = [name for name, p in inner.items() if p.dim() > 1]
        trained = [name for name in weights if name in keys]
        assert trained == weights[: len(trained)]
        assert sum(inner[name].numel() for name in trained) <= 0.1 * sum(
            p.numel() for p in net.parameters() if p.dim() > 1
        )


def test_swapped_colours_are_learned_and_what_was_judged_is_what_is_served(
    prepared: PreparedBase,  # noqa: F811
    found: Search,
    pictures: Support,
) -> None:
    assert found.outcome.state == "promoted"
    assert found.soup.patch is not None
    assert found.soup.patch.early
    assert found.soup.patch.recalibrated == 150
    assert not found.soup.patch.head
    assert found.soup.bn_mode == "raw"
    without = search(prepared, pictures, current=default_soup(prepared.manifest), rungs=("statistics",))
    unseen = swapped(coloured(400, prepared.manifest.class_names, seed=5))
    after = accuracy(prepared, found, unseen)
    assert after > accuracy(prepared, without, unseen) + 0.2
    assert found.outcome.accuracy is not None
    assert abs(found.outcome.accuracy.candidate - after) < 0.1
    assert found.outcome.patch == found.soup.patch.summary


def test_the_patch_over_mixed_weights_is_the_network_that_was_trained(
    prepared: PreparedBase,  # noqa: F811
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


def test_a_training_is_repeatable_and_no_worse_on_held_out_images(
    prepared: PreparedBase,  # noqa: F811
    found: Search,
    pictures: Support,
) -> None:
    current = default_soup(prepared.manifest)
    again = search(prepared, pictures, current=current, rungs=FIRST)
    assert again.soup.patch == found.soup.patch
    assert again.outcome.accuracy == found.outcome.accuracy
    other = search(prepared, pictures, current=current, rungs=FIRST, seed=1)
    assert other.soup.patch != found.soup.patch
    clean = coloured(150, prepared.manifest.class_names, seed=2)
    for support in (pictures, clean):
        below, above = (search(prepared, support, current=current, rungs=r) for r in (("statistics", "head"), RUNGS))
        assert below.fit is not None
        assert above.fit is not None
        assert above.fit.loss <= below.fit.loss
        assert above.fit.share(above.fit.candidate) >= below.fit.share(below.fit.candidate)


def test_few_images_a_missing_class_and_folded_batchnorm_are_not_trained_on(
    prepared: PreparedBase,  # noqa: F811
    pictures: Support,
) -> None:
    current = default_soup(prepared.manifest)
    few = pictures.subset(np.arange(MIN_IMAGES - 1))
    two = pictures.subset(np.flatnonzero(pictures.labels != 0))
    for support, rungs in ((few, FIRST), (two, FIRST), (pictures, ("early",))):
        assert search(prepared, support, current=current, rungs=rungs).choice.early is None
    assert search(prepared, pictures, current=current, rungs=("early",), bn_mode="raw").choice.early is not None
    at_once = search_at_once(prepared, pictures, current=current, rungs=FIRST)  # fewer than are trained on by default
    assert len(pictures) < TRAIN_FROM
    assert at_once.choice.early is None
    with pytest.raises(ValueError, match="expected train_from >= 80, got 79"):
        search_at_once(prepared, pictures, current=current, train_from=79)


def test_what_a_fold_is_judged_by_never_saw_it(
    prepared: PreparedBase,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random labels: trainings that fit them must look no better than chance on the images held out."""
    monkeypatch.setattr(adapt.rungs.surgery, "HOPELESS", 1e9)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    support = Support(images, generator.integers(0, 3, 300), tuple(map(str, range(300))), prepared.manifest.class_names)
    folds = support.folds(5, seed=0)
    current = default_soup(prepared.manifest).model_copy(update={"bn_mode": "raw"})
    task = Task(prepared, support, None, current, "raw", False, folds, None, lambda *_: None, None)
    pool = search_grid(task, lattice("simplex", 1.0))
    ladder = Ladder(task, pool, Library(task, pool), with_head=False)
    below = ladder.climb()
    surgery = Surgery(task, ladder, seed=0)
    assert below.fit is not None
    fit = surgery._cross_fit(below.kind, below.fit)
    assert fit is not None
    assert surgery.image_forwards > 0
    assert not np.array_equal(fit.candidate_losses, below.fit.candidate_losses)
    assert abs(fit.share(fit.candidate) - 1 / 3) < 0.09


def test_it_stops_when_told_and_says_how_far_it_is(prepared: PreparedBase, pictures: Support) -> None:  # noqa: F811
    said: list[tuple[float, str]] = []
    watched = partial(
        search,
        prepared,
        pictures,
        current=default_soup(prepared.manifest),
        rungs=FIRST,
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
    prepared: PreparedBase,  # noqa: F811
    found: Search,
) -> None:
    fresh = swapped(coloured(90, prepared.manifest.class_names, seed=3))
    again = search(prepared, fresh, current=found.soup, rungs=FIRST)
    assert again.fit is not None
    assert again.fit.share(again.fit.candidate) >= 0.9 * again.fit.share(again.fit.current)
    kept = search(prepared, fresh, current=found.soup, rungs=())
    assert kept.soup.patch == found.soup.patch
    images = swapped(coloured(200, prepared.manifest.class_names, seed=6)).images
    soup, outcome = recalibrate(prepared, images, current=found.soup)
    assert outcome.patch is not None
    assert (outcome.patch.early, outcome.patch.recalibrated) == (True, 200)
    unseen = swapped(coloured(300, prepared.manifest.class_names, seed=7))
    after = (served_logits(prepared, soup, unseen.images).argmax(1).numpy() == unseen.labels).mean()
    assert after > accuracy(prepared, found, unseen) - 0.1


@pytest.mark.parametrize("with_moments", [False, True])
def test_a_network_without_batchnorm_is_trained_too(
    ln_base: BaseSet, prepared_moments: PreparedBase, with_moments: bool
) -> None:
    layer_norm = prepared_moments if with_moments else PreparedBase(ln_base)
    support = coloured(120, layer_norm.manifest.class_names)
    start = Start([1.0, 0.0, 0.0, 0.0], "folded", None, 1.0)
    prior = torch.full((120, 3), 1 / 3)
    trained = train_early(layer_norm, start, support.images, support.labels, prior)
    assert layer_norm.head_key is not None
    assert set(trained.tensors) == set(early_keys(layer_norm.base.model().net, layer_norm.head_key))
    assert all(np.isfinite(array).all() for array in trained.tensors.values())
    result = search(layer_norm, support, current=default_soup(layer_norm.manifest), rungs=FIRST)
    assert result.fit is not None
    below = search(layer_norm, support, current=default_soup(layer_norm.manifest), rungs=("statistics",))
    assert below.fit is not None
    assert result.fit.loss <= below.fit.loss
    if result.soup.patch is not None and result.soup.patch.early:
        assert result.soup.patch.recalibrated in (0, 120)
