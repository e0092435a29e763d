"""Request bodies: read under limits, taken apart. Nothing is fetched, nothing is trusted but the bytes."""

import asyncio
import binascii
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from starlette.requests import ClientDisconnect, Request

from service.http.forms import Part, read_form, too_many_images
from service.http.inflight import Share
from service.http.problems import Problem, invalid
from service.settings import Settings

BODY, IS_WHOLE = "saucier.body", "is_whole"  # ASGI extension of `connections`: says if all of the body has arrived
UNCOUNTED_BYTES = 16_384  # of a body that is too small to matter
INLINE_FORM_BYTES = 262_144  # more than these could hold up other requests: an odd form of 1,000 parts takes 15 ms
DRAIN_SECONDS = 5
_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,70})"|([^;\s"]{1,70}))', re.IGNORECASE)
_DATA_URL = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE | re.ASCII)
_WHITESPACE = b" \t\r\n"  # of base64 in lines


def header(request: Request, name: bytes) -> str:
    """Return the value of a header, several joined with commas; empty if there is none.

    Args:
        request: the request.
        name: in lower case.
    """
    return b", ".join([value for found, value in request.scope["headers"] if found == name]).decode("latin-1")


def media_type(request: Request) -> str:
    """Return the media type of the request without parameters, in lower case; empty if there is none."""
    return header(request, b"content-type").partition(";")[0].strip().lower()


def unsupported(request: Request, expected: str) -> Problem:
    """Return the 415 of a route that takes `expected`."""
    found = media_type(request) or "none"
    return Problem(415, f"expected the media type {expected}, got {found}")


async def read_body(request: Request, settings: Settings) -> bytes:
    """Return the body, read under the limits on bytes and seconds.

    Raises:
        Problem: 413, before more than the limit is held; 408 if it does not arrive in time; 400 if it breaks off; 415
            if it is compressed; 503 if the bodies of others leave no room.
    """
    if (encoding := header(request, b"content-encoding").lower() or "identity") != "identity":
        expected = f"expected a body without Content-Encoding, got {encoding[:80]!r}: send it uncompressed"
        raise Problem(415, expected, headers={"Accept-Encoding": "identity"})
    limit = settings.max_upload_bytes
    declared = header(request, b"content-length")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_many_bytes(settings)
    is_whole: Callable[[], bool] | None = request.scope.get("extensions", {}).get(BODY, {}).get(IS_WHOLE)
    try:
        if is_whole is not None and is_whole():  # a limit on the time takes more time than to read a small body
            body = await _receive(request, limit)
        else:
            async with asyncio.timeout(settings.upload_timeout_seconds):
                body = await _receive(request, limit)
    except TimeoutError:
        request.state.is_read = True  # as much as will ever be
        raise Problem(
            408, f"the body did not arrive within {settings.upload_timeout_seconds:g} seconds", headers=_CLOSE
        ) from None
    except ClientDisconnect:
        request.state.is_read = True
        raise Problem(400, "the body broke off", headers=_CLOSE) from None
    if body is None:
        raise _too_many_bytes(settings)
    request.state.is_read = True
    return body


async def _receive(request: Request, limit: int) -> bytes | None:
    """Return the body; None as soon as it has more than `limit` bytes.

    Raises:
        ClientDisconnect: the client went away before the end.
        Problem: 503, the bodies of others leave no room.
    """
    share: Share | None = getattr(request.state, "share", None)
    chunks: list[bytes] = []
    size, is_over = 0, False
    while not is_over:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            return None
        if share is not None and size > UNCOUNTED_BYTES:
            share.add_bytes(size - share.num_bytes)
        chunks.append(chunk)
        is_over = not message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


_CLOSE = {"Connection": "close"}


def _too_many_bytes(settings: Settings) -> Problem:
    return Problem(413, f"expected a body of at most {settings.max_upload_mb:g} MB", headers=_CLOSE, reason="bytes")


async def discard_rest(request: Request) -> None:
    """Throw away what still comes, for a moment: a client that sends hears a refusal only if somebody reads on."""
    is_read = getattr(request.state, "is_read", False) or request.method in ("GET", "HEAD", "DELETE")
    if is_read or header(request, b"expect").lower() == "100-continue":
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


async def read_multipart(request: Request, settings: Settings, executor: Executor | None = None) -> list[Part]:
    """Return the parts of a multipart/form-data body, in order; a large one is parsed in the executor.

    Raises:
        Problem: 400 malformed, 413 too many parts; and see `read_body`.
    """
    found = _BOUNDARY.search(header(request, b"content-type"))
    if found is None:
        raise Problem(400, "expected a boundary in the content type multipart/form-data")
    boundary = (found[1] or found[2]).encode("latin-1")
    body = await read_body(request, settings)
    if len(body) <= INLINE_FORM_BYTES:
        return read_form(body, boundary, settings)
    return await asyncio.get_running_loop().run_in_executor(executor, read_form, body, boundary, settings)


async def read_images(request: Request, settings: Settings, executor: Executor | None = None) -> list[bytes]:
    """Return the files of the images of a `/predict` request, in order; they are not decoded yet.

    Raises:
        Problem: 415 another media type, 422 no images or an item that cannot be one, 413 too many; and see `read_body`.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        files = []
        for part in await read_multipart(request, settings, executor):
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
        data = _DATA_URL.sub("", item, count=1).encode("ascii").translate(None, _WHITESPACE)
        return binascii.a2b_base64(data, strict_mode=True)
    except ValueError:
        expected = "expected base64, or a data URL such as data:image/png;base64,..."
        raise invalid(f"images[{index}]", f"{expected}, got {item[:40]!r}") from None
