from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from adapt.documents.patch import Patch, make_patch
from adapt.rungs.early import early_keys
from deploy.bundle import build_bundle
from deploy.parity import TorchReference
from deploy.runtime import Bundle
from training.bases import load_base_set


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks: threads that wait for one another take longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_bundle_folder(tiny_base_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BatchNorm set's bundle. Read only: copy it before changing anything."""
    return build_bundle(tiny_base_set, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def bundle(tiny_bundle_folder: Path) -> Bundle:
    return Bundle.open(tiny_bundle_folder)


@pytest.fixture(scope="session")
def reference(tiny_base_set: Path) -> TorchReference:
    return TorchReference(load_base_set(tiny_base_set))


@pytest.fixture(scope="session")
def patches(reference: TorchReference) -> dict[str, Patch]:
    """Patches of statistics, the last layer, both, first layers, and all weights; made up, but of the right size."""
    generator = np.random.default_rng(5)
    like = {key: tensor.numpy() for key, tensor in reference.base.state_dicts["nominal"].items()}
    statistics = {
        key: (array * np.exp(0.3 * generator.normal(size=array.shape))).astype(np.float32)
        for key, array in like.items()
        if key.endswith((".running_mean", ".running_var"))
    }
    head = {
        key: generator.normal(scale=0.5, size=like[key].shape).astype(np.float32)
        for key in ("head.weight", "head.bias")
    }
    early = {
        key: (like[key] * np.exp(0.3 * generator.normal(size=like[key].shape))).astype(np.float32)
        for key in early_keys(reference.base.model().net, "head")
    }
    site = {
        key: (like[key] * np.exp(0.1 * generator.normal(size=like[key].shape))).astype(np.float16).astype(np.float32)
        for key, _ in reference.base.model().net.named_parameters()
    }
    return {
        "statistics": make_patch(statistics, recalibrated=64, rungs=["statistics"]),
        "head": make_patch(head, rungs=["head"]),
        "both": make_patch(statistics | head, recalibrated=64, rungs=["statistics", "head"]),
        "early": make_patch(statistics | early, recalibrated=64, rungs=["statistics", "early"]),
        "site": make_patch(statistics | site, recalibrated=64, rungs=["statistics", "site"]),
    }


@pytest.fixture(scope="session")
def batch() -> Callable[[int], np.ndarray]:
    """Seeded float32 images (B, 3, 16, 16) in [0, 1]."""
    return lambda size: np.random.default_rng(size).random((size, 3, 16, 16), dtype=np.float32)
