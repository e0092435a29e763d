"""Labelled images at rest: one folder per job below the home, written whole before the job's row exists."""

import hashlib
import json
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np

from adapt.support import Support

logger = logging.getLogger(__name__)

FILE_NAME = "support.npz"
ORPHAN_SECONDS = 3600  # older folders without a job are left from a crash between the two writes


class SamplesGone(ValueError):
    """The stored images of a job are missing or damaged."""


class Samples:
    """The folder of stored samples."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def save(self, job: str, support: Support) -> None:
        """Write the images of a job; they are on disk when this returns.

        Raises:
            OSError: the disk is full or read-only; nothing is left behind.
        """
        folder = self._root / job
        folder.mkdir(parents=True)
        try:
            with (folder / FILE_NAME).open("wb") as file:
                np.savez(
                    file,
                    images=support.images,
                    labels=support.labels,
                    hashes=np.asarray(support.hashes),
                    class_names=np.asarray(support.class_names),
                )
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def load(self, job: str) -> Support:
        """Return the images of a job.

        Raises:
            SamplesGone: they are not there or not whole.
        """
        try:
            with np.load(self._root / job / FILE_NAME, allow_pickle=False) as arrays:
                return Support(
                    images=arrays["images"],
                    labels=arrays["labels"],
                    hashes=tuple(arrays["hashes"].tolist()),
                    class_names=tuple(arrays["class_names"].tolist()),
                )
        except (OSError, ValueError, KeyError, EOFError) as error:
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


def samples_digest(support: Support) -> str:
    """Return the SHA-256 (hex) of the set of images and labels, in whatever order and file format they came."""
    pairs = sorted((digest, int(label)) for digest, label in zip(support.hashes, support.labels, strict=True))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
