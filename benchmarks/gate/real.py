"""Adaptations of a real base set to real shifts: what they gain, and what their evidence says of it.

Pictures that are labelled, labelled later and unseen never overlap. A second search starts from the soup that the first
one found on as many other pictures of the same shift: there is little left to gain, and nothing should be promoted.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from adapt.documents.soup import Soup, default_soup
from adapt.evidence.policies import Promote
from adapt.networks.forward import served_logits
from adapt.networks.prepared import PreparedBase
from adapt.search.config import SearchConfig
from adapt.search.search import Search, search
from benchmarks.gate.records import Row
from benchmarks.shifts.sets import as_support
from benchmarks.shifts.sources import Sources, find_sources
from benchmarks.shifts.suite import find_shift
from training.bases import load_base_set
from training.data import ImageSet

NUM_UNSEEN = 1000
NUM_PICTURES = 3000  # of a shift: twice the most labelled ones, and the unseen
PORTIONS = 5  # in which labels come


@cache
def world(base: Path, data: Path) -> tuple[PreparedBase, Sources]:
    """Return a base set and the pictures; each process loads them once."""
    loaded = load_base_set(base)
    return PreparedBase(loaded), find_sources(data, None, loaded.manifest, size=NUM_PICTURES, seed=0)


def adapt_twice(prepared: PreparedBase, sources: Sources, shift: str, n: int, turn: int) -> dict[str, Row]:
    """Return what an adaptation with n labelled pictures finds ("first"), and one after it with n others ("second")."""
    data, order = sources.load(shift, seed=turn), _order(turn)
    unseen = data.subset(order[-NUM_UNSEEN:])
    config, default = SearchConfig(seed=turn, threads=1), default_soup(prepared.manifest)
    first = search(prepared, as_support(data.subset(order[:n])), config, current=default)
    second = search(prepared, as_support(data.subset(order[n : 2 * n])), config, current=first.soup)
    accuracy = [accuracy_of(prepared, soup, unseen) for soup in (default, first.soup, second.soup)]
    return {"first": _row(first, accuracy[0], accuracy[1]), "second": _row(second, accuracy[1], accuracy[2])}


def adapt_in_portions(
    prepared: PreparedBase,
    sources: Sources,
    shift: str,
    portion: int,
    turn: int,
    *,
    drifts: bool,
    promote: Promote = "auto",
) -> Row:
    """Add labels in five portions and search on all that there are each time, as `samples=all` does.

    Where it drifts, the first two portions are of severity 3 and the others of the core severity, like the unseen ones.

    Returns:
        Accuracies on unseen pictures: `served` after each portion, `once` after a single adaptation to all labels with
        the first attempt's level and `promote=auto`, and `refused`, the gains that were refused although they were
        real.
    """
    strong, order = sources.load(shift, seed=turn), _order(turn)
    weak = find_shift(f"{shift}@3").of(sources.clean, seed=turn) if drifts else strong
    unseen = strong.subset(order[-NUM_UNSEEN:])
    parts = [(weak if k < 2 else strong).subset(order[k * portion : (k + 1) * portion]) for k in range(PORTIONS)]
    current, earlier = default_soup(prepared.manifest), list[int]()
    before = accuracy_of(prepared, current, unseen)
    served, refused, attempts = [], [], []
    found: Search | None = None
    for k in range(1, PORTIONS + 1):
        support = as_support(_joined(parts[:k]))
        config = SearchConfig(seed=turn, threads=1, promote=promote, attempt=len(earlier) + 1, earlier=tuple(earlier))
        found = search(prepared, support, config, current=current)
        after = accuracy_of(prepared, found.soup, unseen)
        attempts.append(len(earlier) + 1)
        if found.outcome.state == "promoted":
            current, before, earlier = found.soup, after, []
        else:
            refused.append(max(0.0, after - before))
            earlier.append(len(support))
        served.append(before)
    everything = as_support(_joined(parts))
    once = search(prepared, everything, SearchConfig(seed=turn, threads=1), current=default_soup(prepared.manifest))
    start = default_soup(prepared.manifest)
    kept = once.soup if once.outcome.state == "promoted" else start
    return {
        "served": served,
        "once": accuracy_of(prepared, kept, unseen),
        "refused": refused,
        "attempts": attempts,
        "start": accuracy_of(prepared, start, unseen),
    }


def accuracy_of(prepared: PreparedBase, soup: Soup, unseen: ImageSet) -> float:
    """Return the accuracy of a soup on unseen pictures, a fraction."""
    said = served_logits(prepared, soup, unseen.images).argmax(dim=1).numpy()
    return float((said == unseen.labels).mean())


def _row(found: Search, current: float, candidate: float) -> Row:
    accuracy, fit, comparison = found.outcome.accuracy, found.fit, found.comparison
    row: dict[str, Any] = {
        "is_new": not found.is_current,
        "current": current,
        "candidate": candidate,
        "state": found.outcome.state,
        "level": found.outcome.level,
        "rungs": [] if found.soup.patch is None else list(found.soup.patch.rungs),
    }
    if accuracy is not None and fit is not None and comparison is not None:
        wins, losses = int((fit.candidate & ~fit.current).sum()), int((fit.current & ~fit.candidate).sum())
        row |= {
            "p_value": accuracy.p_value,
            "mcnemar": float(stats.binom.sf(wins - 1, wins + losses, 0.5)) if wins else 1.0,
            "gain_seen": accuracy.candidate - accuracy.current,
            "reported": accuracy.candidate,
            "reported_current": accuracy.current,
            "interval": list(accuracy.interval),
            "error": comparison.error,
        }
    return row


def _order(turn: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([turn, 77]).permutation(NUM_PICTURES)


def _joined(parts: Sequence[ImageSet]) -> ImageSet:
    return ImageSet(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        parts[0].class_names,
        tuple(digest for part in parts for digest in part.hashes),
    )
