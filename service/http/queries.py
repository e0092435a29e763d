"""Query parameters: known names only, values checked, a 400 that names the one at fault; and versions in paths."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

from starlette.datastructures import QueryParams
from starlette.requests import Request

from service.http.problems import invalid
from service.store.transactions import UnknownVersion
from training.nearest import meant

REMEMBERED_BYTES = 200  # of a query string
VERSION = r"^[1-9][0-9]{0,8}$"  # the database's integers end somewhere


def path_version(request: Request) -> int:
    """Return the soup version that a path names.

    Raises:
        UnknownVersion: it is no number that a version can have.
    """
    text: str = request.path_params["version"]
    if not re.fullmatch(VERSION, text):
        raise UnknownVersion(text[:80])
    return int(text)


Choice = TypeVar("Choice", bound=str)


@lru_cache(maxsize=256)  # most clients send the same one again and again
def _parsed(query: bytes, names: tuple[str, ...]) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for name, value in QueryParams(query).multi_items():
        if name not in names:
            raise invalid(name, f"unknown query parameter; expected {', '.join(names)}{meant(name, names)}", status=400)
        if name in values:
            raise invalid(name, "expected once in the query", status=400)
        values[name] = value
    return values


class Query:
    """The query parameters of a request to a route that takes `names`.

    Raises:
        Problem: 400, a name is unknown or given twice.
    """

    def __init__(self, request: Request, names: tuple[str, ...]) -> None:
        raw: bytes = request.scope["query_string"]
        self._values = (_parsed if len(raw) <= REMEMBERED_BYTES else _parsed.__wrapped__)(raw, names)

    def has(self, name: str) -> bool:
        """Say if a parameter was given."""
        return name in self._values

    def text(self, name: str, default: str) -> str:
        """Return a parameter as it is."""
        return self._values.get(name, default)

    def choice(self, name: str, choices: Sequence[Choice]) -> Choice:
        """Return one of the choices; the first is the default."""
        value = self._values.get(name, choices[0])
        for choice in choices:
            if value == choice:
                return choice
        raise invalid(
            name, f"expected one of {', '.join(choices)}, got {value[:80]!r}{meant(value, choices)}", status=400
        )

    def integer(self, name: str, default: int, *, low: int) -> int:
        """Return a whole number of at least `low`; absurdly large ones come back smaller, but large."""
        value = self._values.get(name)
        if value is None:
            return default
        digits = value.removeprefix("+")
        if not (digits.isascii() and digits.isdecimal()) or int(digits[:18]) < low:
            raise invalid(name, f"expected a whole number >= {low}, got {value[:80]!r}", status=400)
        return int(digits[:18])

    def limit(self, default: int, most: int) -> int:
        """Return how long a page of a list may be: the parameter `limit`; a larger number than `most` is clipped."""
        return min(self.integer("limit", default, low=1), most)

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """Return a number within [low, high]."""
        value = self._values.get(name)
        if value is None:
            return default
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise invalid(name, f"expected a number from {low:g} to {high:g}, got {value[:80]!r}", status=400)
        return number

    def moment(self, name: str) -> float | None:
        """Return a time as seconds since 1970, None if it was not given."""
        value = self._values.get(name)
        if value is None:
            return None
        with suppress(ValueError, OverflowError):
            time = datetime.fromisoformat(value)
            if time.tzinfo is not None:
                return time.timestamp()
        raise invalid(name, f"expected a time such as 2026-01-31T12:00:00Z, got {value[:80]!r}", status=400)
