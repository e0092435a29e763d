"""Scales and shifts trained on images without labels beside the labelled ones.

Channel statistics use images without labels once. Here the network's own answers to them are raised where they are
sure and unlike the mean answer, and made to agree with the answers to moved images. The labelled images, in steps
between, say which way is right. Only scales and shifts of normalisation layers move, so the patch stays small. The
answers are not to be trusted: where they collapse, the model below stays, and held-out labels decide about the rest.

Source: Marsden, Doebler and Yang 2024 (arXiv:2306.00650), ROID, for batches that are answered as they pass; Wortsman et
al. 2022 (arXiv:2109.01903), a share of the way.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from adapt.documents.patch import Floats, Tensors
from adapt.evidence.scores import Bools, part
from adapt.networks.network import check_stop
from adapt.networks.prepared import PreparedBase
from adapt.rungs.certainty import Guard, soft_likelihood_ratio, symmetric_cross_entropy, weigh
from adapt.rungs.head import refuse_current, refuse_labels
from adapt.rungs.model import Answers, Model, total
from adapt.rungs.pool import Library
from adapt.rungs.site import may_mirror
from adapt.rungs.task import Part
from adapt.rungs.trained import start_of, trainable, trained_model
from adapt.rungs.training import (
    FORWARDS,
    batch_statistics,
    endless,
    estimate_statistics,
    moved,
    network_of,
    pooled,
)
from training.devices import exact_floats

MIN_IMAGES = 80  # with 20, held-out labels never took it: see EXPERIMENTS.md
MIN_UNLABELLED = 200
SHARES = (0.5, 1.0)  # of the way from the start to what was trained
TEMPERATURES = (1.0, 1.25)  # by which logits are divided beyond the start's: sure answers are made surer
LEARNING_RATE = 1e-3  # of Adam, on images with labels and without
STEPS, BATCH = 32, 64
PULL = 0.01  # share of the way back to the start after each step without labels
NUM_PARTS = 3  # of the labelled images, each held out from a training


class Stream:
    """Trains scales and shifts of the model below on labelled and unlabelled images."""

    name = "stream"
    num_variants = len(SHARES) * len(TEMPERATURES)
    num_parts: int | None = NUM_PARTS

    def __init__(self, library: Library) -> None:
        self._library, self._task = library, library.task
        self._num_trained = 0

    def refuse(self, below: Model, some: Part) -> str | None:
        """Say so where images are few, labels lack a class, or there is nothing to scale and shift."""
        if self._task.num_unlabelled < MIN_UNLABELLED:
            return f"expected at least {MIN_UNLABELLED} images without labels, got {self._task.num_unlabelled}"
        if (why := refuse_labels(self._task, some, least=MIN_IMAGES)) is not None:
            return why
        network = trainable(self._task)
        if network is None or not norm_affines(network.model("raw").net):
            return "the network has no normalisation layer with scales and shifts"
        return refuse_current(self._library, below)

    def fit(self, below: Model, some: Part) -> Sequence[Model]:
        """Return a model for each of `SHARES`, at each of `TEMPERATURES`; the one below where answers collapse."""
        network, task = trainable(self._task), self._task
        assert network is not None, "refused otherwise"
        # BatchNorm must stand by itself. The statistics that the start then has do not matter: it gets new ones.
        start = replace(below, bn_mode="raw") if task.network.has_batchnorm else below
        net = network_of(network, start_of(start))
        before = {key: net.get_parameter(key).detach().clone() for key in norm_affines(net)}
        is_sound = self._train(network, net, start.temperature, list(before), some.images)
        self._num_trained += 1
        if not is_sound:
            return [below] * self.num_variants
        after = {key: net.get_parameter(key).detach().clone() for key in before}
        mixed = [self._mixed(network, net, start, _between(before, after, share), some.images) for share in SHARES]
        return [replace(model, temperature=model.temperature * by) for model in mixed for by in TEMPERATURES]

    def is_better(self, below: Answers, own: Answers, weights: Floats | None) -> bool:
        """Say whether the cross-entropy of held-out images is lower."""
        return total(own.losses, weights) < total(below.losses, weights)

    def _train(
        self, network: PreparedBase, net: nn.Module, temperature: float, keys: Sequence[str], images: Bools
    ) -> bool:
        """Train in place; return False once answers collapse."""
        task, parameters = self._task, [net.get_parameter(key) for key in keys]
        assert task.unlabelled is not None, "refused otherwise"
        labels, counts = torch.from_numpy(task.support.labels[images]), part(task.weights, images)
        mirrored, generator = may_mirror(network.manifest), torch.Generator().manual_seed(task.seed)
        learner = Learner(net, parameters, temperature, generator, mirrored=mirrored)
        labelled = task.support.images[images]
        weights = torch.ones(len(labels)) if counts is None else torch.from_numpy(counts)
        streams = endless(len(task.unlabelled), BATCH, generator), endless(len(labels), BATCH, generator)
        done, share = self._num_trained, 1 / (NUM_PARTS + 1)
        with exact_floats(), _training(net, parameters):
            for step, some, known in zip(range(STEPS), *streams, strict=False):
                check_stop(task.should_stop)
                learner.learn(network.inputs(task.unlabelled[some.numpy()]))
                if learner.guard.has_collapsed:
                    return False
                x = network.inputs(labelled[known.numpy()])
                learner.learn_labels(x, labels[known].to(x.device), weights[known].to(x.device))
                self._library.image_forwards += FORWARDS * (2 * len(some) + len(known))
                task.report(
                    min(1.0, share * (done + (step + 1) / STEPS)),
                    f"training scales and shifts on {images.sum()} images and {task.num_unlabelled} without labels",
                )
        return True

    def _mixed(
        self, network: PreparedBase, net: nn.Module, start: Model, affines: dict[str, Tensor], images: Bools
    ) -> Model:
        """Return the network with these scales and shifts, and statistics of its own."""
        task = self._task
        with torch.no_grad():
            for key, tensor in affines.items():
                net.get_parameter(key).copy_(tensor)
        statistics, forwards = estimate_statistics(
            network, net, pooled(task.support.images[images], task.unlabelled), should_stop=task.should_stop
        )
        self._library.image_forwards += forwards
        found = {key: tensor.cpu().numpy() for key, tensor in affines.items()}
        tensors: Tensors = {**start.tensors, **found, **statistics}
        return trained_model(self._library, start, tensors, self.name, int(images.sum()))


class Learner:
    """Takes steps on images without labels, and on labelled ones between."""

    def __init__(
        self,
        net: nn.Module,
        parameters: Sequence[nn.Parameter],
        temperature: float,
        generator: torch.Generator,
        *,
        mirrored: bool,
    ) -> None:
        """Begin with a network that normalises each batch with its own statistics; these parameters may change."""
        self.guard = Guard()
        self._net, self._parameters, self._temperature = net, parameters, temperature
        self._generator, self._mirrored = generator, mirrored
        self._start = [parameter.detach().clone() for parameter in parameters]
        self._optimisers = [torch.optim.Adam(parameters, lr=LEARNING_RATE) for _ in range(2)]
        self._mean: Tensor | None = None  # of all answers, (K,)

    def learn(self, x: Tensor) -> None:
        """Raise likelihood ratios of sure and diverse answers to a batch, agree with moved images, stay near."""
        logits = self._answer(x)
        self.guard.see(logits.detach())
        weights, self._mean = weigh(logits, self._mean)
        if (kept := weights > 0).any():
            loss = (weights * soft_likelihood_ratio(logits))[kept].sum()
            view = self._answer(self._moved(x[kept]))
            loss = loss + (weights[kept] * symmetric_cross_entropy(view, logits[kept])).sum()
            self._step(loss / len(x), self._optimisers[0])
        with torch.no_grad():
            for parameter, value in zip(self._parameters, self._start, strict=True):
                parameter.lerp_(value, PULL)

    def learn_labels(self, x: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Lower the cross-entropy of labelled images, moved a little; weights (B,) say how much each counts."""
        losses = cross_entropy(self._answer(self._moved(x)), labels, reduction="none")
        self._step((weights * losses).mean(), self._optimisers[1])

    def _answer(self, x: Tensor) -> Tensor:
        logits: Tensor = self._net(x)
        return logits / self._temperature

    def _moved(self, x: Tensor) -> Tensor:
        return moved(x, self._generator, mirrored=self._mirrored)

    def _step(self, loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def norm_affines(net: nn.Module) -> list[str]:
    """Return the names of scales and shifts of BatchNorm layers, or of other normalisation layers if there is none."""
    modules = dict(net.named_modules())
    layers = [name for name, module in modules.items() if isinstance(module, _BatchNorm)]
    layers = layers or [name for name, module in modules.items() if isinstance(module, (nn.LayerNorm, nn.GroupNorm))]
    return [f"{name}.{key}" for name in layers for key, _ in modules[name].named_parameters(recurse=False)]


@contextmanager
def _training(net: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach these parameters, and BatchNorm normalise with the batch at hand."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    with batch_statistics(net):
        yield
    net.requires_grad_(False)


def _between(before: dict[str, Tensor], after: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    return {key: torch.lerp(before[key], after[key], share) for key in before}
