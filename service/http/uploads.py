"""Request bodies: read under limits, taken apart, decoded. Nothing is fetched, nothing is trusted but the bytes.

BentoML's and Starlette's own form parsing is not used: it buffers without a limit on bytes, and answers odd parts and
more than a thousand files with a 500.
"""

import asyncio
import binascii
import json
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect, Request

from service.http.inflight import Share
from service.http.problems import Problem, invalid
from service.settings import Settings

MAX_OTHER_PARTS = 16  # parts besides images
MAX_PART_HEADERS = 8192  # bytes
UNCOUNTED_BYTES = 16_384  # of a body that is too small to matter
DRAIN_SECONDS = 5
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^;\s"]{1,70}))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*name="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_BARE_PARAMETER = re.compile(r";\s*name=([^;\s\"]+)", re.IGNORECASE)


class Part(NamedTuple):
    """One part of a multipart body."""

    name: str
    data: bytes


def media_type(request: Request) -> str:
    """Return the media type of the request without parameters, in lower case; empty if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def unsupported(request: Request, expected: str) -> Problem:
    """Return the 415 of a route that takes `expected`."""
    found = media_type(request) or "none"
    return Problem(415, f"expected the media type {expected}, got {found}")


async def read_body(request: Request, settings: Settings) -> bytes:
    """Return the body, read under the limits on bytes and seconds.

    Raises:
        Problem: 413, before more than the limit is held; 408 if it does not arrive in time; 400 if it breaks off; 503
            if the bodies of others leave no room.
    """
    limit = settings.max_upload_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_many_bytes(settings)
    share: Share | None = getattr(request.state, "share", None)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.upload_timeout_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    break
                if share is not None and size > UNCOUNTED_BYTES:
                    share.add_bytes(size - share.num_bytes)
                chunks.append(chunk)
    except TimeoutError:
        request.state.is_read = True  # as much as will ever be
        raise Problem(
            408, f"the body did not arrive within {settings.upload_timeout_seconds:g} seconds", headers=_CLOSE
        ) from None
    except ClientDisconnect:
        request.state.is_read = True
        raise Problem(400, "the body broke off", headers=_CLOSE) from None
    if size > limit:
        raise _too_many_bytes(settings)
    request.state.is_read = True
    return b"".join(chunks)


_CLOSE = {"Connection": "close"}


def _too_many_bytes(settings: Settings) -> Problem:
    return Problem(413, f"expected a body of at most {settings.max_upload_mb:g} MB", headers=_CLOSE, reason="bytes")


async def discard_rest(request: Request) -> None:
    """Throw away what still comes, for a moment: a client that sends hears a refusal only if somebody reads on."""
    is_read = getattr(request.state, "is_read", False) or request.method in ("GET", "HEAD", "DELETE")
    if is_read or request.headers.get("expect", "").lower() == "100-continue":
        return
    deadline = time.monotonic() + DRAIN_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(request.receive(), left)
        except TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


async def read_json(request: Request, settings: Settings) -> dict[str, Any]:
    """Return the JSON object that is the body.

    Raises:
        Problem: 415 another media type, 400 not JSON, 422 not an object; and see `read_body`.
    """
    if media_type(request) != "application/json":
        raise unsupported(request, "application/json")
    body = parse_json(await read_body(request, settings), "body")
    if not isinstance(body, dict):
        raise invalid("body", f"expected a JSON object, got {_json_type(body)}")
    return body


def parse_json(data: bytes, field: str) -> Any:
    """Return what the JSON text says.

    Raises:
        Problem: 400 naming the field.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise invalid(field, f"expected JSON: {reason}", status=400) from None


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


async def read_multipart(request: Request, settings: Settings) -> list[Part]:
    """Return the parts of a multipart/form-data body, in order.

    Raises:
        Problem: 400 malformed, 413 too many parts; and see `read_body`.
    """
    found = _BOUNDARY.search(request.headers.get("content-type", ""))
    if found is None:
        raise Problem(400, "expected a boundary in the content type multipart/form-data")
    boundary = (found[1] or found[2]).encode("latin-1")
    body = await read_body(request, settings)
    parts: list[Part] = []
    for part in _split(body, boundary):
        parts.append(part)
        if len(parts) > settings.max_images + MAX_OTHER_PARTS:
            raise too_many_images(settings)
    return parts


def too_many_images(settings: Settings) -> Problem:
    """Return the 413 of a request with too many images."""
    return Problem(413, f"expected at most {settings.max_images} images", reason="count")


def _split(body: bytes, boundary: bytes) -> Iterator[Part]:
    """Take a multipart body apart (RFC 2046 section 5.1.1).

    Raises:
        Problem: 400, not well-formed.
    """
    delimiter = b"--" + boundary
    start = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if start == 1:
        raise Problem(400, "multipart body: its boundary does not occur in it")
    start += len(delimiter)
    while not body.startswith(b"--", start):
        head = body.find(b"\r\n\r\n", start, start + MAX_PART_HEADERS)
        end = body.find(b"\r\n" + delimiter, max(head + 2, start))
        if head < 0 or end < 0 or not body[start:head].lstrip(b" \t").startswith(b"\r\n"):
            raise Problem(400, "multipart body: it is malformed or breaks off")
        yield Part(_part_name(body[start:head]), body[head + 4 : end])
        start = end + 2 + len(delimiter)


def _part_name(headers: bytes) -> str:
    for line in headers.decode("utf-8", errors="replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition" and (
            found := _PARAMETER.search(value) or _BARE_PARAMETER.search(value)
        ):
            return found[1]
    raise Problem(400, "multipart body: a part has no name")


async def read_images(request: Request, settings: Settings) -> list[bytes]:
    """Return the files of the images of a `/predict` request, in order; they are not decoded yet.

    Raises:
        Problem: 415 another media type, 422 no images or an item that cannot be one, 413 too many; and see `read_body`.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        files = []
        for part in await read_multipart(request, settings):
            if part.name != "images":
                raise invalid(part.name, "expected only parts named images")
            files.append(part.data)
    elif kind == "application/json":
        files = _images_of_json(await read_json(request, settings))
    elif kind.startswith("image/"):
        body = await read_body(request, settings)
        files = [body] if body else []
    else:
        raise unsupported(request, "multipart/form-data, image/* or application/json")
    if not files:
        raise invalid("images", "expected at least one image")
    if len(files) > settings.max_images:
        raise too_many_images(settings)
    return files


def _images_of_json(body: dict[str, Any]) -> list[bytes]:
    if unknown := sorted(body.keys() - {"images"}):
        raise invalid(unknown[0], "expected only the field images")
    images = body.get("images")
    if not isinstance(images, list):
        raise invalid("images", "expected an array of base64 strings")
    return [_base64(item, index) for index, item in enumerate(images)]


def _base64(item: object, index: int) -> bytes:
    if not isinstance(item, str):
        raise invalid(f"images[{index}]", f"expected a base64 string, got {_json_type(item)}")
    try:
        return binascii.a2b_base64(item.encode("ascii"), strict_mode=True)
    except ValueError:
        raise invalid(f"images[{index}]", "expected base64") from None
