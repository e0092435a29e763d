"""The answers of soups to a probe image, kept beside the bundle: one process computes them for all.

Running a large network without optimisations takes longer than building its session. The adapter does it before a
promotion, and the workers that swap then only compare.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adapt.documents.patch import Tensors
from adapt.documents.soup import BnMode
from deploy.session import Floats

FOLDER = "expected"
MOST_FILES = 256  # the oldest go; one has a few kilobytes


def key_of(vector: Sequence[float], bn_mode: BnMode, patch: Tensors | None) -> str:
    """Return what tells one soup of a bundle from another."""
    found = hashlib.sha256(json.dumps([list(vector), bn_mode]).encode())
    for name, array in sorted((patch or {}).items()):
        found.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def read_expected(bundle: Path, key: str, num_classes: int) -> Floats | None:
    """Return the kept logits (1, K); None if there are none that can be read."""
    try:
        found = np.load(bundle / FOLDER / f"{key}.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    is_whole = found.shape == (1, num_classes) and found.dtype == np.float32 and bool(np.isfinite(found).all())
    return found if is_whole else None


def keep_expected(bundle: Path, key: str, logits: Floats) -> None:
    """Keep logits (1, K), and no more than `MOST_FILES`; nothing happens where the folder cannot be written."""
    folder = bundle / FOLDER
    partial = folder / f".{key}.{os.getpid()}.npy"
    try:
        folder.mkdir(exist_ok=True)
        np.save(partial, logits)
        partial.replace(folder / f"{key}.npy")
        kept = sorted(folder.glob("*.npy"), key=lambda file: file.stat().st_mtime)
        for file in kept[:-MOST_FILES]:
            file.unlink(missing_ok=True)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
