"""One training: from a quick search's soup, some shares of the way, judged on unseen pictures."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field

from adapt.documents.soup import BnMode, Soup, default_soup
from adapt.images.support import Support
from adapt.networks.prepared import PreparedBase
from adapt.rungs.site import SHARES, Mixed, may_mirror, site_plan
from adapt.rungs.training import Plan, Start, estimate_statistics, network_of, train
from adapt.search.config import SearchConfig
from adapt.search.search import search
from benchmarks.shifts.lines import Keyed
from training.data import ImageSet

# What differs from the plan of the rung.
VARIANTS: Mapping[str, Callable[[Plan], Plan]] = {
    "as it is": lambda plan: plan,
    "rate 5e-4": lambda plan: plan._replace(learning_rate=5e-4),
    "rate 1e-3": lambda plan: plan._replace(learning_rate=1e-3),
    "batches of 64": lambda plan: plan._replace(batch=64),
    "twice as long": lambda plan: plan._replace(steps=2 * plan.steps),
}
EVALUATED = 100  # pictures of a forward


class Record(Keyed):
    """What a training is worth: accuracy on unseen pictures."""

    base_digest: str
    domain: str
    n: int
    draw: int
    n_test: int
    variant: str
    quick: float = Field(description="of the quick search, where the training starts")
    shares: dict[str, float] = Field(description="by the share of the way to the trained weights")

    @property
    def key(self) -> tuple[str, str, int, int, int, str]:
        """Which training."""
        return self.base_digest, self.domain, self.n, self.draw, self.n_test, self.variant


def quick_soup(prepared: PreparedBase, support: Support, seed: int) -> Soup:
    """Return what a search that trains no weights finds."""
    config = SearchConfig(effort="quick", seed=seed)
    return search(prepared, support, config, current=default_soup(prepared.manifest)).soup


def measure(prepared: PreparedBase, soup: Soup, support: Support, test: ImageSet, variant: str, **about: Any) -> Record:
    """Train all weights from a soup and judge shares of the way; BatchNorm gets the labelled pictures' statistics."""
    tensors = {} if soup.patch is None else soup.patch.tensors()
    mode: BnMode = "raw" if prepared.has_batchnorm else soup.bn_mode
    start = Start(soup.vector(prepared.manifest), mode, tensors or None, soup.temperature)
    net = network_of(prepared, start)
    quick = accuracy(prepared, net, test)
    before = {key: parameter.detach().cpu().numpy() for key, parameter in net.named_parameters()}
    plan = VARIANTS[variant](site_plan(net, len(support), mirrored=may_mirror(prepared.manifest)))
    trained = train(prepared, start, plan, support.images, support.labels, seed=about["draw"])
    found = {}
    for share in SHARES:
        mixed = Mixed(before, trained.tensors, share, {})
        net = network_of(prepared, start)
        with torch.no_grad():
            for key, parameter in net.named_parameters():
                parameter.copy_(torch.from_numpy(mixed[key]))
        estimate_statistics(prepared, net, support.images)
        found[f"{share:g}"] = accuracy(prepared, net, test)
    return Record(n=len(support), n_test=len(test), variant=variant, quick=quick, shares=found, **about)


@torch.no_grad()
def accuracy(prepared: PreparedBase, net: torch.nn.Module, test: ImageSet) -> float:
    """Return the share of right answers."""
    right = 0
    for part in np.array_split(np.arange(len(test)), -(-len(test) // EVALUATED)):
        said = net(prepared.inputs(test.images[part])).argmax(dim=1).cpu().numpy()
        right += int((said == test.labels[part]).sum())
    return right / len(test)
