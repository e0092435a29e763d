"""A thousand classes: a last layer alone stands for the network, so that what a search keeps is all that needs memory.

`python -m tests.adapt.search.wide STRATEGY N CLASSES` searches with N labels of so many classes. It prints, in JSON, by
how much the memory of the process grew at most.
"""

import json
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode, default_soup
from adapt.networks.last_layer import Head
from adapt.networks.network import Run
from adapt.search.config import SearchConfig
from adapt.search.search import search
from benchmarks.gate.simulated import numbered_support, numbers_of, simulated_manifest
from training.manifest import Manifest

NUM_CLASSES, WIDTH, NUM_INGREDIENTS = 1000, 768, 4


@dataclass(frozen=True)
class WideNetwork:
    """Random features, whose last layers are all that the ingredients differ in.

    New statistics scale the features a little. Of the images there are only the numbers, as in `benchmarks.gate`.
    """

    manifest: Manifest
    features: torch.Tensor  # (N, D)
    layers: torch.Tensor  # (M, K, D)
    has_batchnorm: bool = False
    can_recalibrate: bool = True
    head_key: str = "head"

    def canonical(self, bn_mode: BnMode) -> BnMode:
        return "folded"

    def head(self, coefficients: Sequence[float], patch: Tensors | None = None) -> Head:
        weight = torch.einsum("m,mkd->kd", torch.tensor(list(coefficients), dtype=torch.float32), self.layers)
        return Head(weight.double(), torch.zeros(len(weight)).double())

    def usable(self, coefficients: npt.NDArray[np.float64], bn_mode: BnMode) -> npt.NDArray[np.bool_]:
        return np.ones(len(coefficients), dtype=np.bool_)

    def run(
        self,
        coefficients: npt.NDArray[np.float64],
        images: npt.NDArray[np.uint8],
        *,
        bn_mode: BnMode = "folded",
        patch: Tensors | None = None,
        recalibrate: bool = False,
        unlabelled: npt.NDArray[np.uint8] | None = None,
        progress: Callable[[float], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Run:
        moved = recalibrate or patch is not None
        seen = self.features[torch.from_numpy(numbers_of(images))] * (1.1 if moved else 1.0)
        logits = torch.empty(len(coefficients), len(images), NUM_CLASSES)
        for row, found in zip(coefficients.tolist(), logits, strict=True):
            torch.mm(seen, self.head(row).weight.float().T, out=found)
        statistics = {"norm.bias": np.zeros(WIDTH, dtype=np.float32)} if recalibrate else None
        count = len(coefficients)
        return Run(logits, tuple(seen.clone() for _ in range(count)), (statistics,) * count, count * len(images))


def make_network(num_images: int, labels: npt.NDArray[np.int64]) -> WideNetwork:
    generator = torch.Generator().manual_seed(0)
    layers = torch.randn(NUM_INGREDIENTS, NUM_CLASSES, WIDTH, generator=generator) / WIDTH**0.5
    truth = layers.mean(dim=0)[torch.from_numpy(labels)]
    features = 12 * truth + torch.randn(num_images, WIDTH, generator=generator)
    return WideNetwork(simulated_manifest(NUM_INGREDIENTS, NUM_CLASSES), features, layers)


def main(strategy: str, n: int, num_labelled: int) -> None:
    """Search, and print what it found and what it took."""
    labels = np.arange(n) % num_labelled
    network = make_network(n, labels)
    support = numbered_support(np.arange(n), labels, network.manifest)
    settings = {"grid": "simplex", "step": 0.05} if strategy == "grid" else {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = search(
        network,
        support,
        SearchConfig(strategy=strategy, threads=1, rungs=("statistics", "head"), **settings),
        current=default_soup(network.manifest),
    )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    outcome = found.outcome
    print(  # noqa: T201
        json.dumps(
            {
                "gb": grown * 1024 / 1e9,
                "candidates": outcome.search.candidates,
                "seconds": outcome.search.seconds,
                "rungs": found.choice.rungs,
                "not_tried": outcome.not_tried,
                "state": outcome.state,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
