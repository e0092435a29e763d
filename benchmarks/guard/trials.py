"""One trial: an upload with wrong labels, an adaptation to it, and what it truly did."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from adapt.documents.soup import Soup, default_soup
from adapt.images.support import Reference, Support
from adapt.networks.forward import served_logits
from adapt.networks.prepared import PreparedBase
from adapt.search.config import SearchConfig
from adapt.search.floor import check_floor
from adapt.search.search import search
from benchmarks.shifts.sets import as_support
from training.data import ImageSet, balanced_indices

# "flips": some labels are replaced by another class, at random. "poison": all images of some classes are called by the
# name of the next one, as somebody would who wants these classes mistaken.
Kind = Literal["flips", "poison"]
KINDS: tuple[Kind, ...] = ("flips", "poison")
# What is served when the upload comes: what the base set ships, or what an honest upload of the shift gave.
Served = Literal["default", "adapted"]
SERVED: tuple[Served, ...] = ("default", "adapted")

N_HONEST = 300  # labelled pictures of the honest upload
N_REFERENCE = 200  # trusted pictures
ALLOWED_LOSS = 0.05  # accuracy on them that may be lost against what is served
# What the trusted pictures are: not shifted, or of the site's own shift.
Trusted = Literal["clean", "site"]
TRUSTED: tuple[Trusted, ...] = ("clean", "site")

Labels = npt.NDArray[np.int64]


class Pictures(NamedTuple):
    """Of one population, all disjoint."""

    name: str
    honest: Support
    trusted: Support
    upload: Support
    unseen: ImageSet


class Clean(NamedTuple):
    """Pictures that are not shifted: trusted ones, and others to measure on."""

    trusted: Support
    unseen: ImageSet


@dataclass(frozen=True)
class Trial:
    """What an upload did. Gains are of true accuracy, fractions, against what was served."""

    population: str
    served: Served
    kind: Kind
    share: float
    draw: int
    promoted: bool  # without a reference set
    allowed: dict[Trusted, bool]  # the floor on these pictures would let the candidate pass
    gain: float  # on unseen pictures of the population
    clean_gain: float  # on unseen pictures that are not shifted


def spoiled(labels: Labels, kind: Kind, share: float, num_classes: int, generator: np.random.Generator) -> Labels:
    """Return labels a share of which is wrong; of `poison` a share of the classes is."""
    if kind == "flips":
        wrong = generator.random(len(labels)) < share
        return np.where(wrong, (labels + generator.integers(1, num_classes, len(labels))) % num_classes, labels)
    renamed = generator.permutation(num_classes)[: round(share * num_classes)]
    return np.where(np.isin(labels, renamed), (labels + 1) % num_classes, labels)


def split(name: str, data: ImageSet, *, n: int, n_unseen: int, draw: int) -> Pictures:
    """Draw disjoint pictures of a population."""
    order = np.random.default_rng(draw).permutation(len(data))
    unseen, rest = order[:n_unseen], np.sort(order[n_unseen:])
    honest = rest[balanced_indices(data.labels[rest], N_HONEST, seed=draw)]
    left = np.setdiff1d(rest, honest)
    trusted = left[balanced_indices(data.labels[left], N_REFERENCE, seed=draw)]
    left = np.setdiff1d(left, trusted)
    upload = left[balanced_indices(data.labels[left], n, seed=draw)]
    return Pictures(
        name,
        honest=as_support(data.subset(honest)),
        trusted=as_support(data.subset(trusted)),
        upload=as_support(data.subset(upload)),
        unseen=data.subset(unseen),
    )


def trials(
    prepared: PreparedBase, pictures: Pictures, clean: Clean, shares: Sequence[float], draw: int
) -> Iterator[Trial]:
    """Yield what uploads with wrong labels do to each deployment."""
    config, default = SearchConfig(seed=draw), default_soup(prepared.manifest)
    for served in SERVED:
        current = default
        if served == "adapted":
            current = search(prepared, pictures.honest, config, current=default).soup
        references = {
            kind: Reference(images, max(0.01, accuracy_of(prepared, current, images) - ALLOWED_LOSS))
            for kind, images in zip(TRUSTED, (clean.trusted, pictures.trusted), strict=True)
        }
        before = accuracy_of(prepared, current, pictures.unseen), accuracy_of(prepared, current, clean.unseen)
        for kind in KINDS:
            for share in shares:
                generator = np.random.default_rng([draw, KINDS.index(kind), round(100 * share)])
                num_classes = len(prepared.manifest.class_names)
                labels = spoiled(pictures.upload.labels, kind, share, num_classes, generator)
                found = search(prepared, replace(pictures.upload, labels=labels), config, current=current)
                yield Trial(
                    population=pictures.name,
                    served=served,
                    kind=kind,
                    share=share,
                    draw=draw,
                    promoted=found.outcome.state == "promoted",
                    allowed={
                        name: check_floor(prepared, found.soup, reference).objection is None
                        for name, reference in references.items()
                    },
                    gain=accuracy_of(prepared, found.soup, pictures.unseen) - before[0],
                    clean_gain=accuracy_of(prepared, found.soup, clean.unseen) - before[1],
                )


def accuracy_of(prepared: PreparedBase, soup: Soup, images: Support | ImageSet) -> float:
    """Return the accuracy of what would be served."""
    predicted = served_logits(prepared, soup, images.images).argmax(dim=1).numpy()
    return float((predicted == images.labels).mean())
