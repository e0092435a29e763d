"""The id of a request: its own if it came with a usable one, else a new one; every answer and log line carries it."""

import os
import re

from starlette.types import Scope

HEADER = b"x-request-id"
_USABLE = re.compile(rb"[A-Za-z0-9._:=+/-]{1,128}").fullmatch  # nothing that could forge a line of a log or a header
_NUM_BYTES = 8


def request_id(scope: Scope) -> str:
    """Return the id of an HTTP request."""
    for name, value in scope["headers"]:
        if name == HEADER:
            return value.decode() if _USABLE(value) else _new_id()
    return _new_id()


def _new_id() -> str:
    return os.urandom(_NUM_BYTES).hex()
