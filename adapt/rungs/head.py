"""The last layer, fitted to a few labelled images: logistic regression drawn to the soup's own layer.

Where some classes have no label, only the rows of the others are fitted, and the classes without a label keep the
probability that the soup gives them together: see `fit_heads`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize, special
from threadpoolctl import ThreadpoolController
from torch import Tensor

from adapt.evidence.scores import Bools, Doubles, Floats, part
from adapt.networks.last_layer import Head
from adapt.rungs.model import Answers, Model, Seen, total
from adapt.rungs.pool import Library
from adapt.rungs.task import Part, Task
from training.manifest import InputSpec

# Strengths of the pull to the soup's own layer, strong first. None of them depends on the number of images: the pull
# is a prior, which more images outweigh.
PENALTIES = (300.0, 100.0, 30.0, 10.0)
MAX_STEPS = 60  # of L-BFGS; it starts at the solution for the next stronger pull

# Of the largest logit (at least 1), the share by which rounding may move what the last layer says alone.
SAME_LOGITS = 1e-3

# Below, a wrong choice of the penalty costs more than a fitted layer gains. Networks for larger pictures than this have
# pretrained features, whose layer gains from fewer images: see EXPERIMENTS.md.
MIN_IMAGES, LARGE_INPUT, MIN_IMAGES_LARGE = 50, 64, 20

LEADS = "the current version, made from some of these images, leads as it is"

Ints = npt.NDArray[np.int64]


class LastLayer:
    """Fits the last layer of the model below, with each of `PENALTIES`."""

    name = "head"
    num_variants = len(PENALTIES)
    num_parts: int | None = None

    def __init__(self, library: Library) -> None:
        self._library, self._task = library, library.task
        self._fitted: dict[tuple[int, bytes], tuple[Model, list[Model]]] = {}

    def refuse(self, below: Model, some: Part) -> str | None:
        """Say so where the logits are not those of a linear last layer, or the images are too few, or of one class."""
        if below.features is None or below.layer is None:
            return "the network has no linear last layer"
        least = least_images(self._task.network.manifest.input)
        why = refuse_current(self._library, below) or refuse_few(self._task, least=least)
        if why is None and len(np.unique(self._task.support.labels[some.images])) < 2:
            return "expected labelled images of at least 2 classes, got 1: there is nothing to tell it from"
        if why is None and not is_last(below.layer, below):
            return "the network's logits are not those of its last layer alone"
        return why

    def fit(self, below: Model, some: Part) -> Sequence[Model]:
        """Return the model below with its last layer fitted, one for each penalty."""
        if refuse_current(self._library, below) is not None:
            return [below] * len(PENALTIES)
        key = (id(below), some.images.tobytes())
        if key not in self._fitted:
            self._fitted[key] = below, self._fit(below, some.images)
        return self._fitted[key][1]

    def is_better(self, below: Answers, own: Answers, weights: Floats | None) -> bool:
        """Say whether the cross-entropy of held-out images is lower."""
        return total(own.losses, weights) < total(below.losses, weights)

    def _fit(self, below: Model, images: Bools) -> list[Model]:
        features, own, key = below.features, below.layer, self._task.network.head_key
        assert features is not None, "the last layer is linear"
        assert own is not None, "the last layer is linear"
        heads = fit_heads(
            features[torch.from_numpy(images)],
            self._task.support.labels[images],
            own.divided(below.temperature),
            weights=part(self._task.weights, images),
        )
        return [_with_head(below, Head(head.weight.float(), head.bias.float()), f"{key}") for head in heads]


def least_images(spec: InputSpec) -> int:
    """Return how many labelled images a last layer is fitted to at least, by the size of the network's input."""
    return MIN_IMAGES_LARGE if max(spec.height, spec.width) > LARGE_INPUT else MIN_IMAGES


def is_last(layer: Head, model: Model) -> bool:
    """Say if nothing comes behind or beside the last layer: VOLO adds the answers of a second one to its logits."""
    assert model.features is not None, "the last layer is linear"
    logits = model.answer(np.ones(len(model.features), dtype=np.bool_)).double()
    allowed = SAME_LOGITS * max(1.0, float(logits.abs().max()))
    return float((layer(model.features) - logits).abs().max()) <= allowed


def _with_head(below: Model, head: Head, key: str) -> Model:
    features = below.features
    assert features is not None, "the last layer is linear"
    return replace(
        below,
        temperature=1.0,
        answer=lambda images: head(features[torch.from_numpy(images)]),
        layer=head,
        stream=None if below.stream is None else partial(_heard, head, below.stream),
        tensors={**below.tensors, f"{key}.weight": head.weight.numpy(), f"{key}.bias": head.bias.numpy()},
        rungs=(*below.rungs, LastLayer.name),
        below=below,
    )


def _heard(head: Head, stream: Callable[[], Seen]) -> Seen:
    """Return what a network says of the images without labels, with another last layer."""
    features = stream().features
    assert features is not None, "the last layer is linear"
    return Seen(head(features), features)


def refuse_current(library: Library, below: Model) -> str | None:
    """Return why nothing may be put on the current soup; None if something may.

    The folds of this search cannot judge the images that the current soup was made from: their labels would reach
    every fold through it.
    """
    if below.candidate == 0 and not library.pool.standing.fresh.all():
        return LEADS
    return None


def refuse_few(task: Task, *, least: int) -> str | None:
    """Return why labelled images are too few to fit to; None if they are not.

    All images of the search are counted, also if a part of them is fitted to.
    """
    n = len(task.support)
    return None if n >= least else f"expected at least {least} labelled images, got {n}"


def refuse_labels(task: Task, some: Part, *, least: int) -> str | None:
    """Return why labelled images are too few to train layers on that all classes share, or lack a class.

    Classes are those of the part, as the choice for a fold must not know the fold's labels.
    """
    if (why := refuse_few(task, least=least)) is not None:
        return why
    found, wanted = len(np.unique(task.support.labels[some.images])), len(task.support.class_names)
    if found == wanted:
        return None
    return (
        f"expected labelled images of all {wanted} classes, got {found}: training changes the answers for every class, "
        f"and nothing would show what it does to the other {wanted - found}"
    )


def fit_heads(
    features: Tensor,
    labels: Ints,
    own: Head,
    *,
    fitted: Ints | None = None,
    weights: npt.NDArray[np.float32] | None = None,
) -> list[Head]:
    """Return the last layer fitted to labelled images, for each of `PENALTIES`.

    Minimises  sum_i CE(t_i, W x_i + b) + penalty (r^2 ||W - W_own||^2 + ||b - b_own||^2),  with the features centred
    and r the root mean square of their entries: then a penalty means the same for every network. Convex; L-BFGS.

    The target t_i is the label where every class is fitted. Rows of other classes stay as they are, bit for bit, and
    the target gives each of these classes the probability that the own layer gives it, the label what is left. With
    the labels alone as targets, every image would say that the other classes never occur, and the fitted rows would
    grow until nothing is given to them. An image's label tells the fitted classes apart; it says nothing about how
    often the others occur.

    Args:
        features: (n, D), the inputs of the last layer.
        labels: (n,) class indices.
        own: the soup's own layer, its logits divided by its temperature.
        fitted: classes whose rows are fitted, ascending, all labels among them; those of the labels if None.
        weights: (n,) by which each image's cross-entropy counts; None for 1.

    Source: the pull to a layer that is there, Xuhong et al. 2018 (arXiv:1802.01483); the own answers as targets for
    what has no label, Li and Hoiem 2016 (arXiv:1606.09282).
    """
    classes = np.unique(labels) if fitted is None else fitted
    x = features.double().numpy()
    centre = x.mean(axis=0)
    scale = max(1e-12, float(np.sqrt(np.square(x - centre).mean())))
    x = (x - centre) / scale
    own_weight, own_bias = own.weight.double().numpy(), own.bias.double().numpy()
    counts = np.ones(len(x)) if weights is None else weights.astype(np.float64)
    own_logits = x @ (own_weight.T * scale) + own_bias + own_weight @ centre
    start, targets = _start(own_logits, labels, classes)
    num_fitted, shape = len(classes), (len(classes), own_weight.shape[1])
    size = num_fitted * own_weight.shape[1]

    def objective(change: Doubles, penalty: float) -> tuple[float, Doubles]:
        logits = start.copy()
        logits[:, :num_fitted] += x @ change[:size].reshape(shape).T
        logits[:, :num_fitted] += change[size:]
        logits -= logits.max(axis=1, keepdims=True)
        error = np.exp(logits)
        sums = error.sum(axis=1, keepdims=True)
        loss = counts @ (np.log(sums[:, 0]) - (targets * logits).sum(axis=1)) + penalty * (change @ change)
        error /= sums
        error -= targets
        error *= counts[:, None]
        error = error[:, :num_fitted]
        gradient = np.concatenate([(error.T @ x).ravel(), error.sum(axis=0)]) + 2 * penalty * change
        return float(loss), gradient

    found, heads = np.zeros(size + num_fitted), []
    with _pools().limit(limits=1, user_api="blas"):  # the steps are small: threads would wait for one another
        for penalty in PENALTIES:
            found = optimize.minimize(
                objective, found, args=(penalty,), jac=True, method="L-BFGS-B", options={"maxiter": MAX_STEPS}
            ).x
            weight, bias = own_weight.copy(), own_bias.copy()
            weight[classes] += found[:size].reshape(shape) / scale
            bias[classes] += found[size:]
            bias[classes] -= (weight[classes] - own_weight[classes]) @ centre
            heads.append(Head(torch.from_numpy(weight), torch.from_numpy(bias)))
    return heads


def _start(own_logits: Doubles, labels: Ints, classes: Ints) -> tuple[Doubles, Doubles]:
    """Return the logits (n, F) of the fitted classes, and the targets (n, F).

    Classes that are not fitted are one more column: their rows do not move, and so only their sum matters.

    Args:
        own_logits: (n, K), of the own layer.
        labels: (n,).
        classes: those that are fitted, ascending.
    """
    others = np.setdiff1d(np.arange(own_logits.shape[1]), classes)
    start, targets = own_logits[:, classes], np.zeros((len(labels), len(classes)))
    targets[np.arange(len(labels)), np.searchsorted(classes, labels)] = 1
    if not len(others):
        return start, targets
    rest = special.logsumexp(own_logits[:, others], axis=1, keepdims=True)
    start = np.concatenate([start, rest], axis=1)
    share = np.exp(rest - special.logsumexp(start, axis=1, keepdims=True))
    return start, np.concatenate([(1 - share) * targets, share], axis=1)


@cache
def _pools() -> ThreadpoolController:
    """Return the thread pools of the libraries loaded; looking for them takes a while."""
    return ThreadpoolController()
