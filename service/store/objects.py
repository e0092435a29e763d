"""Objects at rest, by key, wherever fsspec reaches: a local folder, or a bucket of an S3 store. They hold arrays."""

import io
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.store.tables import new_id
from training.documents import one_line

PROBE = "probe"


class StoreError(OSError):
    """The store cannot be used. One line."""


class Place(NamedTuple):
    """A file system and a folder of it."""

    files: Any  # fsspec.AbstractFileSystem
    root: str

    @property
    def is_local(self) -> bool:
        """It is a folder of this machine."""
        return isinstance(self.files, LocalFileSystem)


class ObjectStore:
    """Objects below a URL. Safe to use from several threads and processes, as no key is ever written twice."""

    def __init__(self, url: str) -> None:
        """Open nothing yet.

        Args:
            url: a local folder, or what fsspec understands, such as `s3://bucket/folder`.
        """
        self._url = url

    @cached_property
    def _place(self) -> Place:
        # Made when it is first used: the libraries of a remote store are large, and a predictor may never need them.
        try:
            return Place(*url_to_fs(self._url))
        except (ImportError, ValueError) as error:
            raise StoreError(f"expected a folder or a URL such as s3://bucket/folder: {one_line(error)}") from None

    def probe(self) -> None:
        """Write, read and delete a small object, so that a wrong URL or key is noticed at the start.

        Raises:
            OSError: one of them is not possible.
        """
        key = f"{PROBE}-{uuid.uuid4().hex}"  # several processes or containers may start at once
        with self._translated():
            if self._place.is_local:
                Path(self._place.root).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.write(key, b"probe")
        if self.read([key])[key] != b"probe":
            raise StoreError("expected to read what was just written, got something else")
        self.delete([key])

    def now(self) -> float:
        """Return the time, in seconds since 1970, with which the store dates what is written now.

        Raises:
            OSError: it cannot be written to or read.
        """
        key = f"{PROBE}-{new_id()}"
        self.write(key, b"now")
        with self._translated():
            self._place.files.invalidate_cache()
            written = _time(self._place.files.info(self._path(key)))
        self.delete([key])
        return written

    def write(self, key: str, data: bytes) -> None:
        """Write an object; it is at rest when this returns.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        with self._translated():
            path = self._path(key)
            try:
                if self._place.is_local:
                    _write_durably(Path(path), data)
                else:
                    self._place.files.pipe_file(path, data)
            except BaseException:
                with suppress(Exception):
                    self._place.files.rm_file(path)
                raise

    def read(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the objects that are there, several at a time from a remote store.

        Raises:
            OSError: the store cannot be read.
        """
        paths = {self._path(key): key for key in keys}
        if not paths:
            return {}
        with self._translated():
            if self._place.is_local:
                found = {path: _read(Path(path)) for path in paths}
            else:
                found = self._place.files.cat(list(paths), on_error="return")
            for value in found.values():
                if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                    raise value
        return {paths[path]: data for path, data in found.items() if isinstance(data, bytes)}

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there are no error.

        Raises:
            OSError: one cannot be deleted.
        """
        with self._translated():
            for key in keys:
                with suppress(FileNotFoundError):
                    self._place.files.rm_file(self._path(key))

    def list(self, folder: str) -> dict[str, float]:
        """Return the keys below a folder, each with the time when it was written, in seconds since 1970.

        Raises:
            OSError: the store cannot be read.
        """
        with self._translated():
            self._place.files.invalidate_cache()
            found = self._place.files.find(self._path(folder), detail=True)
        start = len(self._path(""))
        return {path[start:]: _time(info) for path, info in found.items()}

    def _path(self, key: str) -> str:
        return f"{self._place.root.rstrip('/')}/{key}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Make an OSError of every error that a remote store's library raises."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise StoreError(one_line(error)) from error


def to_bytes(**arrays: npt.NDArray[Any]) -> bytes:
    """Return arrays as the content of an object, with checksums."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a name for a flag
    return buffer.getvalue()


def from_bytes(data: bytes) -> Mapping[str, npt.NDArray[Any]]:
    """Return the arrays of an object.

    Raises:
        ValueError: it is damaged.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays.items())
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise ValueError(f"damaged: {error}") from None


def _write_durably(path: Path, data: bytes) -> None:
    """Write a file that survives a power cut, which fsspec does not offer."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> bytes | FileNotFoundError:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        return error


def _time(info: dict[str, Any]) -> float:
    """Return when a file was written, as its file system calls it."""
    if "mtime" in info:
        return float(info["mtime"])
    return float(info["LastModified"].timestamp())
