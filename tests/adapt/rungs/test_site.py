"""All weights, trained on the labelled images and mixed with what they were."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from adapt.documents.patch import make_patch
from adapt.documents.soup import default_soup
from adapt.images.support import Support
from adapt.networks.forward import served_logits
from adapt.networks.network import Cancelled
from adapt.networks.prepared import PreparedBase
from adapt.rungs import site
from adapt.rungs.mixture import Mixture
from adapt.rungs.pool import Library
from adapt.rungs.registry import LADDER
from adapt.rungs.site import SHARES, TEMPERATURES, Site, may_mirror
from adapt.rungs.task import Part, Task
from adapt.search import trials
from adapt.search.config import SearchConfig
from adapt.search.grid import lattice
from adapt.search.search import Search, search
from adapt.search.selection import TOO_SLOW, Selected, select
from adapt.search.surrogate import search_surrogate
from adapt.search.unlabelled import recalibrate
from tests.adapt.pictures import coloured, swapped
from training.bases import BaseSet

ALL: tuple[str, ...] = ("statistics", "head", "site")
UNSEEN = 400


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    """Tiny networks learn at a higher rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "LEARNING_RATE", 3e-3)
        yield


@pytest.fixture(scope="module")
def prepared(tinted: PreparedBase) -> PreparedBase:
    return tinted


@pytest.fixture(scope="module")
def pictures(prepared: PreparedBase) -> Support:
    return swapped(coloured(90, prepared.manifest.class_names))


@pytest.fixture(scope="module")
def found(prepared: PreparedBase, pictures: Support) -> Search:
    return search(
        prepared, pictures, SearchConfig(effort="full", rungs=("site",)), current=default_soup(prepared.manifest)
    )


def accuracy(prepared: PreparedBase, found: Search, unseen: Support) -> float:
    return float((served_logits(prepared, found.soup, unseen.images).argmax(1).numpy() == unseen.labels).mean())


def chosen(task: Task, rungs: tuple[str, ...]) -> Selected:
    library = Library(task, search_surrogate(task, lattice("affine")))
    return select(library, [LADDER[name](library) for name in rungs])


def test_what_was_trained_is_promoted_and_what_was_judged_is_what_is_served(
    prepared: PreparedBase, found: Search, pictures: Support
) -> None:
    unseen = swapped(coloured(UNSEEN, prepared.manifest.class_names, seed=5))
    plain = search(prepared, pictures, SearchConfig(effort="full", rungs=()), current=default_soup(prepared.manifest))
    assert found.outcome.state == "promoted"
    assert found.soup.patch is not None
    assert found.soup.patch.rungs == ("site",)
    after = accuracy(prepared, found, unseen)
    assert after > accuracy(prepared, plain, unseen) + 0.2
    assert found.outcome.accuracy is not None
    assert abs(found.outcome.accuracy.candidate - after) < 0.12
    everything = np.ones(len(pictures), dtype=np.bool_)
    served = served_logits(prepared, found.soup, pictures.images) / found.soup.temperature
    torch.testing.assert_close(served, found.choice.logits(everything), rtol=1e-3, atol=1e-4)


def test_patch_holds_every_parameter_and_kernels_in_half_precision(prepared: PreparedBase, found: Search) -> None:
    assert found.soup.patch is not None
    tensors = found.soup.patch.tensors()
    assert {key for key, _ in prepared.base.model().net.named_parameters()} <= set(tensors)
    num_bytes = sum(array.size * (2 if array.ndim > 1 else 4) for array in tensors.values())
    assert num_bytes <= len(found.soup.patch.data) < num_bytes + 200 * len(tensors)
    for array in tensors.values():
        assert array.ndim < 2 or np.array_equal(array.astype(np.float16), array)


@pytest.mark.slow
def test_training_is_repeatable_and_depends_on_the_seed(
    prepared: PreparedBase, found: Search, pictures: Support
) -> None:
    current = default_soup(prepared.manifest)
    again = search(prepared, pictures, SearchConfig(effort="full", rungs=("site",)), current=current)
    assert again.soup.patch == found.soup.patch
    assert again.outcome.accuracy == found.outcome.accuracy
    other = search(prepared, pictures, SearchConfig(effort="full", rungs=("site",), seed=1), current=current)
    assert other.soup.patch != found.soup.patch


def test_a_share_of_nothing_is_the_start_and_a_share_of_all_plain_fine_tuning(
    prepared: PreparedBase, pictures: Support, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "SHARES", (0.0, 0.5, 1.0))
    task = task_for(prepared, pictures, bn_mode="raw")
    library, everything = Library(task, search_surrogate(task, lattice("affine"))), np.ones(90, dtype=np.bool_)
    rung, whole = Site(library), Part(np.ones(90, dtype=np.bool_), library.pool.eligible)
    below = replace(Mixture(library).fit(whole), bn_mode="raw")
    start, half, trained = rung.fit(below, whole)[:: len(TEMPERATURES)]
    weights = prepared.model("raw")
    weights.set(start.coefficients, None)
    for key, parameter in weights.net.named_parameters():
        np.testing.assert_allclose(start.tensors[key], parameter.numpy(), rtol=1e-3, atol=1e-6)
        middle = (start.tensors[key] + trained.tensors[key]) / 2
        np.testing.assert_allclose(half.tensors[key], middle, rtol=2e-3, atol=1e-4)
    labels = torch.from_numpy(pictures.labels)
    losses = [
        float(torch.nn.functional.cross_entropy(model.logits(everything), labels)) for model in (start, half, trained)
    ]
    assert losses[0] > losses[1] > losses[2]


def test_variants_are_every_share_at_every_temperature(
    prepared: PreparedBase, pictures: Support, task_for: Callable[..., Task]
) -> None:
    task = task_for(prepared, pictures, bn_mode="raw")
    library = Library(task, search_surrogate(task, lattice("affine")))
    whole = Part(np.ones(90, dtype=np.bool_), library.pool.eligible)
    rung = Site(library)
    models = rung.fit(Mixture(library).fit(whole), whole)
    assert len(models) == rung.num_variants == len(SHARES) * len(TEMPERATURES)
    first = models[0].answer(whole.images)
    before = library.image_forwards
    for by, model in zip(TEMPERATURES, models, strict=False):
        torch.testing.assert_close(model.logits(whole.images) * model.temperature, first)
        assert model.temperature == pytest.approx(models[0].temperature * by)
    assert library.image_forwards == before  # models that differ by the temperature alone share their answers


@pytest.mark.slow
def test_what_a_fold_is_answered_by_knows_nothing_of_its_labels(
    prepared: PreparedBase, pictures: Support, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is taken, and which variant, may: see `Rung.num_parts`. So one is taken, whatever they say."""
    monkeypatch.setattr(trials, "HOPELESS", 1e9)
    monkeypatch.setattr(trials.Trial, "best", lambda trial, _: trials.Choice(trial, 3, 1.0))
    task = task_for(prepared, pictures, recalibrate=True)
    before = chosen(task, ALL)
    assert all("site" in model.rungs for model in (before.model, *before.without))
    labels = pictures.labels.copy()
    labels[task.folds == 3] = 0
    after = chosen(replace(task, support=replace(pictures, labels=labels)), ALL)
    for fold in range(5):
        held_out = task.held_out_parts()[fold]
        same = torch.equal(before.without[fold].answer(held_out), after.without[fold].answer(held_out))
        assert same == (fold in (2, 3))  # folds 2 and 3 are held out together


def test_the_other_folds_decide_for_a_fold(
    prepared: PreparedBase, pictures: Support, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []
    own = trials.Trial.best

    def best_by(trial: trials.Trial, some: np.ndarray) -> trials.Choice | None:
        asked.append(some.copy())
        return own(trial, some)

    monkeypatch.setattr(trials, "HOPELESS", 1e9)
    monkeypatch.setattr(trials.Trial, "best", best_by)
    task = task_for(prepared, pictures, recalibrate=True)
    chosen(task, ALL)
    assert len(asked) == 6
    assert asked[0].all()
    for some, held_out in zip(asked[1:], task.held_out_parts(), strict=True):
        np.testing.assert_array_equal(some, ~held_out)


def test_random_labels_look_no_better_than_chance(
    prepared: PreparedBase, task_for: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "HOPELESS", 1e9)
    monkeypatch.setattr(Site, "is_better", lambda *_: True)
    pictures = swapped(coloured(90, prepared.manifest.class_names, seed=8))
    labels = np.random.default_rng(0).permutation(pictures.labels)
    found = chosen(task_for(prepared, replace(pictures, labels=labels), recalibrate=True), ("statistics", "site"))
    assert found.fit is not None
    assert all("site" in model.rungs for model in found.without)
    assert found.fit.share(found.fit.candidate) < 0.5


def test_few_images_a_missing_class_and_large_networks_are_refused(
    prepared: PreparedBase, pictures: Support, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = default_soup(prepared.manifest)
    few, two = pictures.subset(np.arange(19)), pictures.subset(np.flatnonzero(pictures.labels != 0))

    def not_tried(support: Support, rungs: tuple[str, ...]) -> str:
        found = search(prepared, support, SearchConfig(effort="full", rungs=rungs), current=current)
        assert "site" not in found.choice.rungs
        return found.outcome.not_tried["site"]

    assert not_tried(few, ALL) == "expected at least 20 labelled images, got 19"
    assert not_tried(two, ALL).startswith("expected labelled images of all 3 classes, got 2")
    monkeypatch.setattr(site, "MAX_BYTES", 1)
    assert "in half precision, expected at most" in not_tried(pictures, ALL)


def test_a_part_that_lacks_a_class_is_a_reason_not_to_train(prepared: PreparedBase, pictures: Support) -> None:
    """The fault: models that were not trained answered for that part, and were compared as if they had been."""
    rare = np.flatnonzero(pictures.labels == 2)[:2]
    some = pictures.subset(np.sort(np.concatenate([np.flatnonzero(pictures.labels != 2), rare])))
    found = search(
        prepared, some, SearchConfig(effort="full", rungs=("site",)), current=default_soup(prepared.manifest)
    )
    assert found.outcome.not_tried["site"].startswith("without one of the parts that are held out in turn: expected")
    assert found.choice.rungs == ()


def test_a_quick_search_leaves_training_for_later_also_where_the_current_version_leads(
    prepared: PreparedBase, pictures: Support
) -> None:
    """The fault: no follow-up came once a trained version was served, however many labels were added."""
    first = search(
        prepared, pictures, SearchConfig(effort="full", rungs=("site",)), current=default_soup(prepared.manifest)
    )
    second = search(prepared, pictures, SearchConfig(rungs=ALL), current=first.soup)
    assert second.choice.candidate == 0
    assert second.outcome.not_tried["site"] == TOO_SLOW


def test_progress_never_falls(prepared: PreparedBase, pictures: Support) -> None:
    told: list[float] = []
    search(
        prepared,
        pictures,
        SearchConfig(effort="full"),
        current=default_soup(prepared.manifest),
        progress=lambda done, _: told.append(done),
    )
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] <= 1


def test_it_stops_within_a_step(prepared: PreparedBase, pictures: Support) -> None:
    told: list[str] = []

    def should_stop() -> bool:
        return any("training all weights" in message for message in told)

    with pytest.raises(Cancelled):
        search(
            prepared,
            pictures,
            SearchConfig(effort="full", rungs=ALL),
            current=default_soup(prepared.manifest),
            progress=lambda _, message: told.append(message),
            should_stop=should_stop,
        )
    assert sum("training all weights" in message for message in told) == 1


def test_an_adapted_version_is_judged_by_held_out_answers_and_can_be_trained_past(
    prepared: PreparedBase, pictures: Support
) -> None:
    first = search(
        prepared, pictures, SearchConfig(effort="full", rungs=("statistics",)), current=default_soup(prepared.manifest)
    )
    second = search(prepared, pictures, SearchConfig(effort="full", rungs=ALL), current=first.soup)
    assert second.outcome.accuracy is not None
    assert second.outcome.accuracy.judged is not None
    assert "site" not in second.outcome.not_tried


def test_statistics_of_unlabelled_images_are_those_of_the_trained_network(
    prepared: PreparedBase, found: Search
) -> None:
    images = swapped(coloured(200, prepared.manifest.class_names, seed=6)).images
    soup, outcome = recalibrate(prepared, images, current=found.soup)
    assert outcome.patch is not None
    assert outcome.patch.recalibrated == 200
    unseen = swapped(coloured(UNSEEN, prepared.manifest.class_names, seed=7))
    after = (served_logits(prepared, soup, unseen.images).argmax(1).numpy() == unseen.labels).mean()
    assert after > accuracy(prepared, found, unseen) - 0.1


def test_statistics_without_batchnorm_are_not_estimated_apart_from_trained_weights(
    prepared_moments: PreparedBase,
) -> None:
    """The fault: moments of the ingredients undid the scales that training had found."""
    patch = make_patch({"head.bias": np.zeros(3, dtype=np.float32)}, rungs=("site",))
    current = default_soup(prepared_moments.manifest).model_copy(update={"patch": patch})
    images = coloured(30, prepared_moments.manifest.class_names).images
    with pytest.raises(ValueError, match="roll back first"):
        recalibrate(prepared_moments, images, current=current)


def test_a_network_without_batchnorm_is_trained_too(ln_base: BaseSet) -> None:
    layer_norm = PreparedBase(ln_base)
    support = coloured(90, layer_norm.manifest.class_names)
    found = search(
        layer_norm,
        support,
        SearchConfig(effort="full", rungs=("head", "site")),
        current=default_soup(layer_norm.manifest),
    )
    below = search(
        layer_norm, support, SearchConfig(effort="full", rungs=("head",)), current=default_soup(layer_norm.manifest)
    )
    assert "site" not in found.outcome.not_tried
    assert found.fit is not None
    assert below.fit is not None
    assert found.fit.candidate_losses.mean() <= below.fit.candidate_losses.mean()


@pytest.mark.parametrize("flip", [True, False, None])
def test_images_are_mirrored_where_those_of_training_were(base: BaseSet, flip: bool | None) -> None:
    recipe = {} if flip is None else {"augmentation": {"flip": flip}}
    provenance = base.manifest.provenance.model_copy(update={"recipe": recipe})
    assert may_mirror(base.manifest.model_copy(update={"provenance": provenance})) == (flip is True)
