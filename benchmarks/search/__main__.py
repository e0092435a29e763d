"""Grid search and the ladder against the forwards they cannot do without, and against a naive loop."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from adapt.documents.soup import default_soup
from adapt.images.support import Support
from adapt.networks.forward import evaluate_soups
from adapt.networks.mixing import mix
from adapt.networks.prepared import PreparedBase
from adapt.search.grid import affine
from adapt.search.search import search
from benchmarks.machine import machine
from training.bases import load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.images import to_input
from training.parameters import Positional

TARGET = 1.1  # grid search over pure forwards, at most
TARGET_SHARE = 1 / 6  # of the grid's image-forwards that `auto` may spend, all of the ladder included
BATCH_SIZES = (32, 64, 96, 128, 192, 256, 512)
NAIVE_SHARE = 8  # the naive loop runs over every eighth candidate and is scaled up


class Search(Command):
    """Time the 149-soup grid against pure forwards of as many images in the best batch layout, and `auto` beside it.

    `auto` is a whole search as the service runs it: nodes, surrogate, BatchNorm statistics, last layer, cross-fitting.
    Exit code 1 if the grid takes more than 1.1 times its forwards, or `auto` spends more than a sixth of them.

    Example: python -m benchmarks.search bases/cifar10-small --n 1000
    """

    name: ClassVar[str] = "search"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    n: int = Field(default=1000, ge=1, description="images")
    repeats: int = Field(default=5, ge=1, description="interleaved rounds, after one that does not count")
    threads: int = Field(default=2, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Measure."""
        torch.set_num_threads(self.threads)
        base = load_base_set(self.base)
        spec, classes = base.manifest.input, len(base.manifest.class_names)
        generator = np.random.default_rng(self.seed)
        images = generator.integers(0, 256, (self.n, spec.height, spec.width, 3), dtype=np.uint8)
        labels = generator.integers(0, classes, self.n)
        started = time.perf_counter()
        prepared = PreparedBase(base)
        prepared.warm_up()
        prepare_seconds = time.perf_counter() - started
        grid = affine(len(base.manifest.ingredients))
        inputs = prepared.normalise(torch.from_numpy(to_input(images)))
        batch_size = _best_batch(prepared, inputs)
        batches = [batch.contiguous(memory_format=torch.channels_last) for batch in torch.split(inputs, batch_size)]
        classifier = base.model()
        plain = torch.from_numpy(to_input(images))

        hashes = tuple(str(index) for index in range(self.n))
        support = Support(images, labels, hashes, base.manifest.class_names)
        spent: list[int] = []

        def grid_search() -> None:
            evaluate_soups(prepared, grid, images, labels)

        def auto() -> None:
            found = search(prepared, support, current=default_soup(base.manifest))
            spent.append(found.outcome.search.image_forwards)

        def forwards() -> None:
            with torch.inference_mode():
                for _ in range(len(grid)):
                    _forward(prepared.model("folded").net, batches)

        def naive() -> None:
            with torch.inference_mode():
                for row in grid[::NAIVE_SHARE]:
                    classifier.net.load_state_dict(mix(list(base.state_dicts.values()), torch.from_numpy(row)))
                    for batch in torch.split(plain, 250):
                        classifier(batch)

        times = _interleaved({"search": grid_search, "auto": auto, "forwards": forwards, "naive": naive}, self.repeats)
        times["naive"] = [seconds * len(grid) / len(grid[::NAIVE_SHARE]) for seconds in times["naive"]]
        return _result(times, len(grid), self.n, batch_size, prepare_seconds, spent[-1])


def _best_batch(prepared: PreparedBase, inputs: Tensor) -> int:
    """Return the batch size at which pure forwards are fastest here."""
    net = prepared.model("folded").net
    rates = {}
    with torch.inference_mode():
        for size in (size for size in BATCH_SIZES if size <= max(len(inputs), BATCH_SIZES[0])):
            batches = [batch.contiguous(memory_format=torch.channels_last) for batch in torch.split(inputs, size)]
            rates[size] = min(_seconds(partial(_forward, net, batches)) for _ in range(7))
    return min(rates, key=lambda size: rates[size])


def _forward(net: nn.Module, batches: list[Tensor]) -> None:
    for batch in batches:
        net(batch)


def _seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _interleaved(actions: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            seconds = _seconds(action)
            if turn > 0:
                times[name].append(seconds)
    return times


def _result(
    times: dict[str, list[float]], num_soups: int, n: int, batch_size: int, prepare_seconds: float, spent: int
) -> Result:
    median = {name: float(np.median(seconds)) for name, seconds in times.items()}
    # Pair by pair, as the machine's speed drifts.
    ratio = float(np.median(np.divide(times["search"], times["forwards"])))
    speed_up, auto = (float(np.median(np.divide(times["naive"], times[name]))) for name in ("search", "auto"))
    share = spent / (num_soups * n)
    data = {
        "soups": num_soups,
        "n": n,
        "forwards_batch_size": batch_size,
        "prepare_seconds": round(prepare_seconds, 3),
        "seconds": {name: round(seconds, 3) for name, seconds in median.items()},
        "images_per_second": {
            name: round((spent if name == "auto" else num_soups * n) / seconds) for name, seconds in median.items()
        },
        "search_over_forwards": round(ratio, 3),
        "naive_over_search": round(speed_up, 2),
        "naive_over_auto": round(auto, 2),
        "auto_image_forwards": spent,
        "auto_share_of_grid": round(share, 4),
        "target": TARGET,
        "machine": machine(),
    }
    lines = [f"{num_soups} soups x {n} images, median of {len(times['search'])} interleaved rounds, {data['machine']}"]
    for name, seconds in median.items():
        rate = data["images_per_second"][name]  # type: ignore[index]
        lines.append(f"{name:10} {seconds:8.3f} s {rate:10,} images/s")
    lines.append(f"grid search takes {ratio:.3f} of the pure forwards (batch {batch_size}); target: at most {TARGET}")
    lines.append(f"the naive loop (mix, load_state_dict, forward with BatchNorm) takes {speed_up:.2f} of the search")
    lines.append(
        f"auto, all rungs and its evidence included: {share:.3f} of the grid's image-forwards; target: at most 1/6"
    )
    lines.append(f"the naive loop takes {auto:.1f} times as long as auto")
    is_met = ratio <= TARGET and share <= TARGET_SHARE
    return Result(data, "\n".join(lines), EXIT_DONE if is_met else EXIT_CLAIM_FAILED)


if __name__ == "__main__":
    sys.exit(run([Search], prog="python -m benchmarks.search", description="Speed of the grid search."))
