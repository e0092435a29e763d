"""The patch: tensors that a soup replaces after mixing: channel statistics, first and last layers, or all. No torch.

A patch is kilobytes, or megabytes where all weights were trained. It is applied to the mixed weights by name, in each
BatchNorm mode. In the raw mode recalibrated statistics (without BatchNorm, weights and biases that move and scale
channels) take the place of the mixed ones, and so do trained layers; in every mode a re-fitted last layer takes the
place of the mixed one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from pydantic import Field, model_validator
from safetensors import SafetensorError

from training.documents import Frozen

Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, Floats]

STATISTICS = (".running_mean", ".running_var")


class PatchError(ValueError):
    """A patch that is damaged or does not fit the network. One line that says what was expected."""


class PatchSummary(Frozen):
    """A summary of the changes that a patch makes."""

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of `patch.safetensors`")]
    recalibrated: int = Field(
        default=0, ge=0, description="images the channel statistics were estimated on; 0 where they were not"
    )
    rungs: tuple[str, ...] = Field(
        min_length=1, description="what made its tensors: statistics, head (the last layer), early (first layers), ..."
    )


class Patch(PatchSummary):
    """A patch with its tensors: `data` is the content of `patch.safetensors`, by state-dict key.

    Tensors are float32; those whose numbers half precision holds exactly are stored so.

    `data` stands beside the JSON document of a soup, not in it: a file of its own, or a column of its own.
    """

    data: bytes = Field(exclude=True, repr=False)

    @model_validator(mode="after")
    def _check_data(self) -> "Patch":
        if (found := hashlib.sha256(self.data).hexdigest()) != self.digest:
            raise ValueError(f"patch: expected tensors with SHA-256 {self.digest[:12]}, got {found[:12]}")
        return self

    def tensors(self) -> dict[str, Floats]:
        """Return the tensors, float32 by state-dict key.

        Raises:
            PatchError: not safetensors, another dtype than float32 or float16, or a number that is not finite.
        """
        try:
            found = safetensors.numpy.load(self.data)
        except SafetensorError as error:
            raise PatchError(f"patch: expected safetensors: {error}") from None
        for key, array in found.items():
            if array.dtype not in (np.float32, np.float16):
                raise PatchError(f"patch: expected float32 or float16 for {key!r}, got {array.dtype}")
            if not np.isfinite(array).all():
                raise PatchError(f"patch: {key!r} has numbers that are not finite")
        return {key: array.astype(np.float32) for key, array in found.items()}

    @property
    def summary(self) -> PatchSummary:
        """The patch without its tensors."""
        return PatchSummary(digest=self.digest, recalibrated=self.recalibrated, rungs=self.rungs)


def make_patch(tensors: Tensors, *, rungs: Sequence[str], recalibrated: int = 0) -> Patch:
    """Return the patch of these tensors; the same tensors give the same digest.

    Args:
        tensors: float32 by state-dict key.
        rungs: names of what made them.
        recalibrated: images the statistics were estimated on.

    Raises:
        PatchError: no tensors, another dtype, not finite.
    """
    if not tensors:
        raise PatchError("patch: expected at least one tensor, got none")
    data = safetensors.numpy.save({key: _compact(tensors[key]) for key in sorted(tensors)})
    digest = hashlib.sha256(data).hexdigest()
    patch = Patch(digest=digest, recalibrated=recalibrated, rungs=tuple(rungs), data=data)
    patch.tensors()
    return patch


def _compact(array: Floats) -> np.ndarray:
    """Return an array in half precision if that changes none of its numbers."""
    if array.dtype != np.float32:
        raise PatchError(f"patch: expected float32, got {array.dtype}")
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return np.ascontiguousarray(half if np.array_equal(half, array) else array)


def check_patch(patch: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise PatchError unless the network, whose tensors have these shapes, has every tensor of the patch."""
    for key, array in patch.items():
        if (shape := shapes.get(key)) != array.shape:
            has = "no such tensor" if shape is None else f"one of shape {shape}"
            raise PatchError(f"patch: {key!r} of shape {array.shape} does not fit the network, which has {has}")
