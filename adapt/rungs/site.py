"""All weights trained on the labelled images, and how far to go towards them: the site's own ingredient.

On large shifts of photographs every layer must move, not only the first and the last. Training all of a network on a
hundred images gains most there, and over-fits. So what was trained is one more ingredient, mixed with the model that it
started from: a share of 0 is that model, 1 plain fine-tuning, and held-out answers choose. The mixture gets channel
statistics of its own.

Kernels and matrices are rounded to half precision before anything is judged, and stored so.

Source: Wortsman et al. 2022 (arXiv:2109.01903), weights between the start and the end of fine-tuning; Kumar et al. 2022
(arXiv:2202.10054), a fitted last layer before the others are trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from adapt.documents.patch import Tensors
from adapt.evidence.scores import Bools, Floats, part
from adapt.networks.prepared import PreparedBase
from adapt.rungs.head import refuse_current, refuse_labels
from adapt.rungs.model import Answers, Model, total
from adapt.rungs.pool import Library
from adapt.rungs.task import Part
from adapt.rungs.trained import start_of, trainable, trained_model
from adapt.rungs.training import Plan, Trained, estimate_statistics, network_of, pooled, train
from training.manifest import Manifest

MIN_IMAGES = 20
SHARES = (0.25, 0.5, 0.75, 1.0, 1.25)  # of the way from the start to the trained weights
TEMPERATURES = (1.0, 1.5, 2.0)  # by which logits are divided beyond the start's: training makes a network too sure
LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.01
# Steps of one image, and the power of their number: 54 for 20, 93 for 100, 200 for 1,000.
STEPS, STEPS_POWER = 20.0, 1 / 3
BATCH = 32
NUM_PARTS = 3  # of the images, each held out from a training
MAX_BYTES = 2**26  # of a stored patch: it is a row of the registry, and every worker reads it


class Site:
    """Trains all weights of the model below, and mixes them with what they were."""

    name = "site"
    num_variants = len(SHARES) * len(TEMPERATURES)
    num_parts: int | None = NUM_PARTS

    def __init__(self, library: Library) -> None:
        self._library, self._task = library, library.task
        self._num_trained = 0

    def refuse(self, below: Model, some: Part) -> str | None:
        """Say so where images are few or lack a class, or where the patch would be too large."""
        network = trainable(self._task)
        if network is None or network.head_key is None:
            return "the network has no linear last layer"
        if (why := refuse_labels(self._task, some, least=MIN_IMAGES)) is not None:
            return why
        if (size := _stored_bytes(network)) > MAX_BYTES:
            return f"all weights are {size / 2**20:.0f} MB in half precision, expected at most {MAX_BYTES // 2**20} MB"
        return refuse_current(self._library, below)

    def fit(self, below: Model, some: Part) -> Sequence[Model]:
        """Return a model for each of `SHARES`, at each of `TEMPERATURES`."""
        network, start = trainable(self._task), self._start(below)
        assert network is not None, "refused otherwise"
        net = network_of(network, start_of(start))
        before = {key: parameter.detach().cpu().numpy() for key, parameter in net.named_parameters()}
        trained = self._train(network, start, some).tensors
        mixed = [self._mixed(network, start, before, trained, share, some.images) for share in SHARES]
        return [replace(model, temperature=model.temperature * by) for model in mixed for by in TEMPERATURES]

    def is_better(self, below: Answers, own: Answers, weights: Floats | None) -> bool:
        """Say whether the cross-entropy of held-out images is lower."""
        return total(own.losses, weights) < total(below.losses, weights)

    def _start(self, below: Model) -> Model:
        """Return the model to train, its BatchNorm unfolded: a patch cannot replace what is folded into other weights.

        The statistics that it then has do not matter: it gets new ones.
        """
        return replace(below, bn_mode="raw") if self._task.network.has_batchnorm else below

    def _train(self, network: PreparedBase, start: Model, some: Part) -> Trained:
        task, images = self._task, some.images
        done, step = self._num_trained, 1 / (NUM_PARTS + 1)
        net = network.model(start.bn_mode).net
        trained = train(
            network,
            start_of(start),
            site_plan(net, int(images.sum()), mirrored=may_mirror(network.manifest)),
            task.support.images[images],
            task.support.labels[images],
            weights=part(task.weights, images),
            seed=task.seed,
            progress=lambda share: task.report(
                min(1.0, step * (done + share)), f"training all weights on {images.sum()} images"
            ),
            should_stop=task.should_stop,
        )
        self._num_trained += 1
        self._library.image_forwards += trained.image_forwards
        return trained

    def _mixed(
        self, network: PreparedBase, start: Model, before: Tensors, trained: Tensors, share: float, images: Bools
    ) -> Model:
        """Return the network a share of the way from the start to the trained weights, with its own statistics."""
        task = self._task
        weights = Mixed(before, trained, share, {})
        net = network_of(network, start_of(start))
        with torch.no_grad():
            for key, parameter in net.named_parameters():
                parameter.copy_(torch.from_numpy(weights[key]))
        statistics, forwards = estimate_statistics(
            network, net, pooled(task.support.images[images], task.unlabelled), should_stop=task.should_stop
        )
        self._library.image_forwards += forwards
        others = {key: array for key, array in start.tensors.items() if key not in before}
        tensors = Mixed(before, trained, share, {**others, **statistics})
        return trained_model(self._library, start, tensors, self.name, int(images.sum()))


class Mixed(Mapping[str, Floats]):
    """Weights a share of the way between two networks', computed when they are asked for, beside tensors that stay.

    A search keeps five mixtures of every part of the images. As arrays they would take twenty times the network's size.
    """

    def __init__(self, before: Tensors, trained: Tensors, share: float, others: Tensors) -> None:
        self._before, self._trained, self._share, self._others = before, trained, np.float32(share), others

    def __getitem__(self, key: str) -> Floats:
        """Return a float32 array; of the weights, kernels and matrices are rounded to half precision."""
        if key in self._others:
            return self._others[key]
        before = self._before[key]
        mixed = before + self._share * (self._trained[key] - before)
        return mixed.astype(np.float16).astype(np.float32) if mixed.ndim > 1 else mixed

    def __iter__(self) -> Iterator[str]:
        """Yield every name once."""
        return iter(self._before.keys() | self._others.keys())

    def __len__(self) -> int:
        """Return how many arrays there are."""
        return len(self._before.keys() | self._others.keys())


def site_plan(net: nn.Module, num_images: int, *, mirrored: bool) -> Plan:
    """Return how all weights of a network are trained on `num_images` images."""
    return Plan(
        keys=[key for key, _ in net.named_parameters()],
        learning_rate=LEARNING_RATE,
        steps=round(STEPS * num_images**STEPS_POWER),
        batch=BATCH,
        weight_decay=WEIGHT_DECAY,
        mirrored=mirrored,
    )


def may_mirror(manifest: Manifest) -> bool:
    """Say whether the base set was trained on mirrored images: then left and right do not tell its classes apart."""
    augmentation = manifest.provenance.recipe.get("augmentation")
    return isinstance(augmentation, dict) and augmentation.get("flip") is True


def _stored_bytes(network: PreparedBase) -> int:
    return sum(2 * parameter.numel() for parameter in network.model("raw").net.parameters())
