"""Forms (multipart/form-data) taken apart.

BentoML's and Starlette's own form reading is not used: it buffers without a limit on bytes, and answers odd parts and
more than a thousand files with a 500. Their parser is, for every form that is written in an unusual way. It calls back
twelve times for each part, which takes up to seven times as long as cutting a usual form (benchmarks.serving --forms).
"""

import re
from typing import NamedTuple

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.http.problems import Problem
from service.settings import Settings

MAX_OTHER_PARTS = 16  # parts besides images
MAX_PART_HEADERS = 8192  # bytes
# The head of a part as browsers, curl and the libraries of most languages write it. Whatever could be read in two ways
# (escapes, a semicolon within quotes, a header twice) is left to the parser.
_USUAL_HEAD = re.compile(
    rb'Content-Disposition: form-data; name="([^"\\;\r\n]{1,200})"(?:; filename="[^"\\;\r\n]{0,1000}")?\r\n'
    rb"(?:Content-Type: [^\r\n]{1,200}\r\n)?\r\n",
    re.IGNORECASE,
)


class Part(NamedTuple):
    """One part of a multipart body."""

    name: str
    data: bytes


def read_form(body: bytes, boundary: bytes, settings: Settings) -> list[Part]:
    """Return the parts of a form, in order.

    Raises:
        Problem: 400 not well-formed, or a part without a name; 413 too many parts.
    """
    most = settings.max_images + MAX_OTHER_PARTS
    parts = _cut(body, boundary, most)
    if parts is None:
        parser = _Parser(boundary, most)
        parser.read(body)
        parts = parser.found
    if len(parts) > most:
        raise too_many_images(settings)
    return parts


def too_many_images(settings: Settings) -> Problem:
    """Return the 413 of a request with too many images."""
    return Problem(413, f"expected at most {settings.max_images} images", reason="count")


def _cut(body: bytes, boundary: bytes, most: int) -> list[Part] | None:
    """Return the parts, at most one more than `most`, of a form in which every part has the usual head; else None."""
    delimiter = b"\r\n--" + boundary
    if not body.startswith(delimiter[2:]):
        return None
    parts: list[Part] = []
    at = len(delimiter) - 2
    while body.startswith(b"\r\n", at) and len(parts) <= most:
        head = _USUAL_HEAD.match(body, at + 2)
        end = -1 if head is None else body.find(delimiter, head.end())
        if head is None or end < 0:
            return None
        parts.append(Part(head[1].decode("utf-8", errors="replace"), body[head.end() : end]))
        at = end + len(delimiter)
    return parts if len(parts) > most or body.startswith(b"--", at) else None


class _Enough(Exception):
    """There are too many parts already."""


class _Parser:
    """The parts of a multipart body, as its parser comes upon them."""

    def __init__(self, boundary: bytes, most: int) -> None:
        self.found: list[Part] = []
        self._most = most
        self._is_complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._take_field,
                "on_header_value": self._take_value,
                "on_header_end": self._end_header,
                "on_part_data": self._take_data,
                "on_part_end": self._end,
                "on_end": self._complete,
            },
            max_header_size=MAX_PART_HEADERS,
        )

    def read(self, body: bytes) -> None:
        """Take a whole body apart, or as much of it as has one part more than there may be.

        Raises:
            Problem: 400 not well-formed, or a part without a name.
        """
        try:
            self._parser.write(body)
        except _Enough:
            return
        except MultipartParseError as error:
            raise Problem(400, f"multipart body: it is malformed at byte {error.offset}") from None
        if not self._is_complete:
            raise Problem(400, "multipart body: it breaks off")

    def _begin(self) -> None:
        self._name: str | None = None
        self._data: list[bytes] = []
        self._header_bytes = 0
        self._field = self._value = b""

    def _take_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._header_bytes += len(self._field) + len(self._value)
        if self._header_bytes > MAX_PART_HEADERS:
            raise Problem(400, f"multipart body: expected at most {MAX_PART_HEADERS} bytes of headers in a part")
        if self._field.lower() == b"content-disposition":
            name = parse_options_header(self._value)[1].get(b"name")
            self._name = None if name is None else name.decode("utf-8", errors="replace")
        self._field = self._value = b""

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end(self) -> None:
        if self._name is None:
            raise Problem(400, "multipart body: a part has no name")
        self.found.append(Part(self._name, self._data[0] if len(self._data) == 1 else b"".join(self._data)))
        if len(self.found) > self._most:
            raise _Enough

    def _complete(self) -> None:
        self._is_complete = True
