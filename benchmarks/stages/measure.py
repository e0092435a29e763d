"""One draw: global and stage-wise coefficients, with statistics of the labelled pictures, and a last layer on top."""

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from adapt.documents.soup import default_soup
from adapt.evidence.scores import TEMPERATURES, temp_ce
from adapt.images.support import Support
from adapt.networks.forward import score_logits, served_logits
from adapt.networks.last_layer import Head
from adapt.networks.prepared import PreparedBase
from adapt.rungs.head import fit_heads
from adapt.search.config import SearchConfig
from adapt.search.search import search
from benchmarks.shifts.lines import Keyed
from benchmarks.shifts.sets import draw
from benchmarks.stages.soups import Doubles, StageSoups, descend
from training.data import ImageSet

PULLS = (0.0, 0.1, 0.3)  # to the global coefficients, per unit of mean cross-entropy
NUM_FOLDS = 5
QUICK = ("statistics", "head")  # the rungs of the quick ladder
LADDER, START, TOGETHER = "quick ladder", "global", "global, descended"


class Record(Keyed):
    """What a draw found: accuracy on unseen pictures."""

    base_digest: str
    shift: str
    n: int
    draw: int
    n_test: int
    ladder: float = Field(description="of the quick ladder's candidate")
    own_layer: dict[str, float] = Field(description="by coefficients, with the soup's own last layer")
    fitted_layer: dict[str, float] = Field(
        description="by coefficients, the last layer fitted where held-out labels ask for it"
    )
    coefficients: dict[str, list[list[float]]] = Field(description="by stage, in the network's order")

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        """Which draw."""
        return self.base_digest, self.shift, self.n, self.draw, self.n_test


def stagewise(pull: float) -> str:
    """Return the name of stage-wise coefficients with a pull to the global ones."""
    return f"stage-wise, pull {pull:g}"


def measure(prepared: PreparedBase, data: ImageSet, shift: str, *, n: int, seed: int, n_test: int) -> Record:
    """Search for global coefficients, descend from them stage by stage, and judge all on unseen pictures.

    Args:
        prepared: the base set.
        data: shifted pictures.
        shift: its name.
        n: labelled pictures.
        seed: of the draw.
        n_test: unseen pictures.

    Raises:
        ValueError: too few pictures; a base set that cannot be recalibrated.
    """
    support, test = draw(data, n_support=n, n_test=n_test, seed=seed)
    current = default_soup(prepared.manifest)
    ladder = search(prepared, support, SearchConfig(rungs=QUICK, seed=seed), current=current)
    plain = search(prepared, support, SearchConfig(rungs=QUICK[:1], seed=seed), current=current)
    soups = StageSoups(prepared, support.images)
    start = np.tile(np.asarray(plain.choice.coefficients), (len(soups.stages), 1))
    known: dict[bytes, float] = {}

    def loss(coefficients: Doubles) -> float:
        key = coefficients.round(6).tobytes()
        if key not in known:
            logits = soups.set(coefficients)
            known[key] = float(temp_ce(score_logits(logits[None], support.labels).losses)[0][0])
        return known[key]

    found = {START: start, TOGETHER: descend(loss, start, pull=0.0, together=True)}
    found |= {stagewise(pull): descend(loss, start, pull=pull) for pull in PULLS}
    judged = {name: _judge(soups, coefficients, support, test, seed) for name, coefficients in found.items()}
    return Record(
        base_digest=prepared.manifest.digest,
        shift=shift,
        n=n,
        draw=seed,
        n_test=n_test,
        ladder=_accuracy(served_logits(prepared, ladder.soup, test.images), test.labels),
        own_layer={name: own for name, (own, _) in judged.items()},
        fitted_layer={name: fitted for name, (_, fitted) in judged.items()},
        coefficients={name: coefficients.tolist() for name, coefficients in found.items()},
    )


def _judge(
    soups: StageSoups, coefficients: Doubles, support: Support, test: ImageSet, seed: int
) -> tuple[float, float]:
    """Return the accuracy on unseen pictures with the soup's own last layer, and with a fitted one where asked for."""
    soups.set(coefficients)
    said, asked = soups.ask(support.images), soups.ask(test.images)
    position = int(temp_ce(score_logits(said.logits[None], support.labels).losses)[1][0])
    mixed, key = soups.mixed(coefficients), soups.head_key
    layer = Head(torch.from_numpy(mixed[f"{key}.weight"]), torch.from_numpy(mixed[f"{key}.bias"]))
    head = _layer(said.features, support, layer.divided(TEMPERATURES[position]), seed)
    return _accuracy(asked.logits, test.labels), _accuracy(head(asked.features), test.labels)


def _layer(features: Tensor, support: Support, own: Head, seed: int) -> Head:
    """Return the own layer or one fitted to all labels, whichever kind has the least loss on labels held out."""
    folds = support.folds(NUM_FOLDS, seed=seed)
    losses = []
    for fold in np.unique(folds):
        out = torch.from_numpy(folds == fold)
        heads = [own, *fit_heads(features[~out], support.labels[folds != fold], own)]
        targets = torch.from_numpy(support.labels[folds == fold])
        losses.append([float(cross_entropy(head(features[out]), targets, reduction="sum")) for head in heads])
    best = int(np.sum(losses, axis=0).argmin())
    return own if best == 0 else fit_heads(features, support.labels, own)[best - 1]


def _accuracy(logits: Tensor, labels: npt.NDArray[np.int64]) -> float:
    return float((logits.argmax(dim=1).numpy() == labels).mean())
