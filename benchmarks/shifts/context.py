"""What methods are given and what they return."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from adapt.images.support import Support
from adapt.networks.prepared import PreparedBase
from benchmarks.shifts.options import Options
from benchmarks.shifts.table import Table

T = TypeVar("T")

# Pictures without labels that a service could have kept, by the method that is given so many of them: as many as TENT
# sees at a time, and as many as most reports have unseen ones.
STREAMS: Mapping[str, int] = {"ladder_stream": 200, "ladder_stream_1000": 1000}
STREAM = max(STREAMS.values())


class Shared:
    """Work that several methods have in common: done once, and its time charged to each of them.

    Attributes:
        borrowed: seconds that work took which was found done.
        borrowed_cpu: seconds of CPU time that it took.
    """

    def __init__(self) -> None:
        self.borrowed = self.borrowed_cpu = 0.0
        self._done: dict[str, tuple[Any, float, float]] = {}

    def get(self, name: str, work: Callable[[], T]) -> T:
        """Return what the work of this name returns."""
        if name in self._done:
            found: T = self._done[name][0]
            self.borrowed += self._done[name][1]
            self.borrowed_cpu += self._done[name][2]
            return found
        started, started_cpu = time.perf_counter() - self.borrowed, time.process_time() - self.borrowed_cpu
        found = work()
        self._done[name] = (
            found,
            time.perf_counter() + self.borrowed - started,
            time.process_time() + self.borrowed_cpu - started_cpu,
        )
        return found


@dataclass(frozen=True)
class Context:
    """What a method may use.

    Attributes:
        prepared: the base set.
        support: the labelled pictures.
        family: of the shift, or the domain; hyper-parameters are those chosen on the others.
        seed: of the method's own random choices.
        table: the logits and scores of many soups on the labelled pictures.
        shared: work in common with other methods on the same pictures.
        stream: uint8 (m, H, W, 3), m <= `STREAM`, other pictures of the shift that nobody labelled; not the unseen
            ones. Methods of `STREAMS` take the first of them.
        source: uint8 (s, H, W, 3), pictures of the kind that the base set was trained on, without labels.
        given: hyper-parameters by method, in the place of those chosen.
    """

    prepared: PreparedBase
    support: Support
    family: str
    seed: int
    table: Table
    shared: Shared = field(default_factory=Shared)
    stream: npt.NDArray[np.uint8] | None = None
    source: npt.NDArray[np.uint8] | None = None
    given: Mapping[str, Options] = field(default_factory=dict)


class Unseen(NamedTuple):
    """Pictures to answer: uint8 (t, H, W, 3), and what the table says about them.

    Attributes:
        images: the pictures.
        logits: of the table's soups, (C, t, K).
        features: the table's features, (t, D), if it has them.
    """

    images: npt.NDArray[np.uint8]
    logits: Tensor
    features: Tensor | None = None


class Evidence(NamedTuple):
    """What a search says of its own answer."""

    cross_fitted: float | None  # accuracy, None where nothing could be held out
    current: float | None  # accuracy of the default soup on the labelled pictures
    p_value: float | None  # of `no better than the default soup`
    recalibrated: int  # pictures that channel statistics were estimated on
    has_head: bool  # the last layer was fitted again
    has_early: bool  # first layers were trained
    is_promoted: bool
    unlabelled: int  # pictures without labels that it was given


Predict = Callable[[Unseen], Tensor]


@dataclass(frozen=True)
class Answer:
    """What a method made of the labelled pictures, and what that cost.

    Attributes:
        predict: returns logits, or log-probabilities, (t, K).
        forwards: pictures through the network for adapting; a backward pass counts as two more.
        is_tabled: these forwards were looked up: the time they would have taken is to be added.
        passes: networks that each unseen picture goes through.
        coefficients: of the soup, if it is one.
        evidence: of a search.
        runners_up: what the second and third choice predict.
    """

    predict: Predict
    forwards: int = 0
    is_tabled: bool = False
    passes: int = 1
    coefficients: tuple[float, ...] | None = None
    evidence: Evidence | None = None
    runners_up: tuple[Predict, ...] = ()


Method = Callable[[Context], Answer]
