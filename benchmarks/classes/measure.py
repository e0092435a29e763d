"""One draw: pictures of some classes labelled, pictures of every class answered."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from pydantic import Field

from adapt.documents.soup import default_soup
from adapt.images.support import check_disjoint
from adapt.networks.forward import served_logits
from adapt.networks.last_layer import Head
from adapt.networks.prepared import PreparedBase
from adapt.rungs.head import PENALTIES, LastLayer, fit_heads
from adapt.search.config import SearchConfig
from adapt.search.search import Search, search
from benchmarks.shifts.lines import Keyed
from benchmarks.shifts.sets import as_support, draw_positions
from training.data import ImageSet, balanced_indices

WITHOUT, LADDER, FITTED, PLAIN = "without", "ladder", "fitted", "plain"

Ints = npt.NDArray[np.int64]
Accuracy = tuple[float, float, float]  # on pictures of every class, of those with labels, of the others


class Record(Keyed):
    """What a draw found."""

    base_digest: str
    shift: str
    classes: int = Field(description="with labels")
    n: int = Field(description="labelled pictures")
    draw: int
    n_test: int
    is_taken: bool = Field(description="the ladder took a fitted last layer")
    accuracy: dict[str, Accuracy] = Field(description="by method; fitted and plain with the position of the penalty")

    @property
    def key(self) -> tuple[str, str, int, int, int, int]:
        """Which draw."""
        return self.base_digest, self.shift, self.classes, self.n, self.draw, self.n_test


def measure(
    prepared: PreparedBase, data: ImageSet, shift: str, *, classes: int, n: int, draw: int, n_test: int
) -> Record:
    """Search with and without a last layer, and fit last layers to what was found without.

    Args:
        prepared: the base set.
        data: shifted pictures of every class.
        shift: its name.
        classes: how many classes have labels.
        n: labelled pictures, evenly of these classes.
        draw: seed of classes and pictures.
        n_test: unseen pictures, evenly of every class.

    Raises:
        ValueError: too few pictures.
    """
    shown, support_at, test_at = choose(data, classes=classes, n=n, draw=draw, n_test=n_test)
    support, test = as_support(data.subset(support_at)), data.subset(test_at)
    check_disjoint(support, test.hashes)
    current = default_soup(prepared.manifest)

    def found(rungs: tuple[str, ...]) -> Search:
        return search(prepared, support, SearchConfig(rungs=rungs, seed=draw), current=current)

    below, ladder = found(("statistics",)), found(("statistics", "head"))
    answers = {
        WITHOUT: served_logits(prepared, below.soup, test.images).argmax(dim=1).numpy(),
        LADDER: served_logits(prepared, ladder.soup, test.images).argmax(dim=1).numpy(),
        **_refitted(prepared, below, support.labels, test),
    }
    return Record(
        base_digest=prepared.manifest.digest,
        shift=shift,
        classes=classes,
        n=n,
        draw=draw,
        n_test=n_test,
        is_taken=LastLayer.name in ladder.choice.rungs,
        accuracy={name: _accuracy(said, test.labels, shown) for name, said in answers.items()},
    )


def choose(data: ImageSet, *, classes: int, n: int, draw: int, n_test: int) -> tuple[Ints, Ints, Ints]:
    """Return the classes that have labels, and the positions of labelled and of unseen pictures.

    Raises:
        ValueError: too few pictures.
    """
    num_classes = len(data.class_names)
    shown = np.sort(np.random.default_rng(draw).permutation(num_classes)[:classes])
    pool = num_classes * -(-n // classes)
    positions = draw_positions(data.labels, data.hashes, n_support=pool, n_test=n_test, seed=draw)
    if len(positions.test) < n_test:
        raise ValueError(f"expected {pool + n_test} different pictures, got {pool + len(positions.test)}")
    labelled = positions.support[np.isin(data.labels[positions.support], shown)]
    return shown, labelled[balanced_indices(data.labels[labelled], n, seed=draw)], positions.test


def _refitted(prepared: PreparedBase, below: Search, labels: Ints, test: ImageSet) -> Mapping[str, Ints]:
    """Return the answers of last layers fitted to what was found, held to the labelled classes and not, (t,) each."""
    model = below.choice
    row, patch = np.asarray([model.coefficients]), model.tensors or None
    asked = prepared.run(row, test.images, bn_mode=model.bn_mode, patch=patch).features[0]
    assert model.features is not None, "the base set's last layer is linear"
    assert model.layer is not None, "the base set's last layer is linear"
    assert asked is not None, "the base set's last layer is linear"
    own = model.layer.divided(model.temperature)
    everyone = np.arange(len(test.class_names))
    heads: dict[str, list[Head]] = {
        FITTED: fit_heads(model.features, labels, own),
        PLAIN: fit_heads(model.features, labels, own, fitted=everyone),
    }
    return {
        f"{name} {position}": heads[name][position](asked).argmax(dim=1).numpy()
        for name in heads
        for position in range(len(PENALTIES))
    }


def _accuracy(said: Ints, labels: Ints, shown: Ints) -> Accuracy:
    """Return the accuracy on all pictures, on those of classes with labels, and on the others."""
    right, is_shown = said == labels, np.isin(labels, shown)
    return float(right.mean()), float(right[is_shown].mean()), float(right[~is_shown].mean())
