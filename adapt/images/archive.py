"""Reading files out of an archive somebody sent: names, sizes and counts are checked, nothing is written to disk."""

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from training.documents import one_line

SMALL = 16 * 2**20  # bytes that any archive may unpack to, whatever its ratio
ZIP_ENTRY = b"PK\x01\x02"  # signature of one entry of the central directory
UTF8_FLAG = 1 << 11  # of a member: its name is UTF-8
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile and tarfile raise: the last two are for features that zipfile lacks, and for thousands of headers of a
# tar, each about the next.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RecursionError,
)
MAX_NAME = 1000  # characters; no file system unpacks longer ones


class ArchiveError(ValueError):
    """An archive that cannot be read or must not be. `item` is the member at fault, where it is one."""

    def __init__(
        self, message: str, kind: Literal["unreadable", "unsafe", "too_large"], item: str | None = None
    ) -> None:
        super().__init__(message)
        self.kind: Literal["unreadable", "unsafe", "too_large"] = kind
        self.item = item


@dataclass(frozen=True)
class Limits:
    """Limits of the size that an archive unpacks to.

    Attributes:
        max_files: members of any kind.
        max_bytes: unpacked size of all members.
        max_ratio: unpacked size over packed size, once more than 16 MiB are unpacked.
    """

    max_files: int = 10_000
    max_bytes: int = 512 * 2**20
    max_ratio: float = 100.0

    def budget(self, packed: int) -> int:
        """Return the bytes that an archive of this size may unpack to."""
        return min(self.max_bytes, max(SMALL, int(self.max_ratio * packed)))


def read_archive(data: bytes, limits: Limits, *, ignored: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every regular file in a .zip, .tar or .tar.gz; names have forward slashes.

    Args:
        data: the archive.
        limits: number of members and unpacked size.
        ignored: says by its name which member to pass over; its name is checked all the same.

    Raises:
        ArchiveError: not such an archive, damaged or encrypted (`unreadable`); a link, device, absolute name, one with
            ".." or one that occurs twice (`unsafe`); more members or bytes than allowed (`too_large`).
    """
    read = _read_zip if data[:4] in (b"PK\x03\x04", b"PK\x05\x06") else _read_tar
    seen: set[str] = set()
    try:
        for name, content in read(data, limits, ignored):
            if name in seen:  # which one is meant?
                raise ArchiveError(f"{name!r}: occurs twice in the archive", "unsafe", name)
            seen.add(name)
            yield name, content
    except ArchiveError:
        raise
    except tarfile.ReadError as error:
        raise ArchiveError(f"expected a .zip, .tar or .tar.gz archive: {one_line(error)}", "unreadable") from None
    except _DAMAGE as error:
        raise ArchiveError(f"the archive is damaged: {one_line(error)}", "unreadable") from None


def _read_zip(data: bytes, limits: Limits, ignored: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    _check_count(data.count(ZIP_ENTRY), limits)  # before zipfile builds an object for each
    budget = limits.budget(len(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        _check_total(sum(member.file_size for member in members), budget)
        for member in members:
            name = _check_name(_name_of(member))
            if member.is_dir():
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise ArchiveError(f"{name!r}: expected a regular file, got a link or device", "unsafe", name)
            if ignored(name):
                continue
            if member.flag_bits & 1 or member.compress_type not in ZIP_METHODS:
                raise ArchiveError(f"{name!r}: encrypted or packed by a rare method", "unreadable", name)
            with archive.open(member) as file:
                content = file.read(budget + 1)
            budget -= len(content)
            _check_total(0, budget)
            yield name, content


def _name_of(member: zipfile.ZipInfo) -> str:
    """Return the name of a member. Debian's zip writes UTF-8 and does not say so; zipfile reads it as code page 437."""
    if member.flag_bits & UTF8_FLAG:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


def _read_tar(data: bytes, limits: Limits, ignored: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    packed = io.BytesIO(data)
    raw = gzip.GzipFile(fileobj=packed) if data[:2] == b"\x1f\x8b" else packed
    guarded = _Budgeted(raw, limits.budget(len(data)))
    with tarfile.open(fileobj=guarded, mode="r|") as archive:  # type: ignore[call-overload]  # needs only read()
        for count, member in enumerate(archive, start=1):
            _check_count(count, limits)
            name = _check_name(member.name)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise ArchiveError(
                    f"{name!r}: expected a regular file, got a link, device or sparse file", "unsafe", name
                )
            if ignored(name):
                continue
            file = archive.extractfile(member)
            assert file is not None  # regular files have content
            yield name, file.read()
    while guarded.read(tarfile.RECORDSIZE):  # to the end, where gzip has its checksum
        pass


class _Budgeted:
    """A stream that may be read up to a number of bytes, so that no header can make us unpack more."""

    def __init__(self, file: io.BufferedIOBase, budget: int) -> None:
        self._file = file
        self._budget = budget

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._budget + 1))
        self._budget -= len(data)
        _check_total(0, self._budget)
        return data


def _check_total(size: int, budget: int) -> None:
    if size > budget or budget < 0:
        raise ArchiveError("the archive unpacks to more than its size allows for images", "too_large")


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_files:
        raise ArchiveError(f"expected at most {limits.max_files} files in the archive, got more", "too_large")


def _check_name(name: str) -> str:
    """Return the name with forward slashes; raise unless it stays below the archive's root."""
    if len(name) > MAX_NAME:
        short = f"{name[:80]}..."
        raise ArchiveError(f"{short!r}: expected a name of at most {MAX_NAME} characters", "unsafe", short)
    parts = name.replace("\\", "/").removeprefix("./").split("/")
    if ".." in parts or parts[0] == "" or parts[0][1:2] == ":":
        raise ArchiveError(f"{name!r}: expected a relative name inside the archive", "unsafe", name)
    return "/".join(part for part in parts if part not in ("", "."))
