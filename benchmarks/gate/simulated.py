"""A base set without networks: all of its soups are equally good, so that every promotion is false.

An image has features x = mu_y + noise for its class y. Every soup sees other noise, part of it common to all soups, and
has the last layer that is best for such features (linear discriminant). So all soups are equally accurate, whatever the
coefficients, with or without new statistics, and a last layer that is fitted again is a little worse. A search gets all
that from `adapt.networks.network.Network`, as from real networks.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode
from adapt.evidence.cross_fit import NUM_FOLDS
from adapt.images.support import Support
from adapt.networks.last_layer import Head
from adapt.networks.network import Run
from adapt.rungs.early import MIN_IMAGES
from adapt.rungs.head import refuse_labels
from adapt.rungs.model import Answers, Model, total
from adapt.rungs.pool import Library
from adapt.rungs.task import Part
from training.manifest import Architecture, Ingredient, InputSpec, Manifest, Provenance, ThreatModel

NUM_CLASSES = 5
DISTANCE = 1.7  # of a class mean from zero, in standard deviations of the noise: an accuracy of 0.68
OF_SUBSET, OF_TRAINING = (
    0.2,
    0.3,
)  # shares of the variance of a soup's own noise that depend on the images it was made from
STATISTICS, HEAD, TRAINED = "norm.running_mean", "head", "trained"  # names of tensors

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class SimulatedNetwork:
    """Equally good soups of M ingredients on N images, drawn from a seed.

    Attributes:
        manifest: of a base set that is not there.
        labels: (N,) classes of the images.
        images: uint8 (N, 2, 2, 3), each holds its own number.
    """

    has_batchnorm, can_recalibrate, head_key = True, True, HEAD

    def __init__(
        self, num_ingredients: int, num_images: int, *, correlation: float, seed: Sequence[int], advantage: float = 0.0
    ) -> None:
        """Draw the images.

        Args:
            num_ingredients: M.
            num_images: N.
            correlation: of two soups' noise, from 0 to 1.
            seed: of everything.
            advantage: how much farther apart the classes are, as a share, for each unit of the second coefficient; 0
                for equally good soups.
        """
        generator = np.random.default_rng([*seed, 0])
        self.manifest = simulated_manifest(num_ingredients)
        self.labels: Ints = generator.integers(NUM_CLASSES, size=num_images)
        self.images = numbered_images(np.arange(num_images))
        self._seed, self._own = tuple(seed), float(np.sqrt(1 - correlation))
        means = np.float32(DISTANCE) * np.eye(NUM_CLASSES, dtype=np.float32)[self.labels]
        noise = generator.standard_normal((num_images, NUM_CLASSES), dtype=np.float32)
        self._extra = np.float32(advantage) * means
        self._common = means + np.float32(np.sqrt(correlation)) * noise
        self._kept: dict[tuple[object, ...], Floats] = {}

    @cached_property
    def layer(self) -> Head:
        """The last layer of every soup."""
        weight = DISTANCE * torch.eye(NUM_CLASSES, dtype=torch.float64)
        return Head(weight, torch.full((NUM_CLASSES,), -(DISTANCE**2) / 2, dtype=torch.float64))

    def support(self, positions: Ints) -> Support:
        """Return some of the images, labelled."""
        return numbered_support(positions, self.labels[positions], self.manifest)

    def canonical(self, bn_mode: BnMode) -> BnMode:
        """Return the mode."""
        return bn_mode

    def head(self, coefficients: Sequence[float], patch: Tensors | None = None) -> Head:
        """Return the last layer: that of all soups, or of the patch."""
        given = {} if patch is None else {key: torch.from_numpy(array) for key, array in patch.items()}
        own = self.layer
        return Head(given.get(f"{HEAD}.weight", own.weight), given.get(f"{HEAD}.bias", own.bias))

    def usable(self, coefficients: npt.NDArray[np.float64], bn_mode: BnMode) -> npt.NDArray[np.bool_]:
        """Return that all soups are usable."""
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
        """Return logits and features of soups, as networks do."""
        positions = numbers_of(images)
        statistics: Tensors | None = None
        if recalibrate:
            statistics = {STATISTICS: np.asarray([_number(positions.tobytes())], dtype=np.float32)}
        tensors = {**(patch or {}), **(statistics or {})}
        layer = self.head((), patch)
        features = [torch.from_numpy(self._features(row, tensors)[positions]) for row in coefficients]
        logits = torch.stack([layer(x).float() for x in features])
        return Run(logits, tuple(features), (statistics,) * len(coefficients), len(coefficients) * len(images))

    def _features(self, row: npt.NDArray[np.float64], tensors: Tensors) -> Floats:
        """Return what a soup's last layer is given for all images, (N, D)."""
        key = tuple(np.round(1000 * (row + 1)).astype(np.int64).tolist())
        if TRAINED in tensors:
            own = _blend(self._noise(key, 3), self._noise(key, 4, int(tensors[TRAINED][0])), OF_TRAINING)
        elif STATISTICS in tensors:
            own = _blend(self._noise(key, 1), self._noise(key, 2, int(tensors[STATISTICS][0])), OF_SUBSET)
        else:
            own = self._noise(key, 0)
        better = np.float32(row[1]) * self._extra
        return np.asarray(self._common + better + np.float32(self._own) * own, dtype=np.float32)

    def _noise(self, row: tuple[int, ...], *kind: int) -> Floats:
        key = (row, *kind)
        if key not in self._kept:
            generator = np.random.default_rng([*self._seed, 1, *row, *kind])
            self._kept[key] = np.asarray(generator.standard_normal(self._common.shape, dtype=np.float32))
        return self._kept[key]


class Retrained:
    """A rung as dear as training: its model is as good as the one below, and depends on the labels it was fitted on."""

    name = "retrained"
    num_variants = 1
    num_parts: int | None = NUM_FOLDS

    def __init__(self, library: Library) -> None:
        self._task = library.task

    def refuse(self, below: Model, some: Part) -> str | None:
        """Say so where images are few or a class is missing, as the rungs that train do."""
        return refuse_labels(self._task, some, least=MIN_IMAGES)

    def fit(self, below: Model, some: Part) -> Sequence[Model]:
        """Return models with other noise."""
        images, labels = some.images, self._task.support.labels[some.images]
        number = _number(images.tobytes() + labels.tobytes())
        return [self._model(below, number + variant, int(images.sum())) for variant in range(self.num_variants)]

    def _model(self, below: Model, number: int, num_images: int) -> Model:
        task = self._task
        start = below if below.below is None else below.below
        tensors = {**start.tensors, TRAINED: np.asarray([number], dtype=np.float32)}
        row = np.asarray([start.coefficients])

        def answer(images: npt.NDArray[np.bool_]) -> Tensor:
            return task.network.run(row, task.support.images[images], bn_mode="raw", patch=tensors).logits[0]

        return Model(
            candidate=start.candidate,
            coefficients=start.coefficients,
            bn_mode="raw",
            temperature=1.0,
            answer=answer,
            features=None,
            layer=None,
            tensors=tensors,
            recalibrated=start.recalibrated,
            rungs=(*start.rungs, self.name),
            below=start,
        )

    def is_better(self, below: Answers, own: Answers, weights: Floats | None) -> bool:
        """Say whether held-out images have a lower cross-entropy, and no fewer right answers."""
        has_lower_loss = total(own.losses, weights) < total(below.losses, weights)
        return has_lower_loss and int(own.right.sum()) >= int(below.right.sum())


class Shares(Retrained):
    """The same in five variants that know nothing of one another, held out in three parts: worse than `site` can be."""

    name = "shares"
    num_variants = 5
    num_parts: int | None = 3

    def is_better(self, below: Answers, own: Answers, weights: Floats | None) -> bool:
        """Say whether the cross-entropy of held-out images is lower."""
        return total(own.losses, weights) < total(below.losses, weights)


def numbered_images(numbers: Ints) -> npt.NDArray[np.uint8]:
    """Return images that hold their own number (from 0 to 2**32 - 1), uint8 (n, 2, 2, 3)."""
    images = np.zeros((len(numbers), 2, 2, 3), dtype=np.uint8)
    images.reshape(len(numbers), 12)[:, :4] = numbers.astype("<u4").view(np.uint8).reshape(-1, 4)
    return images


def numbers_of(images: npt.NDArray[np.uint8]) -> Ints:
    """Return the numbers that images hold, (n,)."""
    return images.reshape(len(images), 12)[:, :4].copy().view("<u4").ravel().astype(np.int64)


def numbered_support(numbers: Ints, labels: Ints, manifest: Manifest) -> Support:
    """Return the images of these numbers, labelled."""
    hashes = tuple(f"{number:064x}" for number in numbers.tolist())
    return Support(numbered_images(numbers), labels, hashes, manifest.class_names)


def simulated_manifest(num_ingredients: int, num_classes: int = NUM_CLASSES) -> Manifest:
    """Return the manifest of a base set that is not there, for 2 x 2 pixels."""
    names = [f"m{number}" for number in range(num_ingredients)]
    return Manifest(
        name="simulated",
        digest="0" * 64,
        architecture=Architecture(name="simulated", kwargs={}),
        input=InputSpec(height=2, width=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        class_names=tuple(f"class {number}" for number in range(num_classes)),
        ingredients=tuple(
            Ingredient(
                name=name,
                file=f"{name}.safetensors",
                sha256="0" * 64,
                threat_model=ThreatModel(norm="Linf", eps=0.01),
                objective="nominal",
                parent=None,
            )
            for name in names
        ),
        default_coefficients={name: float(position == 0) for position, name in enumerate(names)},
        provenance=Provenance(
            recipe={},
            seed=0,
            git_commit=None,
            git_dirty=None,
            versions={},
            hardware="none",
            data_hash="none",
            seconds=0,
        ),
    )


def _blend(one: Floats, other: Floats, share: float) -> Floats:
    """Return noise of variance 1 of which a share comes from the other."""
    return np.asarray(np.sqrt(1 - share) * one + np.sqrt(share) * other, dtype=np.float32)


def _number(content: bytes) -> int:
    """Return a number that float32 holds exactly."""
    return int.from_bytes(hashlib.sha256(content).digest()[:3], "little")
