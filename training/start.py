"""Where training starts: timm's pretrained weights, or a file; random ones where a recipe says nothing."""

import logging
from pathlib import Path
from typing import Any, Literal

import timm
from pydantic import Field
from torch import Tensor, nn

from training.documents import Frozen, file_sha256
from training.foreign import Fitted, Head, fit_weights, load_weights
from training.manifest import Architecture, InputSpec
from training.models import Classifier, timm_arguments

logger = logging.getLogger(__name__)

PRETRAINED = "pretrained"
SAME_CHANNELS = 1e-4  # mean and std of the weights agree with the recipe's within this


class Start(Frozen):
    """The weights that ingredients without a parent start from."""

    weights: str = Field(
        min_length=1,
        description="pretrained: timm's own, from its hub; or a file, safetensors or torch.save's with timm's keys, "
        "relative to the working directory",
    )
    head: Literal["new", "keep"] = Field(
        default="new", description="new: a last layer of zeros for the recipe's classes; keep: that of the weights"
    )

    def file(self, override: Path | None = None) -> Path | None:
        """Return the file of the weights; None for timm's own.

        Args:
            override: a file to read instead, such as the same weights in another place.

        Raises:
            ValueError: there is no such file.
        """
        file = override or (None if self.weights == PRETRAINED else Path(self.weights))
        if file is not None and not file.is_file():
            raise ValueError(
                f"{file}: expected the weights to start from, found no such file; give their place with --weights"
            )
        return file


def load_start(
    start: Start, classifier: Classifier, architecture: Architecture, spec: InputSpec, *, file: Path | None = None
) -> None:
    """Put the starting weights into a classifier.

    A new last layer is zeros: some of timm's networks give it values made for thousands of classes, and a loss three
    times that of guessing would pull the backbone away before the layer has learnt anything.

    Args:
        start: which weights, and what becomes of their last layer.
        classifier: with the recipe's classes; changed in place.
        architecture: of the classifier.
        spec: its input; the weights must expect the same mean and standard deviation.
        file: what `start.file` returned.

    Raises:
        CheckpointError: a file that holds no such weights, or those of another network (names the first five keys).
        ValueError: timm has no weights for this architecture, or its hub cannot be reached.
    """
    if file is None:
        fitted = _pretrained(classifier.net, architecture, spec, start.head)
    else:
        fitted = load_weights(file, classifier.net, head=start.head)
    for what, theirs, ours in (("mean", fitted.mean, spec.mean), ("std", fitted.std, spec.std)):
        if theirs and max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) > SAME_CHANNELS:
            raise ValueError(f"input.{what}: the weights to start from expect {list(theirs)}, got {list(ours)}")
    classifier.net.load_state_dict(fitted.state_dict)
    logger.info("starting from %s, head: %s", file.name if file else f"timm's {architecture.name}", start.head)


def _pretrained(net: nn.Module, architecture: Architecture, spec: InputSpec, head: Head) -> Fitted:
    try:
        theirs: Any = timm.create_model(architecture.name, pretrained=True, **timm_arguments(architecture, spec))
    except Exception as error:  # the hub's client raises whatever its network library does
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"start.weights: timm's pretrained weights of {architecture.name!r} cannot be had ({reason}); where no "
            "hub can be reached, fetch them elsewhere and name the file"
        ) from error
    config = getattr(theirs, "pretrained_cfg", None) or {}
    mean, std = config.get("mean"), config.get("std")
    tensors: dict[str, Tensor] = theirs.state_dict()
    try:
        fitted = fit_weights(tensors, net, head=head)
    except ValueError as error:
        raise ValueError(f"start.weights: timm's weights of {architecture.name!r}: {error}") from None
    return fitted._replace(mean=tuple(mean) if mean else None, std=tuple(std) if std else None)


def start_record(start: Start, file: Path | None) -> dict[str, Any]:
    """Return what provenance says of the start: the recipe's words, and the digest of the file."""
    return start.model_dump(mode="json") | {"sha256": None if file is None else file_sha256(file)}
