"""Image files: `refused()` must be, with a status; `odd()` are strange to look at, yet images that viewers show."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

SIDE = 16
SIGNATURE = b"\x89PNG\r\n\x1a\n"
LAUGHS = b"".join(b'<!ENTITY l%d "%s">' % (level, b"&l%d;" % (level - 1) * 10) for level in range(1, 10))
# What Pillow can write, and nobody may send.
OTHER_FORMATS = ("AVIF", "DDS", "EPS", "ICO", "JPEG2000", "PCX", "PDF", "PPM", "QOI", "SGI", "TGA", "XBM")


def picture(seed: int = 0, side: int = SIDE, mode: str = "RGB") -> Image.Image:
    """Return noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, *, length: int | None = None, crc: int = 0) -> bytes:
    """Return a chunk of a PNG file, whose length and checksum may lie."""
    size = len(data) if length is None else length
    return struct.pack(">I", size) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ crc)


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """Return the first chunk of a PNG file."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


END = chunk(b"IEND", b"")


def png(*chunks: bytes) -> bytes:
    """Return a PNG file of these chunks and an end."""
    return SIGNATURE + b"".join(chunks) + END


def png_bomb(side: int = 20_000) -> bytes:
    """Return a PNG of side x side pixels in a few hundred bytes; its pixel data is not even complete."""
    return png(header(side, side), chunk(b"IDAT", zlib.compress(b"\x00" * 10_000)))


def with_chunks(*chunks: bytes) -> bytes:
    """Return a good PNG with more chunks after its header."""
    good = saved(picture())
    start = len(SIGNATURE) + len(header(1, 1))
    return good[:start] + b"".join(chunks) + good[start:]


def animated(kind: str) -> bytes:
    """Return an image of two frames."""
    return saved(picture(1), kind, save_all=True, append_images=[picture(2)])


def patched(file: bytes, at: int, data: bytes) -> bytes:
    """Return a file with some bytes replaced."""
    return file[:at] + data + file[at + len(data) :]


def jpeg_of(width: int, height: int) -> bytes:
    """Return a JPEG that says it has this size."""
    good = saved(picture(side=64), "JPEG")
    return patched(good, good.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def bmp_of(width: int, height: int, *, compression: int = 0) -> bytes:
    """Return a BMP that says it has this size."""
    good = patched(saved(picture(), "BMP"), 18, struct.pack("<ii", width, height))
    return patched(good, 30, struct.pack("<I", compression))


def gif_of(width: int, height: int) -> bytes:
    """Return a GIF whose screen has this size."""
    return patched(saved(picture(mode="P"), "GIF"), 6, struct.pack("<HH", width, height))


def tiff(entries: list[tuple[int, int, int, int]], *, following: int = 0, tail: bytes = b"") -> bytes:
    """Return a TIFF file of one directory: (tag, type, count, value) each; `following` is where the next one stands."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\x00" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following) + tail


def grey_tiff(values: "np.ndarray[Any, Any]", *, white_is_zero: bool = False) -> bytes:
    """Return an uncompressed TIFF of SIDE x SIDE whole numbers of any type; Pillow does not write most of them."""
    size, is_signed = values.dtype.itemsize, values.dtype.kind == "i"
    entries = [(256, 4, 1, SIDE), (257, 4, 1, SIDE), (258, 3, 1, 8 * size), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 0 if white_is_zero else 1), (273, 4, 1, 8 + 2 + 10 * 12 + 4), (277, 3, 1, 1)]
    entries += [(278, 4, 1, SIDE), (279, 4, 1, SIDE**2 * size), (339, 3, 1, 2 if is_signed else 1)]
    return tiff(entries, tail=values.astype(values.dtype.newbyteorder("<")).tobytes())


def ill_typed(orientation: int) -> bytes:
    """Return an EXIF block of an orientation and a resolution that is a text."""
    return tiff([(0x0112, 3, 1, orientation), (0x011A, 2, 4, int.from_bytes(b"low\x00", "little"))])


def tiff_of(width: int, height: int, **options: Any) -> bytes:
    """Return an uncompressed grey TIFF that says it has this size."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height & 0xFFFFFFFF)]
    return tiff(entries, **options)


def webp_of(width: int, height: int) -> bytes:
    """Return a WebP whose canvas has this size."""
    canvas = b"\x10\x00\x00\x00" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inner = saved(picture(), "WEBP", lossless=True)[12:]
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def with_exif(value: bytes) -> bytes:
    """Return a JPEG whose EXIF block holds anything."""
    block = b"Exif\x00\x00" + value
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(block) + 2) + block + saved(picture(), "JPEG")[2:]


def turned(orientation: int) -> bytes:
    """Return a JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved(picture(), "JPEG", exif=exif)


@cache
def refused() -> dict[str, tuple[bytes, int]]:
    """Return files by what they are, with the status of their refusal."""
    good, jpeg, webp = saved(picture()), saved(picture(side=64), "JPEG"), saved(picture(), "WEBP", lossless=True)
    bmp, gif, plain_tiff = saved(picture(), "BMP"), saved(picture(mode="P"), "GIF"), saved(picture(), "TIFF")
    undecodable = {
        "nothing": b"",
        "a text file": b"this is not an image",
        "zeros": bytes(3000),
        "noise": np.random.default_rng(3).bytes(3000),
        "HTML": b"<!doctype html><script>alert(1)</script>",
        "JSON": b'{"images": []}',
        "a program": b"MZ\x90\x00" + bytes(200) + b"PE\x00\x00",
        "a pickle": b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        "a script": b"#!/bin/sh\nexit 1\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>',
        "SVG that reads files": b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg><text>&x;</text></svg>',
        "SVG entity bomb": b"<!DOCTYPE svg [" + LAUGHS + b"]><svg><text>&l9;</text></svg>",
        "a zip": _zip(good),
        "a gzip": zlib.compress(good, wbits=31),
        "PNG named JPEG": b"\xff\xd8\xff" + good,
        "truncated JPEG": jpeg[:600],
        "JPEG that ends in its header": jpeg[:30],
        "JPEG of two bytes": jpeg[:2],
        "JPEG without tables": jpeg.replace(b"\xff\xdb", b"\xff\xfe").replace(b"\xff\xc4", b"\xff\xfe"),
        "JPEG without height": jpeg_of(64, 0),
        "JPEG without width": jpeg_of(0, 64),
        "truncated PNG": good[:200],
        "PNG signature alone": SIGNATURE,
        "PNG without pixels": png(header(SIDE, SIDE)),
        "PNG of width 0": png(header(0, SIDE), chunk(b"IDAT", zlib.compress(b""))),
        "PNG of height 0": png(header(SIDE, 0), chunk(b"IDAT", zlib.compress(b""))),
        "PNG of depth 3": png(header(SIDE, SIDE, 3), chunk(b"IDAT", zlib.compress(bytes(900)))),
        "PNG with a wrong checksum": good.replace(
            header(SIDE, SIDE), chunk(b"IHDR", header(SIDE, SIDE)[8:-4], crc=1), 1
        ),
        "PNG whose pixels are noise": png(header(SIDE, SIDE), chunk(b"IDAT", b"\x78\x9c" + bytes(99))),
        "PNG chunk of 4 GiB": png(header(SIDE, SIDE), chunk(b"IDAT", b"x" * 99, length=2**32 - 1)),
        "PNG chunk of 2 GiB": with_chunks(chunk(b"tEXt", b"a\x00b", length=2**31 - 1)),
        "PNG text bomb": with_chunks(chunk(b"zTXt", b"a\x00\x00" + _zeros(2**24))),
        "PNG of many text bombs": with_chunks(*[chunk(b"zTXt", b"%d\x00\x00" % n + _zeros(2**20)) for n in range(99)]),
        "PNG profile bomb": with_chunks(chunk(b"iCCP", b"a\x00\x00" + _zeros(2**24))),
        "PNG text of 5 MiB": with_chunks(chunk(b"zTXt", b"a\x00\x00" + _zeros(5 * 2**20))),
        "animated PNG": animated("PNG"),
        "truncated WebP": webp[:60],
        "WebP that lies about its length": patched(webp, 4, b"\xff\xff\xff\x7f"),
        "WebP without chunks": b"RIFF\x04\x00\x00\x00WEBP",
        "animated WebP": animated("WEBP"),
        "truncated BMP": bmp[:100],
        "BMP header alone": bmp[:54],
        "BMP of width 0": bmp_of(0, SIDE),
        "BMP packed by a method that is none": bmp_of(SIDE, SIDE, compression=77),
        "BMP whose pixels start at 4 GiB": patched(bmp, 10, b"\xff\xff\xff\xff"),
        "truncated GIF": gif[:40],
        "GIF header alone": gif[:13],
        "animated GIF": animated("GIF"),
        "truncated TIFF": plain_tiff[:200],
        "TIFF without entries": tiff([]),
        "TIFF whose directory is nowhere": b"II*\x00\xff\xff\xff\x7f",
        "TIFF of 4 billion strips": tiff([(256, 4, 1, 16), (257, 4, 1, 16), (273, 4, 2**32 - 1, 8), (262, 3, 1, 1)]),
        "TIFF of size 0": tiff_of(0, 0),
        "TIFF of grey below zero": grey_tiff(np.linspace(-1, 32767, SIDE**2).astype(np.int16)),
        "TIFF of grey above 65535": grey_tiff(np.linspace(0, 65536, SIDE**2).astype(np.int32)),
        "TIFF of grey above 2 billion": grey_tiff(np.linspace(0, 2**32 - 1, SIDE**2).astype(np.uint32)),
        "TIFF of floats": saved(picture(mode="L").convert("F"), "TIFF"),
        "TIFF of many pages": animated("TIFF"),
        "photo that ends in its EXIF": with_exif(b"II*\x00" + b"\xff" * 99)[:80],
    }
    undecodable |= {f"{kind}, which is not allowed": _other(kind) for kind in OTHER_FORMATS}
    too_large = {
        "PNG bomb": png_bomb(),
        "PNG of 2 billion pixels a side": png_bomb(2**31 - 1),
        "PNG bomb of one bit": png(header(2**16, 2**16, 1, 0), chunk(b"IDAT", _zeros(2**20))),
        "PNG of one line too long": png(header(60_000_000, 1), chunk(b"IDAT", _zeros(2**20))),
        "JPEG of 65500 pixels a side": jpeg_of(65500, 65500),
        "BMP of 2 billion pixels a side": bmp_of(2**31 - 1, 2**31 - 1),
        "BMP bomb of runs": bmp_of(30_000, 30_000, compression=1),
        "GIF of 65535 pixels a side": gif_of(65535, 65535),
        "TIFF of 4 billion pixels a side": tiff_of(2**32 - 1, 2**32 - 1),
        "WebP of 16384 pixels a side": webp_of(16384, 16384),
    }
    return {name: (file, 422) for name, file in undecodable.items()} | {
        name: (file, 413) for name, file in too_large.items()
    }


@cache
def odd() -> dict[str, bytes]:
    """Return files that are images in spite of what they look like."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "<script>alert(1)</script>" * 1000)
    jpeg, good = saved(picture(), "JPEG"), saved(picture())
    wide = np.random.default_rng(5).integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
    found: dict[str, Callable[[], bytes]] = {
        "1 bit": lambda: saved(picture(mode="1")),
        "palette": lambda: saved(picture(mode="P")),
        "palette of a see-through colour": lambda: saved(picture(mode="P"), transparency=3),
        "grey": lambda: saved(picture(mode="L")),
        "grey, see-through": lambda: saved(picture(mode="LA")),
        "see-through": lambda: saved(picture(mode="RGBA")),
        "16-bit grey": lambda: saved(Image.fromarray(wide)),
        "16-bit TIFF": lambda: saved(Image.fromarray(wide), "TIFF"),
        "16-bit colour": lambda: png(header(2, 1, 16, 2), chunk(b"IDAT", zlib.compress(bytes(13)))),
        "CMYK JPEG": lambda: saved(picture(mode="CMYK"), "JPEG"),
        "CMYK TIFF": lambda: saved(picture(mode="CMYK"), "TIFF"),
        "YCbCr TIFF": lambda: saved(picture(mode="YCbCr"), "TIFF"),
        "packed TIFF": lambda: saved(picture(), "TIFF", compression="tiff_lzw"),
        "LAB TIFF": lambda: saved(Image.new("LAB", (SIDE, SIDE), (128, 100, 150)), "TIFF"),
        "progressive JPEG": lambda: saved(picture(), "JPEG", progressive=True),
        "multi-picture JPEG": lambda: animated("MPO"),
        "JPEG whose index of pictures is noise": lambda: animated("MPO").replace(b"MPF\x00II", b"MPF\x00??"),
        "JPEG that ends in its second picture": lambda: animated("MPO")[:-300],
        "JPEG on its side with an ill-typed tag": lambda: with_exif(ill_typed(6)),
        "PNG on its side with an ill-typed tag": lambda: with_chunks(chunk(b"eXIf", ill_typed(8))),
        "WebP on its side with an ill-typed tag": lambda: saved(picture(), "WEBP", exif=ill_typed(5)),
        "PNG with 1.5 MiB of text": lambda: with_chunks(chunk(b"zTXt", b"a\x00\x00" + _zeros(3 * 2**19))),
        "PNG with 3.5 MiB of international text": lambda: with_chunks(
            chunk(b"iTXt", b"a\x00\x01\x00\x00\x00" + _zeros(7 * 2**19))
        ),
        "signed 16-bit TIFF": lambda: grey_tiff(np.linspace(0, 32767, SIDE**2).astype(np.int16)),
        "signed 32-bit TIFF": lambda: grey_tiff(np.linspace(0, 65535, SIDE**2).astype(np.int32)),
        "16-bit TIFF where white is zero": lambda: grey_tiff(wide.ravel(), white_is_zero=True),
        "still GIF": lambda: saved(picture(mode="P"), "GIF"),
        "lossless WebP": lambda: saved(picture(mode="RGBA"), "WEBP", lossless=True),
        "one pixel": lambda: saved(picture(side=1)),
        "one long line": lambda: saved(Image.new("RGB", (40_000, 1))),
        "one high column": lambda: saved(Image.new("L", (1, 40_000))),
        "upside down": lambda: turned(8),
        "turned by a number that is none": lambda: turned(77),
        "EXIF of noise": lambda: with_exif(np.random.default_rng(6).bytes(5000)),
        "EXIF whose directories are a ring": lambda: with_exif(tiff([(34665, 4, 1, 8)], following=8)),
        "profile of noise": lambda: saved(picture(), icc_profile=np.random.default_rng(7).bytes(5000)),
        "long comments": lambda: saved(picture(), pnginfo=text),
        "JPEG comment of 64 KiB": lambda: saved(picture(), "JPEG", comment=b"%n" * 32_000),
        "JPEG with an archive behind it": lambda: jpeg + _zip(good),
        "PNG with a page behind it": lambda: good + b"<html><script>alert(1)</script></html>",
        "PNG with unknown chunks": lambda: with_chunks(*[chunk(b"teSt", bytes(99))] * 999),
        "GIF whose screen has no size": lambda: gif_of(0, 0),
        "TIFF whose directories are a ring": lambda: tiff_of(SIDE, SIDE, following=8, tail=bytes(SIDE**2)),
        "top-down BMP": lambda: bmp_of(SIDE, -SIDE),
    }
    return {name: make() for name, make in found.items()}


def _other(kind: str) -> bytes:
    if kind == "XBM":
        return saved(picture(mode="1"), kind)
    return saved(picture(side=32), kind)


@cache
def _zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def _zip(file: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cat/a.png", file)
    return buffer.getvalue()
