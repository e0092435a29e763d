from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

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
def batch() -> Callable[[int], np.ndarray]:
    """Seeded float32 images (B, 3, 16, 16) in [0, 1]."""
    return lambda size: np.random.default_rng(size).random((size, 3, 16, 16), dtype=np.float32)
