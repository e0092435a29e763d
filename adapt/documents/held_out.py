"""The images a version was fitted or chosen on, and its answers to them that were made without them. No torch.

A later search must not judge a version by images it was made from: it would look better than it is, and nothing could
replace it. So a version remembers, by the hash of their pixels, all labelled images that it was made from, and for each
of them the logits of the model that its search had made without the image's fold.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from pydantic import Field, model_validator
from safetensors import SafetensorError

from training.documents import Frozen

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

NO_FOLD = -1


class HeldOutError(ValueError):
    """Held-out answers that are damaged. One line that says what was expected."""


class HeldOutSummary(Frozen):
    """On how many images a version was fitted or chosen, and for how many of them it has held-out answers."""

    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of `held-out.safetensors`")]
    images: int = Field(ge=1, description="labelled images the version was fitted or chosen on")
    answered: int = Field(ge=0, description="images for which there is an answer made without them")


class Answered(NamedTuple):
    """Images a version was made from.

    Attributes:
        hashes: pixel hashes.
        folds: (n,) fold of each image in the search that made the version; `NO_FOLD` if there is no answer.
        logits: (n, K) of the model made without the fold, its temperature applied; NaN if there is no answer.
    """

    hashes: tuple[str, ...]
    folds: Ints
    logits: Floats


class HeldOut(HeldOutSummary):
    """The summary with its content: `data` is the content of `held-out.safetensors`, beside the document of a soup."""

    data: bytes = Field(exclude=True, repr=False)

    @model_validator(mode="after")
    def _check_data(self) -> "HeldOut":
        if (found := hashlib.sha256(self.data).hexdigest()) != self.digest:
            raise ValueError(f"held_out: expected answers with SHA-256 {self.digest[:12]}, got {found[:12]}")
        return self

    def answers(self) -> Answered:
        """Return the images and the answers.

        Raises:
            HeldOutError: not safetensors, or tensors of other names or shapes.
        """
        try:
            found = safetensors.numpy.load(self.data)
            hashes = tuple(found["hashes"].tobytes().decode().split("\n"))
            folds, logits = found["folds"].astype(np.int64), found["logits"].astype(np.float32)
        except (SafetensorError, KeyError, UnicodeDecodeError) as error:
            raise HeldOutError(f"held_out: expected hashes, folds and logits in safetensors: {error}") from None
        if not len(hashes) == len(folds) == len(logits) == self.images:
            raise HeldOutError(
                f"held_out: expected {self.images} images, got {len(hashes)} hashes, {len(folds)} folds and "
                f"{len(logits)} rows of logits"
            )
        return Answered(hashes, folds, logits)

    @property
    def summary(self) -> HeldOutSummary:
        """The summary alone."""
        return HeldOutSummary(digest=self.digest, images=self.images, answered=self.answered)


def make_held_out(hashes: Sequence[str], folds: Ints, logits: Floats, *, others: Sequence[str] = ()) -> HeldOut:
    """Return what a version remembers of the images it was made from.

    Logits are stored in half precision: an error of 0.05 % at most, K numbers of two bytes an image.

    Args:
        hashes: of the images of its search.
        folds: (n,) their folds.
        logits: (n, K) held-out answers, temperature applied.
        others: hashes of further images that the version was fitted on, without answers.
    """
    others = [digest for digest in others if digest not in set(hashes)]
    shape = (len(others), logits.shape[1])
    largest = float(np.finfo(np.float16).max)
    rows = np.concatenate([logits.clip(-largest, largest), np.full(shape, np.nan)]).astype(np.float16)
    tensors = {
        "hashes": np.frombuffer("\n".join([*hashes, *others]).encode(), dtype=np.uint8),
        "folds": np.concatenate([folds, np.full(len(others), NO_FOLD)]).astype(np.int8),
        "logits": rows,
    }
    data = safetensors.numpy.save({key: np.ascontiguousarray(value) for key, value in tensors.items()})
    answered = int(np.isfinite(rows).all(axis=1).sum())
    digest = hashlib.sha256(data).hexdigest()
    return HeldOut(digest=digest, images=len(hashes) + len(others), answered=answered, data=data)
