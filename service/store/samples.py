"""The images of jobs at rest: one folder per job below the home, written whole before the job's row exists."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from adapt.soup import SupportSummary
from adapt.support import Support

logger = logging.getLogger(__name__)

FILE_NAME = "support.npz"
ORPHAN_SECONDS = 3600  # older folders without a job are left from a crash between the two writes


class SamplesGone(ValueError):
    """The stored images of a job are missing or damaged."""


@dataclass(frozen=True)
class Material:
    """What a job is given: labelled images, images without a label, or both; exact repeats left out.

    `unlabelled` uint8 (m, H, W, 3) at the network's input size; `unlabelled_hashes` the pixel hashes of the originals,
    none for images of a reservoir.
    """

    support: Support | None
    unlabelled: npt.NDArray[np.uint8] | None = None
    unlabelled_hashes: tuple[str, ...] = ()

    @property
    def summary(self) -> SupportSummary:
        """How many images of each kind there are."""
        per_class = {} if self.support is None else self.support.per_class
        return SupportSummary(n=sum(per_class.values()), unlabelled=len(self.unlabelled_hashes), per_class=per_class)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the set of images and labels, in whatever order and file format they came."""
        found: list[object] = []
        if self.support is not None:
            labels = map(int, self.support.labels)
            found += sorted(zip(self.support.hashes, labels, strict=True))
        return hashlib.sha256(json.dumps(found + sorted(self.unlabelled_hashes)).encode()).hexdigest()


class Samples:
    """The folder of stored samples."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def save(self, job: str, material: Material) -> None:
        """Write the images of a job; they are on disk when this returns.

        Raises:
            OSError: the disk is full or read-only; nothing is left behind.
        """
        folder = self._root / job
        folder.mkdir(parents=True)
        try:
            with (folder / FILE_NAME).open("wb") as file:
                np.savez(file, **_arrays(material))  # type: ignore[arg-type]  # numpy's stub takes a name for a flag
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def load(self, job: str) -> Material:
        """Return the images of a job.

        Raises:
            SamplesGone: they are not there or not whole.
        """
        try:
            path = self._root / job / FILE_NAME
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return _material(arrays)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            logger.error("the samples of job %s cannot be read: %s", job, error)
            raise SamplesGone("the stored images of this job are missing or damaged") from None

    def delete(self, job: str) -> None:
        """Delete the images of a job, if there are any."""
        shutil.rmtree(self._root / job, ignore_errors=True)

    def delete_orphans(self, jobs: set[str]) -> None:
        """Delete what belongs to none of these jobs and is not new."""
        if not self._root.is_dir():
            return
        for folder in self._root.iterdir():
            if folder.name not in jobs and time.time() - folder.stat().st_mtime > ORPHAN_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _arrays(material: Material) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    if (support := material.support) is not None:
        arrays |= {"images": support.images, "labels": support.labels}
        arrays |= {"hashes": np.asarray(support.hashes), "class_names": np.asarray(support.class_names)}
    if material.unlabelled is not None:
        arrays |= {"unlabelled": material.unlabelled, "unlabelled_hashes": np.asarray(material.unlabelled_hashes)}
    return arrays


def _material(arrays: Mapping[str, npt.NDArray[Any]]) -> Material:
    """Return what `_arrays` made arrays of; KeyError where one is missing."""
    unlabelled, hashes = None, ()
    if "unlabelled" in arrays:
        unlabelled, hashes = arrays["unlabelled"], tuple(arrays["unlabelled_hashes"].tolist())
    if unlabelled is not None and "images" not in arrays:
        return Material(None, unlabelled, hashes)
    support = Support(
        images=arrays["images"],
        labels=arrays["labels"],
        hashes=tuple(arrays["hashes"].tolist()),
        class_names=tuple(arrays["class_names"].tolist()),
    )
    return Material(support, unlabelled, hashes)
