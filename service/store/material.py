"""The images that a job searches on: images with labels, images without, and the list of labelled ones."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adapt.documents.soup import SupportSummary
from adapt.images.support import Support

Images = npt.NDArray[np.uint8]  # (n, H, W, 3)

_SELECTED = np.dtype([("hash", "u1", (32,)), ("label", "<u4")])


class Selected(NamedTuple):
    """One labelled image of a job."""

    hash: str  # SHA-256 of the original's pixels, in hex
    label: int  # index into the base set's class names


@dataclass(frozen=True)
class Material:
    """Labelled images, images without a label, or both; exact repeats left out.

    `unlabelled` uint8 (m, H, W, 3) at the network's input size; `unlabelled_hashes` the pixel hashes of the originals,
    none for images of a reservoir.
    """

    support: Support | None
    unlabelled: Images | None = None
    unlabelled_hashes: tuple[str, ...] = ()

    @property
    def selected(self) -> list[Selected]:
        """The labelled images, in order."""
        if self.support is None:
            return []
        pairs = zip(self.support.hashes, self.support.labels.tolist(), strict=True)
        return [Selected(digest, label) for digest, label in pairs]


def digest_of(selected: Iterable[Selected], unlabelled_hashes: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of the set of images and labels, for any order and file format."""
    found: list[object] = [*sorted(selected), *sorted(unlabelled_hashes)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def summary_of(selected: Sequence[Selected], class_names: Sequence[str], num_unlabelled: int) -> SupportSummary:
    """Return how many images of each kind there are."""
    counts = Counter(label for _, label in selected)
    per_class = {name: counts[index] for index, name in enumerate(class_names) if counts[index]}
    return SupportSummary(n=len(selected), unlabelled=num_unlabelled, per_class=per_class)


def pack_selection(selected: Sequence[Selected]) -> bytes:
    """Return a list of labelled images in 36 bytes each."""
    records = np.zeros(len(selected), dtype=_SELECTED)
    if selected:
        hashes = b"".join(bytes.fromhex(digest) for digest, _ in selected)
        records["hash"] = np.frombuffer(hashes, dtype=np.uint8).reshape(-1, 32)
        records["label"] = [label for _, label in selected]
    return records.tobytes()


def unpack_selection(data: bytes) -> list[Selected]:
    """Return the list that `pack_selection` packed."""
    records = np.frombuffer(data, dtype=_SELECTED)
    return [
        Selected(digest.tobytes().hex(), int(label))
        for digest, label in zip(records["hash"], records["label"], strict=True)
    ]
