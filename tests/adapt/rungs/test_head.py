from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from timm.models import register_model
from timm.models.volo import VOLO

from adapt.documents.soup import default_soup
from adapt.networks.forward import run_soups, served_logits
from adapt.networks.last_layer import Head
from adapt.networks.prepared import PreparedBase, find_head
from adapt.rungs.head import MIN_IMAGES, MIN_IMAGES_LARGE, PENALTIES, fit_heads, least_images
from adapt.search.config import SearchConfig
from adapt.search.search import search
from tests.adapt.pictures import coloured, turned
from training.bases import load_base_set
from training.manifest import Architecture, InputSpec


def problem(n: int, seed: int) -> tuple[torch.Tensor, np.ndarray, Head]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 12, generator=generator) * 3 + 2
    labels = torch.randint(0, 3, (n,), generator=generator).numpy()
    own = Head(torch.randn(3, 12, generator=generator).double(), torch.randn(3, generator=generator).double())
    return features, labels, own


def objective(head: Head, own: Head, features: torch.Tensor, labels: np.ndarray, penalty: float) -> float:
    centre, x = features.double().mean(0), features.double()
    scale = (x - centre).square().mean()
    change = head.weight - own.weight
    shifted = head.bias - own.bias + change @ centre
    loss = torch.nn.functional.cross_entropy(head(features), torch.from_numpy(labels), reduction="sum")
    return float(loss + penalty * (scale * change.square().sum() + shifted.square().sum()))


@given(n=st.integers(3, 80), seed=st.integers(0, 50))
@example(n=3, seed=5)  # all labels are of one class
@settings(max_examples=20, deadline=None)
def test_no_other_layer_has_a_lower_objective(n: int, seed: int) -> None:
    """Where every class is fitted, labelled or not: the rows of a class that is not fitted stay as they are."""
    features, labels, own = problem(n, seed)
    generator = torch.Generator().manual_seed(seed)
    for penalty, head in zip(PENALTIES, fit_heads(features, labels, own, fitted=np.arange(3)), strict=True):
        least = objective(head, own, features, labels, penalty)
        assert least <= objective(own, own, features, labels, penalty) + 1e-9
        for scale in (1e-3, 1e-1):
            other = Head(
                head.weight + scale * torch.randn(head.weight.shape, generator=generator),
                head.bias + scale * torch.randn(head.bias.shape, generator=generator),
            )
            assert least <= objective(other, own, features, labels, penalty) + 1e-4


def test_a_stronger_pull_stays_closer() -> None:
    features, labels, own = problem(60, 1)
    moved = [float((head.weight - own.weight).norm()) for head in fit_heads(features, labels, own)]
    assert moved == sorted(moved)
    assert moved[0] < moved[-1]


def test_a_layer_that_lost_its_meaning_is_learnt_again() -> None:
    """Permuted classes: the own layer is wrong on everything, a fitted one is not."""
    features, _, own = problem(600, 2)
    labels = (own(features).argmax(1).numpy() + 1) % 3
    weakest = fit_heads(features, labels, own)[-1]
    assert (own(features).argmax(1).numpy() == labels).mean() == 0
    assert (weakest(features).argmax(1).numpy() == labels).mean() > 0.5


def test_the_last_layers_inputs_give_the_logits(prepared: PreparedBase) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    row = np.asarray([[1.25, -0.25, 0.0, 0.0]])
    for recalibrate in (False, True):
        run = run_soups(prepared, row, images, recalibrate=recalibrate)
        head = prepared.head(row[0].tolist())
        assert head is not None
        assert run.features[0] is not None
        torch.testing.assert_close(head(run.features[0]).float(), run.logits[0], rtol=1e-4, atol=1e-4)


def test_only_a_linear_last_layer_with_a_bias_is_one() -> None:
    class Net(torch.nn.Module):
        def __init__(self, last: torch.nn.Module) -> None:
            super().__init__()
            self.last = last

        def get_classifier(self) -> torch.nn.Module:
            return self.last

    assert find_head(Net(torch.nn.Linear(4, 2))) == "last"
    assert find_head(Net(torch.nn.Linear(4, 2, bias=False))) is None
    assert find_head(Net(torch.nn.Conv2d(4, 2, 1))) is None
    assert find_head(torch.nn.Linear(4, 2)) is None


def test_a_weight_of_two_is_an_image_twice() -> None:
    features, labels, own = problem(40, 3)
    weights = np.ones(40, dtype=np.float32)
    weights[:10] = 2
    heads = fit_heads(features, labels, own, weights=weights)
    # The same centre and scale, so that the pull is the same: compare the objective's least value, not the fit.
    for penalty, head in zip(PENALTIES, heads, strict=True):
        own_value, value = (
            float(
                torch.nn.functional.cross_entropy(layer(features), torch.from_numpy(labels), reduction="none")
                @ torch.from_numpy(weights).double()
            )
            for layer in (own, head)
        )
        assert value < own_value, penalty
    unweighted = fit_heads(features, labels, own)
    assert (heads[0].weight - unweighted[0].weight).abs().max() > 1e-6


def test_no_other_layer_has_a_lower_weighted_objective() -> None:
    features, labels, own = problem(60, 4)
    weights = np.where(np.arange(60) < 15, 3.0, 1 / 3).astype(np.float32)
    targets, counts = torch.from_numpy(labels), torch.from_numpy(weights).double()
    centre = features.double().mean(0)
    scale = (features.double() - centre).square().mean()

    def value(head: Head, penalty: float) -> float:
        change = head.weight - own.weight
        loss = torch.nn.functional.cross_entropy(head(features), targets, reduction="none") @ counts
        shifted = head.bias - own.bias + change @ centre
        return float(loss + penalty * (scale * change.square().sum() + shifted.square().sum()))

    fitted, plain = fit_heads(features, labels, own, weights=weights), fit_heads(features, labels, own)
    generator = torch.Generator().manual_seed(0)
    for penalty, head, other in zip(PENALTIES, fitted, plain, strict=True):
        least = value(head, penalty)
        assert least < value(other, penalty) - 1e-3
        for _ in range(20):
            moved = Head(head.weight + 0.01 * torch.randn(head.weight.shape, generator=generator), head.bias)
            assert least <= value(moved, penalty) + 1e-4


@register_model
def tiny_volo(pretrained: bool = False, num_classes: int = 3, use_aux_head: bool = True, **_: Any) -> VOLO:
    """timm's VOLO, which adds the answers of a second last layer to those of the first."""
    stages = {"embed_dims": (16, 24), "num_heads": (2, 2), "downsamples": (True, False)}
    blocks = {"layers": [1, 1], "outlook_attention": (True, False), "patch_size": 4, "stem_hidden_dim": 8}
    return VOLO(img_size=16, num_classes=num_classes, use_aux_head=use_aux_head, **stages, **blocks)


@pytest.mark.parametrize("has_second", [True, False])
def test_a_last_layer_is_fitted_only_where_it_alone_gives_the_logits(
    has_second: bool, tmp_path: Path, base_set_factory: Callable[..., Path]
) -> None:
    architecture = Architecture(name="tiny_volo", kwargs={"use_aux_head": has_second})
    prepared = PreparedBase(load_base_set(base_set_factory(tmp_path / "volo", architecture=architecture)))
    pictures = turned(coloured(120, prepared.manifest.class_names))
    found = search(prepared, pictures, SearchConfig(rungs=("head",)), current=default_soup(prepared.manifest))
    why = "the network's logits are not those of its last layer alone"
    assert found.outcome.not_tried == ({"head": why} if has_second else {})
    assert found.choice.rungs == (() if has_second else ("head",))
    everything = np.ones(120, dtype=np.bool_)
    served = served_logits(prepared, found.soup, pictures.images) / found.soup.temperature
    np.testing.assert_allclose(served.numpy(), found.choice.logits(everything).float().numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("height", "width", "expected"), [(32, 64, MIN_IMAGES), (65, 32, MIN_IMAGES_LARGE)])
def test_networks_for_larger_pictures_need_fewer_images(height: int, width: int, expected: int) -> None:
    spec = InputSpec(height=height, width=width, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert least_images(spec) == expected
