"""Archives of labelled images, each with good ones among them, that must be refused as a whole."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from functools import cache

from tests.hostile.pictures import picture, png_bomb, saved

FILE, OTHER = saved(picture(21)), saved(picture(22))
GOOD = {"cat/a.png": FILE, "dog/b.png": OTHER}
LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
MAX_FILES = 300  # of the server that they are sent to


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def zip_with(info: zipfile.ZipInfo, data: bytes = FILE) -> bytes:
    """Return a zip of good images and one member that is described by hand."""
    buffer = io.BytesIO(zipped(GOOD))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(info, data)
    return buffer.getvalue()


def special(name: str, kind: int) -> zipfile.ZipInfo:
    """Return a member of a zip that Unix would unpack as something other than a file."""
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


def flagged(file: bytes, bits: int) -> bytes:
    """Return a zip whose members have more flags."""
    return _patched(file, {LOCAL: (6, struct.pack("<H", bits)), CENTRAL: (8, struct.pack("<H", bits))})


def _patched(file: bytes, changes: dict[bytes, tuple[int, bytes]]) -> bytes:
    """Return a zip where every record of a kind has other bytes at an offset."""
    data = bytearray(file)
    for signature, (offset, value) in changes.items():
        at = data.find(signature)
        while at >= 0:
            data[at + offset : at + offset + len(value)] = value
            at = data.find(signature, at + 4)
    return bytes(data)


def tarred(members: Iterable[tuple[str, bytes]], *, kind: int = tarfile.PAX_FORMAT, mode: str = "w") -> bytes:
    """Return a tar of these files, which may share names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=kind) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_with(name: str, kind: bytes, *, link: str = "", pax: dict[str, str] | None = None, size: int = 0) -> bytes:
    """Return a tar of good images and one member of another kind, or with strange headers."""
    buffer = io.BytesIO(tarred(GOOD.items()))
    with tarfile.open(fileobj=buffer, mode="a", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size, info.pax_headers = kind, link, size, pax or {}
        archive.addfile(info, io.BytesIO(bytes(size)))
    return buffer.getvalue()


def twice(name: str, other: str) -> bytes:
    """Return a zip with two files of one name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), FILE)
        archive.writestr(zipfile.ZipInfo(other.replace(name, name[:-1] + "_")), OTHER)
    return buffer.getvalue().replace((name[:-1] + "_").encode(), name.encode())


def overlapping() -> bytes:
    """Return a zip whose second entry starts within the data of the first."""
    file = zipped(GOOD, zipfile.ZIP_STORED)
    second = file.find(CENTRAL, file.find(CENTRAL) + 4)
    return file[: second + 42] + struct.pack("<I", 0) + file[second + 46 :]


def _tar_header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """Return the header of a member whose size field holds anything."""
    head = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)[:512])
    head[:100] = name.ljust(100, b"\0")
    head[124:136] = size.ljust(12, b"\0")
    head[156:157] = kind
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def _folders(count: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for index in range(count):
            info = tarfile.TarInfo(f"cat/{index}")
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
    return buffer.getvalue()


def _endless(kind: bytes) -> bytes:
    """Return a tar.gz of thousands of headers, each of which is about the next."""
    block = _tar_header(b"x", b"%011o" % 11, kind) + b"11 path=abc".ljust(512, b"\0")
    return gzip.compress(tarred(GOOD.items())[: 3 * 512] + block * 12_000 + bytes(1024))


@cache
def refused() -> dict[str, tuple[bytes, int]]:
    """Return archives by what they are, with the status of their refusal."""
    good_zip, good_tar, zeros = zipped(GOOD), tarred(GOOD.items()), bytes(20 * 2**20)
    start = good_tar[: 3 * 512]  # its first file
    lying = zipped({"cat/zeros.bmp": zeros})
    unusable = {
        "nothing": b"",
        "text": b"this is no archive",
        "zeros": bytes(3000),
        "an image": FILE,
        "empty zip": zipped({}),
        "empty tar": tarred([]),
        "signature of a zip": b"PK\x03\x04 and nothing more",
        "signature of a gzip": b"\x1f\x8b rubbish",
        "7z": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(100),
        "bzip2": tarred(GOOD.items(), mode="w:bz2"),
        "xz": tarred(GOOD.items(), mode="w:xz"),
        "truncated zip": good_zip[:-30],
        "truncated tar": good_tar[: len(good_tar) // 8],
        "truncated tar.gz": gzip.compress(good_tar)[:-30],
        "gzip of a gzip": gzip.compress(gzip.compress(good_tar)),
        "gzip of a zip": gzip.compress(good_zip),
        "gzip with a wrong checksum": gzip.compress(good_tar)[:-8] + bytes(8),
        "zip in a zip": zipped(GOOD | {"cat/inner.zip": good_zip}),
        "zip that climbs out": zipped(GOOD | {"../../evil.png": FILE}),
        "zip that climbs out from within": zipped(GOOD | {"cat/../../evil.png": FILE}),
        "zip that climbs out by backslashes": zipped(GOOD | {"..\\..\\evil.png": FILE}),
        "zip with an absolute name": zipped(GOOD | {"/etc/cat/a.png": FILE}),
        "zip with a drive": zipped(GOOD | {"C:\\cat\\a.png": FILE}),
        "zip with another machine": zipped(GOOD | {"\\\\server\\cat\\a.png": FILE}),
        "zip that hides where it climbs": zipped(GOOD | {"__MACOSX/../../evil.png": FILE}),
        "zip with a NUL in a name": zipped(GOOD | {"cat/x_.txt": b"no"}).replace(b"x_.txt", b"x\0.txt"),
        "zip with a class nobody knows": zipped(GOOD | {"unicorn/a.png": FILE}),
        "zip with a class that looks the same": zipped(GOOD | {"c\u0430t/a.png": FILE}),
        "zip with a right-to-left name": zipped(GOOD | {"\u202etac/a.png": FILE}),
        "zip without folders": zipped(GOOD | {"a.png": FILE}),
        "zip with a long name": zipped(GOOD | {"cat/" + "x" * 60_000: b"no image"}),
        "zip of a thousand folders in one": zipped(GOOD | {"x/" * 1000 + "a.png": FILE}),
        "zip of what file browsers leave behind": zipped({"__MACOSX/._a.png": b"x", "cat/.DS_Store": b"x"}),
        "zip of what Windows leaves behind": zipped({"cat/Thumbs.db": b"x", "dog/desktop.ini": b"x"}),
        "zip with a text file": zipped(GOOD | {"cat/readme.txt": b"text"}),
        "zip with a link": zip_with(special("cat/link.png", stat.S_IFLNK), b"/etc/passwd"),
        "zip with a device": zip_with(special("cat/null.png", stat.S_IFCHR)),
        "zip with a pipe": zip_with(special("cat/pipe.png", stat.S_IFIFO)),
        "zip with two files of one name": twice("cat/a.png", "cat/a.png"),
        "zip with two spellings of one name": zipped({"cat/a.png": FILE, "./cat//a.png": OTHER}),
        "tar with two files of one name": tarred([*GOOD.items(), ("cat/a.png", saved(picture(23)))]),
        "encrypted zip": flagged(good_zip, 1),
        "strongly encrypted zip": flagged(good_zip, 0x41),
        "zip with encrypted names": flagged(good_zip, 0x40),
        "zip of patches": flagged(good_zip, 0x20),
        "zip packed by bzip2": zipped(GOOD, zipfile.ZIP_BZIP2),
        "zip packed by LZMA": zipped(GOOD, zipfile.ZIP_LZMA),
        "zip packed by a method that is none": _patched(good_zip, {CENTRAL: (10, b"\x63\x00")}),
        "zip for readers of the future": _patched(good_zip, {CENTRAL: (6, b"\xff\x00")}),
        "zip with wrong checksums": _patched(good_zip, {LOCAL: (14, bytes(4)), CENTRAL: (16, bytes(4))}),
        "zip whose entries start nowhere": _patched(good_zip, {CENTRAL: (42, b"\xff\xff\xff\x7f")}),
        "zip of overlapping entries": overlapping(),
        "zip whose names differ inside": good_zip.replace(b"dog/b.png", b"dog/c.png", 1),
        "zip that lies about its sizes": lying.replace(struct.pack("<I", len(zeros)), struct.pack("<I", 1000)),
        "tar that climbs out": tarred([*GOOD.items(), ("cat/../../evil.png", FILE)]),
        "tar with an absolute name": tarred([*GOOD.items(), ("/etc/cat/a.png", FILE)]),
        "tar with a link": tar_with("cat/link.png", tarfile.SYMTYPE, link="/etc/passwd"),
        "tar with a link to a file of its own": tar_with("dog/link.png", tarfile.LNKTYPE, link="cat/a.png"),
        "tar with a hard link out": tar_with("cat/link.png", tarfile.LNKTYPE, link="../../../etc/passwd"),
        "tar with a pipe": tar_with("cat/pipe.png", tarfile.FIFOTYPE),
        "tar with a character device": tar_with("cat/zero.png", tarfile.CHRTYPE),
        "tar with a block device": tar_with("cat/disk.png", tarfile.BLKTYPE),
        "tar with a sparse file": tar_with("cat/a.png", tarfile.GNUTYPE_SPARSE),
        "tar with a sparse file of the new kind": tar_with(
            "cat/s.png", tarfile.REGTYPE, size=512, pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        ),
        "tar that names a file anew": tar_with("cat/x.png", tarfile.REGTYPE, pax={"path": "../../evil.png"}),
        "tar whose size is no number": tar_with("cat/x.png", tarfile.REGTYPE, pax={"size": "x"}),
        "tar of a kind that is none": tar_with("cat/x.png", b"?"),
        "tar of another volume": tar_with("cat/x.png", b"M"),
        "tar whose sizes are negative": start + _tar_header(b"cat/x.png", b"-0000000777") + bytes(1024),
        **{f"tar of headers without end, {kind.decode()}": _endless(kind) for kind in (b"x", b"g", b"L", b"K")},
        "tar of 8 EiB": start + _tar_header(b"cat/x.png", b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7),
        "tar that ends before its file": start + _tar_header(b"cat/x.png", b"00000077777") + FILE,
    }
    too_large = {
        "zip64 without its sizes": _patched(good_zip, {CENTRAL: (20, b"\xff" * 8)}),
        "zip bomb": lying,
        "zip bomb that hides": zipped(GOOD | {".hidden/zeros": zeros}),
        "tar.gz bomb": gzip.compress(tarred([*GOOD.items(), ("cat/zeros.bmp", zeros)])),
        "gzip bomb": gzip.compress(tarred([("cat/zeros.bmp", zeros)])),
        "zip of an image bomb": zipped(GOOD | {"cat/bomb.png": png_bomb()}),
        "tar of a header bomb": gzip.compress(
            _tar_header(b"x", b"%011o" % len(zeros), b"x") + zeros + bytes(1024), compresslevel=1
        ),
        "zip of thousands of empty files": zipped({f"cat/{index}.png": b"" for index in range(5000)}),
        "zip of thousands of folders": zipped({f"cat/{index}/": b"" for index in range(MAX_FILES + 1)}),
        "tar of thousands of folders": _folders(MAX_FILES + 1),
    }
    return {name: (file, 422) for name, file in unusable.items()} | {
        name: (file, 413) for name, file in too_large.items()
    }
