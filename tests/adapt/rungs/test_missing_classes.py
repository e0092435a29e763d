"""A last layer fitted where some classes have no label: what it says of these classes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from adapt.documents.soup import default_soup
from adapt.images.support import Support
from adapt.networks.forward import run_soups, served_logits
from adapt.networks.last_layer import Head
from adapt.networks.prepared import PreparedBase
from adapt.rungs.head import MAX_STEPS, PENALTIES, LastLayer, fit_heads
from adapt.rungs.pool import Library
from adapt.rungs.task import Task
from adapt.search.config import SearchConfig
from adapt.search.grid import lattice
from adapt.search.search import search
from adapt.search.selection import select
from adapt.search.surrogate import search_grid
from benchmarks.gate.simulated import numbered_support
from tests.adapt.pictures import coloured, turned
from tests.adapt.search.wide import NUM_CLASSES, make_network

SOME = SearchConfig(rungs=("head",))


def problem(n: int, seed: int, *, num_classes: int = 6, labelled: int = 4) -> tuple[torch.Tensor, np.ndarray, Head]:
    """Features, labels of some classes only, and a layer that knows all classes."""
    generator = torch.Generator().manual_seed(seed)
    own = Head(
        torch.randn(num_classes, 8, generator=generator).double(),
        torch.randn(num_classes, generator=generator).double(),
    )
    shown = torch.randperm(num_classes, generator=generator)[:labelled].numpy()
    labels = shown[np.arange(n) % labelled]
    features = own.weight[torch.from_numpy(labels)].float() + 2 * torch.randn(n, 8, generator=generator)
    return features, labels, own


def soft_objective(head: Head, own: Head, features: torch.Tensor, labels: np.ndarray, penalty: float) -> float:
    """What is minimised, over all classes: of an image, classes without a label keep the own layer's probability."""
    others = np.setdiff1d(np.arange(len(own.bias)), labels)
    targets = own(features).softmax(dim=1)
    targets[:, np.unique(labels)] = 0
    targets[np.arange(len(labels)), labels] = 1 - targets[:, others].sum(dim=1)
    centre = features.double().mean(0)
    scale, change = (features.double() - centre).square().mean(), head.weight - own.weight
    loss = torch.nn.functional.cross_entropy(head(features), targets, reduction="sum")
    shifted = head.bias - own.bias + change @ centre
    return float(loss + penalty * (scale * change.square().sum() + shifted.square().sum()))


@given(n=st.integers(8, 80), seed=st.integers(0, 50), labelled=st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_rows_of_classes_without_a_label_stay_bit_for_bit(n: int, seed: int, labelled: int) -> None:
    features, labels, own = problem(n, seed, labelled=labelled)
    others = np.setdiff1d(np.arange(6), labels)
    for head in fit_heads(features, labels, own):
        assert torch.equal(head.weight[others], own.weight[others])
        assert torch.equal(head.bias[others], own.bias[others])
        assert (head.weight[np.unique(labels)] - own.weight[np.unique(labels)]).abs().max() > 0


@given(n=st.integers(8, 80), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_no_other_rows_of_labelled_classes_have_a_lower_objective(n: int, seed: int) -> None:
    features, labels, own = problem(n, seed)
    generator, shown = torch.Generator().manual_seed(seed), np.unique(labels)
    for penalty, head in zip(PENALTIES, fit_heads(features, labels, own), strict=True):
        least = soft_objective(head, own, features, labels, penalty)
        for scale in (1e-3, 1e-1):
            weight, bias = head.weight.clone(), head.bias.clone()
            weight[shown] += scale * torch.randn(weight[shown].shape, generator=generator).double()
            bias[shown] += scale * torch.randn(bias[shown].shape, generator=generator).double()
            assert least <= soft_objective(Head(weight, bias), own, features, labels, penalty) + 1e-4


def plain_fit(features: torch.Tensor, labels: np.ndarray, own: Head, weights: np.ndarray) -> list[Head]:
    """Logistic regression drawn to the own layer, every class labelled: nothing in it knows of classes without one."""
    x = features.double().numpy()
    centre = x.mean(axis=0)
    scale = float(np.sqrt(np.square(x - centre).mean()))
    x = (x - centre) / scale
    weight, bias, counts = own.weight.numpy(), own.bias.numpy(), weights.astype(np.float64)
    start, of_label, size = x @ (weight.T * scale) + bias + weight @ centre, (np.arange(len(x)), labels), weight.size

    def objective(change: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        logits = start + x @ change[:size].reshape(weight.shape).T + change[size:]
        logits -= logits.max(axis=1, keepdims=True)
        error = np.exp(logits)
        sums = error.sum(axis=1, keepdims=True)
        loss = counts @ (np.log(sums[:, 0]) - logits[of_label]) + penalty * (change @ change)
        error /= sums
        error[of_label] -= 1
        error *= counts[:, None]
        return loss, np.concatenate([(error.T @ x).ravel(), error.sum(axis=0)]) + 2 * penalty * change

    found, heads = np.zeros(size + len(bias)), []
    for penalty in PENALTIES:
        options = {"maxiter": MAX_STEPS}
        found = optimize.minimize(objective, found, (penalty,), jac=True, method="L-BFGS-B", options=options).x
        fitted = weight + found[:size].reshape(weight.shape) / scale
        shift = bias + found[size:] - (fitted - weight) @ centre
        heads.append(Head(torch.from_numpy(fitted), torch.from_numpy(shift)))
    return heads


@pytest.mark.parametrize("num_classes", [2, 6, 10])
def test_with_all_classes_labelled_it_is_plain_logistic_regression_to_the_last_digit(num_classes: int) -> None:
    features, labels, own = problem(80, num_classes, num_classes=num_classes, labelled=num_classes)
    weights = np.linspace(0.5, 1.5, 80, dtype=np.float32)
    pairs = zip(
        fit_heads(features, labels, own, weights=weights), plain_fit(features, labels, own, weights), strict=True
    )
    assert all(torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias) for one, other in pairs)


def test_labels_that_agree_with_the_own_layer_say_nothing_against_other_classes() -> None:
    """The plain fit takes the probability of classes without a label away, image by image; this one keeps it."""
    features, labels, own = problem(300, 1)
    own = own.divided(3.0)  # unsure, so that there is something to take away
    others = np.setdiff1d(np.arange(6), labels)
    before, held, plain = (
        float(head(features).softmax(dim=1)[:, others].sum(dim=1).mean())
        for head in (
            own,
            fit_heads(features, labels, own)[-1],
            fit_heads(features, labels, own, fitted=np.arange(6))[-1],
        )
    )
    assert before > 0.05
    assert held == pytest.approx(before, rel=0.05)
    assert plain < 0.7 * before


def without_class(support: Support, label: int) -> Support:
    return support.subset(np.flatnonzero(support.labels != label))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_images_of_a_class_without_a_label_stay_right_far_more_often_than_with_the_plain_fit(
    tinted: PreparedBase, missing: int
) -> None:
    """Real networks on noisy images, recalibrated on them: the labels of two of three classes, images of all three."""
    shown = without_class(coloured(300, tinted.manifest.class_names, spread=60), missing)
    unseen = coloured(600, tinted.manifest.class_names, seed=4, spread=60)
    row = np.eye(4)[[0]]
    run = run_soups(tinted, row, shown.images, recalibrate=True)
    (features,), (statistics,) = run.features, run.statistics
    (asked,) = run_soups(tinted, row, unseen.images, bn_mode="raw", patch=statistics).features
    own = tinted.head(row[0].tolist())
    assert own is not None
    assert features is not None
    assert asked is not None

    def right(head: Head) -> np.ndarray:
        return head(asked).argmax(dim=1).numpy() == unseen.labels

    known = right(own) & (unseen.labels == missing)
    assert known.sum() > 150
    everyone = np.arange(3)
    held, plain = (right(fit_heads(features, shown.labels, own, fitted=fitted)[-1]) for fitted in (None, everyone))
    assert held[known].mean() > 0.95
    assert plain[known].mean() < 0.7
    assert held.mean() > right(own).mean()


def test_a_search_fits_the_rows_of_labelled_classes_and_says_what_it_cannot_tell(tinted: PreparedBase) -> None:
    """Two tints have changed places, the third has no image."""
    support = without_class(coloured(300, tinted.manifest.class_names), 2)
    changed = replace(support, labels=1 - support.labels)
    found = search(tinted, changed, SOME, current=default_soup(tinted.manifest))
    assert found.outcome.not_tried == {}
    assert found.outcome.state == "promoted"
    assert found.choice.rungs == ("head",)
    assert found.outcome.reason.endswith(
        "; 1 of 3 classes have no labelled image, so nothing here shows their accuracy"
    )
    below, layer = found.choice.below, found.choice.layer
    assert below is not None
    assert below.layer is not None
    assert layer is not None
    assert torch.equal(layer.weight[2], below.layer.divided(below.temperature).weight[2].float())
    served = served_logits(tinted, found.soup, changed.images)
    everything = np.ones(len(changed), dtype=np.bool_)
    torch.testing.assert_close(served, found.choice.logits(everything).float(), rtol=1e-3, atol=1e-3)
    unseen = coloured(300, tinted.manifest.class_names, seed=9)
    after = served_logits(tinted, found.soup, unseen.images).argmax(1).numpy()
    assert (after == np.asarray([1, 0, 2])[unseen.labels]).mean() > 0.6


def test_a_choice_without_a_fold_leaves_the_rows_of_classes_that_only_the_fold_has(
    tinted: PreparedBase, task_for: Callable[..., Task]
) -> None:
    support = turned(coloured(300, tinted.manifest.class_names))
    once = support.subset(
        np.concatenate([np.flatnonzero(support.labels != 0), np.flatnonzero(support.labels == 0)[:1]])
    )
    task = task_for(tinted, once)
    library = Library(task, search_grid(task, lattice("simplex", 1.0)))
    found = select(library, [LastLayer(library)])
    assert found.not_tried == {}
    lonely = [bool((once.labels[out] == 0).any()) for out in task.held_out_parts()]
    assert sum(lonely) == 1
    for model, is_alone in zip(found.without, lonely, strict=True):
        assert model.rungs == ("head",)
        assert model.below is not None
        assert model.below.layer is not None
        assert model.layer is not None
        row = model.below.layer.divided(model.below.temperature).weight[0].float()
        assert torch.equal(model.layer.weight[0], row) == is_alone


def test_labels_of_one_class_fit_no_last_layer(tinted: PreparedBase) -> None:
    support = coloured(300, tinted.manifest.class_names)
    found = search(
        tinted, support.subset(np.flatnonzero(support.labels == 1)), SOME, current=default_soup(tinted.manifest)
    )
    assert found.choice.rungs == ()
    assert found.outcome.not_tried["head"].startswith("expected labelled images of at least 2 classes, got 1")


def test_a_hundred_labels_of_a_thousand_classes_take_seconds() -> None:
    """Forty classes have labels, a few for each; the labelled classes have changed places in pairs."""
    labels = np.arange(100) % 40
    network = make_network(100, labels)
    support = numbered_support(np.arange(100), labels ^ 1, network.manifest)
    found = search(
        network, support, SearchConfig(threads=1, rungs=("statistics", "head")), current=default_soup(network.manifest)
    )
    assert found.outcome.not_tried == {}
    assert "head" in found.choice.rungs
    assert found.outcome.search.seconds < 60
    assert f"{NUM_CLASSES - 40} of {NUM_CLASSES} classes have no labelled image" in found.outcome.reason
