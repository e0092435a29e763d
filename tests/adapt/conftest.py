"""What the tests of adapt share: one thread (tiny nets lose by more) and loaded base sets."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapt.networks.prepared import PreparedBase
from training.bases import BaseSet, load_base_set


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base(tiny_base_set: Path) -> BaseSet:
    return load_base_set(tiny_base_set)


@pytest.fixture(scope="session")
def ln_base(tiny_ln_base_set: Path) -> BaseSet:
    return load_base_set(tiny_ln_base_set)


@pytest.fixture(scope="session")
def prepared_moments(tiny_moments_base_set: Path) -> PreparedBase:
    """LayerNorm nets that can be recalibrated."""
    return PreparedBase(load_base_set(tiny_moments_base_set))


@pytest.fixture(scope="session")
def prepared(base: BaseSet) -> PreparedBase:
    return PreparedBase(base)
