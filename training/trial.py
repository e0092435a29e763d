"""A network tried out before anything is trained: a step of training, and the export that serving needs."""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.exporting import ExportError, export_graph
from training.manifest import Architecture, InputSpec
from training.models import Classifier, create_classifier, describe


def check_network(architecture: Architecture, spec: InputSpec, num_classes: int) -> None:
    """Raise ValueError, in one line, unless a network can be trained at this input size and served afterwards.

    Takes seconds, so it is done once in a process for each network. The state of torch's random numbers stays.

    Args:
        architecture: a name in timm's registry and its keyword arguments.
        spec: input size and normalisation.
        num_classes: width of the last layer, at least 2.
    """
    _check(architecture.model_dump_json(), spec.model_dump_json(), num_classes)


@cache
def _check(architecture_json: str, spec_json: str, num_classes: int) -> None:
    architecture, spec = Architecture.model_validate_json(architecture_json), InputSpec.model_validate_json(spec_json)
    shape = (3, spec.height, spec.width)
    with torch.random.fork_rng(devices=[]):
        classifier = create_classifier(architecture, spec, num_classes)
        try:
            take_step(classifier, shape, num_classes)
        except Exception as error:  # timm's networks raise whatever they run into
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{describe(architecture, spec)}: cannot be trained: {reason}") from error
        try:
            export_graph(classifier.eval(), shape)
        except ExportError as error:
            raise ValueError(f"{describe(architecture, spec)}: cannot be served: {error}") from error


def take_step(classifier: Classifier, shape: tuple[int, int, int], num_classes: int) -> None:
    """Take the gradient of a loss on two images: in training some networks give more than logits, or other ones."""
    logits = classifier.train().net(torch.rand(2, *shape))
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"expected logits (2, {num_classes}) in training, got {got}")
    loss = cross_entropy(logits, torch.tensor([0, 1]))
    if not loss.isfinite():
        raise ValueError("the first loss is not finite")
    loss.backward()  # type: ignore[no-untyped-call]
