"""What the tests of adapt share: one thread (tiny nets lose by more) and loaded base sets."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapt.documents.soup import default_soup
from adapt.images.support import Support
from adapt.networks.forward import run_soups
from adapt.networks.network import Network
from adapt.networks.prepared import PreparedBase
from adapt.rungs.head import fit_heads
from adapt.rungs.task import Task
from tests.adapt.pictures import coloured
from training.bases import BaseSet, load_base_set, save_base_set


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


@pytest.fixture(scope="session")
def tinted(tiny_base_set: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedBase:
    """A base set whose last layers know the tints of `coloured`, and whose BatchNorm statistics are of such images."""
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


@pytest.fixture
def task_for() -> Callable[..., Task]:
    """Return a function that makes the task of a search with the default soup as the current one."""

    def make(network: Network, support: Support, **changes: Any) -> Task:
        task = Task(
            network=network,
            support=support,
            unlabelled=None,
            current=default_soup(network.manifest),
            bn_mode="folded",
            recalibrate=False,
            folds=support.folds(5, seed=0),
            weights=None,
            seed=0,
            report=lambda done, message: None,
            should_stop=None,
        )
        return replace(task, **changes)

    return make
