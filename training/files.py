"""Files that are replaced in one step. Imports no torch: predictors write files too."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object], *, mode: int | None = None) -> None:
    """Write a file, or a new version of it; an earlier file stays intact until the new one is whole on disk.

    `write` gets the path of an empty hidden file in the same folder and fills it. If it raises, nothing changes and
    nothing is left behind, so it may also check what it wrote.

    Args:
        path: the file; its folder exists.
        write: fills the file whose path it is given.
        mode: permissions, from the first byte on; default: those of any new file.

    Raises:
        OSError: the file cannot be written, for example because the disk is full.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
        write(partial)
        if mode is not None:
            partial.chmod(mode)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
