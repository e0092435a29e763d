"""One draw of labelled, unlabelled and unseen pictures, and what a search makes of it with and without frequencies."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adapt.documents.soup import Soup, default_soup
from adapt.evidence.draws import Draw
from adapt.images.support import Support
from adapt.networks.forward import served_logits
from adapt.networks.prepared import PreparedBase
from adapt.search.config import SearchConfig
from adapt.search.search import Search, search
from benchmarks.shifts.sets import as_support, distinct
from training.data import ImageSet
from training.documents import Frozen

Doubles = npt.NDArray[np.float64]

SHAPES = ("even", "zipf", "four")  # how frequent the classes of a corrupted set are
FEW = 4  # classes of `four`


class Pictures(NamedTuple):
    """Disjoint fair draws of one mixture of classes."""

    labelled: Support
    stream: npt.NDArray[np.uint8]
    unseen: ImageSet
    frequencies: Doubles  # (K,) of the mixture


class Trial(Frozen):
    """One draw. Accuracies and errors are fractions."""

    case: str
    n: int
    m: int
    draw: int
    before: float  # the soup that the base set ships with
    ladder: float  # the candidate, labels used as any draw
    frequencies: float  # the candidate with draw=fair
    served: float  # what is served with draw=fair after the decision
    is_taken: bool  # the rung is part of the candidate
    is_promoted: bool
    error_any: float  # half the sum of absolute errors of the estimated frequencies
    error_fair: float
    error_expected: float  # of even frequencies: what is known without an estimate
    held_any: float  # share of the classes whose interval holds the frequency
    held_fair: float


def mixture(shape: str, num_classes: int, *, seed: int) -> Doubles:
    """Return the frequencies (K,) of a shape, in an order of the classes that the seed draws."""
    weights = np.ones(num_classes)
    if shape == "zipf":
        weights = 1 / np.arange(1, num_classes + 1)
    elif shape == "four":
        weights[FEW:] = 0
    order = np.random.default_rng([seed, num_classes]).permutation(num_classes)
    return np.asarray(weights[order] / weights.sum())


def draw_pictures(data: ImageSet, frequencies: Doubles, *, n: int, m: int, n_unseen: int, seed: int) -> Pictures:
    """Draw labelled, unlabelled and unseen pictures, each with its class drawn at these frequencies.

    Raises:
        ValueError: too few different pictures of a class.
    """
    generator = np.random.default_rng(seed)
    total = n + m + n_unseen
    wanted = generator.choice(len(frequencies), size=total, p=frequencies)
    found = np.empty(total, dtype=np.int64)
    pool = np.asarray(distinct(data.labels, data.hashes), dtype=np.int64)
    for label in np.unique(wanted):
        of_class, places = pool[data.labels[pool] == label], np.flatnonzero(wanted == label)
        if len(of_class) < len(places):
            name = data.class_names[label]
            raise ValueError(f"expected {len(places)} pictures of {name!r}, got {len(of_class)}: ask for fewer")
        found[places] = generator.permutation(of_class)[: len(places)]
    labelled, stream, unseen = np.split(found, [n, n + m])
    return Pictures(as_support(data.subset(labelled)), data.images[stream], data.subset(unseen), frequencies)


def try_draw(prepared: PreparedBase, pictures: Pictures, *, case: str, seed: int) -> Trial:
    """Search with the labels as any draw and as a fair one, and measure both on the unseen pictures."""
    current = default_soup(prepared.manifest)
    found: dict[Draw, Search] = {
        draw: search(
            prepared,
            pictures.labelled,
            SearchConfig(draw=draw, seed=seed),
            current=current,
            unlabelled=pictures.stream,
        )
        for draw in ("any", "fair")
    }
    before, ladder, fair = (
        _accuracy(prepared, soup, pictures.unseen) for soup in (current, found["any"].soup, found["fair"].soup)
    )
    is_promoted = found["fair"].outcome.state == "promoted"
    errors, held = zip(*(_judged(found[draw], pictures.frequencies) for draw in ("any", "fair")), strict=True)
    return Trial(
        case=case,
        n=len(pictures.labelled),
        m=len(pictures.stream),
        draw=seed,
        before=before,
        ladder=ladder,
        frequencies=fair,
        served=fair if is_promoted else before,
        is_taken="frequencies" in found["fair"].choice.rungs,
        is_promoted=is_promoted,
        error_any=errors[0],
        error_fair=errors[1],
        error_expected=_error(np.full(len(pictures.frequencies), 1 / len(pictures.frequencies)), pictures.frequencies),
        held_any=held[0],
        held_fair=held[1],
    )


def _accuracy(prepared: PreparedBase, soup: Soup, unseen: ImageSet) -> float:
    said = served_logits(prepared, soup, unseen.images).argmax(dim=1).numpy()
    return float((said == unseen.labels).mean())


def _judged(found: Search, truth: Doubles) -> tuple[float, float]:
    """Return the error of a search's frequencies, and the share of its intervals that hold the truth (K,)."""
    classes = found.outcome.classes
    assert classes is not None, "there are enough unlabelled pictures"
    held = [each.low <= share <= each.high for each, share in zip(classes, truth, strict=True)]
    return _error(np.asarray([each.estimated for each in classes]), truth), float(np.mean(held))


def _error(estimated: Doubles, truth: Doubles) -> float:
    return float(np.abs(estimated - truth).sum() / 2)
