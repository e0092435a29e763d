"""Class frequencies: the last layer answers at those of the images without labels, and of labels that are a fair draw.

The rung adds the correction of the calibration and log(frequency / expected) to the K biases.  Calibrated answers
expect every class to be equally frequent: see `adapt.evidence.label_shift`. This holds for every last layer. One that
was fitted to labelled images has their class shares in its biases, the more the weaker it was pulled to the soup's own;
the calibration, made on the same labels, takes out what is in there. So no share is counted twice, and none has to be
known.

Labels that are not a fair draw cannot show frequencies, so they must not judge the rung. It is tried only if `draw` is
"fair"; otherwise the images without labels give the frequencies, and these are reported.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from adapt.documents.frequencies import ClassFrequency, class_frequencies
from adapt.evidence.label_shift import Calibration, calibrate, estimate, interval, log_ratio, uncalibrated
from adapt.evidence.scores import Bools, Doubles, Floats
from adapt.networks.last_layer import Head
from adapt.rungs.head import LastLayer, is_last, refuse_current
from adapt.rungs.model import Answers, Model, Seen, total
from adapt.rungs.pool import Library
from adapt.rungs.task import Part, Task
from training.manifest import Manifest

MIN_IMAGES = 50  # that are a fair draw: with fewer, chance moves frequencies more than most shifts do


class Evidence(NamedTuple):
    """The answers that class frequencies are estimated from.

    Attributes:
        logits: (m, K) of the images without labels.
        calibration: of the model.
        counts: (K,) labelled images that are a fair draw, by class.
    """

    logits: Doubles
    calibration: Calibration
    counts: Doubles


class Frequencies:
    """Adds the class frequencies of the images to the last layer of the model below."""

    name = "frequencies"
    num_variants = 1
    num_parts: int | None = None

    def __init__(self, library: Library) -> None:
        self._library, self._task = library, library.task
        self._fitted: dict[tuple[int, bytes], tuple[Model, Model]] = {}

    def refuse(self, below: Model, some: Part) -> str | None:
        """Say so where labels may not judge, images are too few, or a bias is not simply added to the logits."""
        task = self._task
        if task.draw != "fair":
            return "draw=any: only labels that are a fair draw can show that other class frequencies are better"
        if task.weights is not None:
            return "every class is to count alike, however frequent it is"
        if below.features is None or below.layer is None or below.stream is None:
            return "the network has no linear last layer"
        if (why := refuse_current(self._library, below)) is not None:
            return why
        if (n := num_fair(task)) < MIN_IMAGES:
            return f"expected at least {MIN_IMAGES} images, labelled or not, got {n}"
        return None if is_last(below.layer, below) else "the network's logits are not those of its last layer alone"

    def fit(self, below: Model, some: Part) -> Sequence[Model]:
        """Return the model below at the frequencies of the unlabelled images and of the part's labels."""
        if below.layer is None or below.stream is None or refuse_current(self._library, below) is not None:
            return [below]
        key = (id(below), some.images.tobytes())
        if key not in self._fitted:
            self._fitted[key] = below, self._fit(below, some.images)
        return [self._fitted[key][1]]

    def is_better(self, below: Answers, own: Answers, weights: Floats | None) -> bool:
        """Say whether the cross-entropy of held-out images is lower."""
        return total(own.losses, weights) < total(below.losses, weights)

    def _fit(self, below: Model, images: Bools) -> Model:
        found = gather(self._task, below, images)
        frequencies = estimate(found.logits, found.calibration, counts=found.counts)
        temperature = found.calibration.temperature
        shift = torch.from_numpy(temperature * (found.calibration.bias + log_ratio(frequencies)))
        layer, stream, key = below.layer, below.stream, self._task.network.head_key
        assert layer is not None, "the last layer is linear"
        assert stream is not None, "the last layer is linear"
        bias = (layer.bias.double() + shift).float()
        return replace(
            below,
            temperature=temperature,
            answer=lambda some: below.answer(some) + shift,
            layer=Head(layer.weight, bias),
            stream=lambda: _shifted(stream(), shift),
            frequencies=frequencies,
            tensors={**below.tensors, f"{key}.bias": bias.numpy()},
            rungs=(*(name for name in below.rungs if name != self.name), self.name),
            below=below,
        )


def _shifted(seen: Seen, shift: torch.Tensor) -> Seen:
    return Seen(seen.logits + shift, seen.features)


def num_fair(task: Task) -> int:
    """Return the number of images that are a fair draw: all without labels, and labelled ones where `draw` says so."""
    return task.num_unlabelled + (len(task.support) if task.draw == "fair" else 0)


def gather(task: Task, model: Model, images: Bools) -> Evidence:
    """Return what tells the class frequencies, of the labels only those of `images` (n,)."""
    assert model.stream is not None, "frequencies are estimated with a model that keeps it"
    labels, num_classes = task.support.labels[images], len(task.support.class_names)
    logits = model.answer(images).double().numpy()
    usable = np.isfinite(logits).all(axis=1)
    is_fitted = LastLayer.name in model.rungs
    calibration = calibrate(logits[usable], labels[usable], temperature=model.temperature, is_fitted=is_fitted)
    stream = model.stream().logits.double().numpy()
    counts = np.zeros(num_classes)
    if task.draw == "fair":
        counts += np.bincount(labels, minlength=num_classes)
    return Evidence(stream[np.isfinite(stream).all(axis=1)], calibration, counts)


def report_frequencies(task: Task, model: Model) -> tuple[ClassFrequency, ...] | None:
    """Return the class frequencies of the images with their intervals; None where too few images tell them.

    They are estimated with the model, or the last one below it that keeps what it says of images without labels and
    has no frequencies of its own.
    """
    if num_fair(task) < MIN_IMAGES:
        return None
    while model.below is not None and (model.stream is None or model.frequencies is not None):
        model = model.below
    return _report(gather(task, model, np.ones(len(task.support), dtype=np.bool_)), task.support.class_names)


def report_uncalibrated(
    manifest: Manifest, logits: torch.Tensor, *, temperature: float
) -> tuple[ClassFrequency, ...] | None:
    """Return the class frequencies of images without any label beside them; None where the images are too few.

    Args:
        manifest: of the base set.
        logits: (m, K).
        temperature: divides them.
    """
    if len(logits) < MIN_IMAGES:
        return None
    usable = logits[logits.isfinite().all(dim=1)].double().numpy()
    calibration = uncalibrated(usable.shape[1], temperature)
    return _report(Evidence(usable, calibration, np.zeros(usable.shape[1])), manifest.class_names)


def _report(found: Evidence, class_names: tuple[str, ...]) -> tuple[ClassFrequency, ...]:
    frequencies = estimate(found.logits, found.calibration, counts=found.counts)
    ends = interval(frequencies, found.logits, found.calibration, counts=found.counts)
    return class_frequencies(class_names, frequencies, *ends)
