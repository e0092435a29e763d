"""Tiny seeded base sets and images that every folder's tests share."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from deploy.bundle import build_bundle
from training.bases import add_moments, load_base_set, rewrite_manifest, save_base_set
from training.data import ImageSet
from training.images import to_input
from training.manifest import Architecture, Ingredient, InputSpec, Manifest, Provenance, ThreatModel
from training.measure import moments_of
from training.models import Classifier, create_classifier

BASES = Path(__file__).parents[1] / "bases"
SHIPPED = ("cifar10", "cifar10-small-ln")  # of them, those that servers in tests serve
CLASSES = ("cat", "dog", "ship")
INPUT = InputSpec(height=16, width=16, mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.3))
THREATS = {
    "linf": ThreatModel(norm="Linf", eps=8 / 255),
    "nominal": None,
    "l2": ThreatModel(norm="L2", eps=0.5),
    "l1": ThreatModel(norm="L1", eps=12),
}
BATCHNORM_NET = Architecture(name="saucier_resnet", kwargs={"widths": [8, 16], "depths": [1, 1], "stem_stride": 2})
LAYERNORM_NET = Architecture(
    name="vit_tiny_patch16_224", kwargs={"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
)


@torch.no_grad()
def shake(classifier: Classifier, seed: int, scale: float) -> None:
    """Move all weights and BatchNorm statistics a little, as a short fine-tune would."""
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in classifier.net.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if key.endswith("running_var"):
            tensor.mul_((scale * noise).exp())
        else:
            tensor.add_(scale * noise * (tensor.std(correction=0) + 0.1))


@torch.no_grad()
def settle(classifier: Classifier, pixels: np.ndarray) -> None:
    """Give BatchNorm layers the statistics of images, and logits a size of .3: in deep random nets rounding grows."""
    layers = [module for module in classifier.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # all batches count alike
        layer.train()
    classifier(torch.from_numpy(to_input(pixels)))
    classifier.eval()
    size = classifier(torch.from_numpy(to_input(pixels))).abs().max()
    head = classifier.net.get_classifier()
    if isinstance(head, nn.Module):  # a few have several
        for parameter in head.parameters():
            parameter.mul_(0.3 / size)


def make_base_set(
    folder: Path,
    *,
    architecture: Architecture = BATCHNORM_NET,
    spec: InputSpec = INPUT,
    names: tuple[str, ...] = tuple(THREATS),
    name: str = "tiny",
    moved: float = 1.0,
    seen: np.ndarray | None = None,
) -> Path:
    """Write a base set of untrained but distinct ingredients close to one another in weight space.

    Args:
        folder: to be written.
        architecture: of the networks.
        spec: their input.
        names: of the ingredients.
        name: of the base set.
        moved: factor on how far weights are moved from timm's random ones: deep networks need less.
        seen: images, uint8 (n, H, W, 3), whose statistics BatchNorm layers are given.
    """
    torch.manual_seed(0)
    state_dicts = {}
    classifier = create_classifier(architecture, spec, len(CLASSES))
    shake(classifier, seed=99, scale=0.3 * moved)
    start = {key: tensor.clone() for key, tensor in classifier.net.state_dict().items()}
    for position, ingredient in enumerate(names):
        classifier.net.load_state_dict(start)
        shake(classifier, seed=position, scale=0.15 * moved)
        if seen is not None:
            settle(classifier, seen)
        state_dicts[ingredient] = {key: tensor.clone() for key, tensor in classifier.net.state_dict().items()}
    manifest = Manifest(
        name=name,
        architecture=architecture,
        input=spec,
        class_names=CLASSES,
        ingredients=tuple(
            Ingredient(
                name=ingredient,
                file=f"{ingredient}.safetensors",
                sha256="0" * 64,
                threat_model=THREATS.get(ingredient),
                objective="nominal",
                parent=None,
            )
            for ingredient in names
        ),
        default_coefficients={ingredient: float(position == 0) for position, ingredient in enumerate(names)},
        provenance=Provenance(
            recipe={"data": {"source": "digits", "path": None, "num_validation": 100}},
            seed=0,
            git_commit=None,
            git_dirty=None,
            versions={},
            hardware="test",
            data_hash="none",
            seconds=0,
        ),
    )
    save_base_set(folder, manifest, state_dicts)
    return folder


@pytest.fixture(scope="session")
def tiny_base_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base set of four BatchNorm nets, three classes, 16x16 input. Read only: copy it before changing anything."""
    return make_base_set(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def tiny_ln_base_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with LayerNorm nets."""
    return make_base_set(tmp_path_factory.mktemp("bases") / "tiny-ln", architecture=LAYERNORM_NET, name="tiny-ln")


@pytest.fixture(scope="session")
def tiny_moments_base_set(tiny_ln_base_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with moments, measured on random images."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-moments"
    shutil.copytree(tiny_ln_base_set, folder)
    base = load_base_set(folder)
    pixels = np.random.default_rng(11).integers(0, 256, (600, 16, 16, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.arange(600) % 3, CLASSES, tuple(map(str, range(600))))
    found = moments_of(base.manifest, base.state_dicts, images)
    assert found is not None
    manifest = add_moments(base, *found)
    rewrite_manifest(folder, manifest.model_copy(update={"name": "tiny-moments"}))
    return folder


@pytest.fixture(scope="session")
def shipped_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the serving bundle of a base set of the repository by its name, built once for all processes of a run."""
    run = tmp_path_factory.getbasetemp()
    bundles = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "shipped-bundles"
    return lambda name: build_bundle(BASES / name, bundles)


class Shipped(NamedTuple):
    """Base sets of the repository, and their bundles."""

    bases: Path
    bundles: Path  # a link to it from a home, `bundles`, has a server start at once


@pytest.fixture(scope="session")
def shipped(shipped_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """The usual base set and one with LayerNorm. The bundle of `photos` takes more time than all others together."""
    bases = tmp_path_factory.mktemp("shipped-bases")
    for name in SHIPPED:
        (bases / name).symlink_to(BASES / name)
    (bundles,) = {shipped_bundle(name).parent for name in SHIPPED}
    return Shipped(bases, bundles)


@pytest.fixture(scope="session")
def base_set_factory() -> Callable[..., Path]:
    """`make_base_set`, for tests that need other ingredients or networks."""
    return make_base_set


@pytest.fixture
def images() -> np.ndarray:
    """Seven random uint8 images (7, 16, 16, 3)."""
    return np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
