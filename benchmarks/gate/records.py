"""Records of simulated adaptations: one line of JSON each, so that a run continues where an earlier one stopped.

The first line says what was drawn from.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Key(NamedTuple):
    """What was drawn."""

    part: str  # null, looks, real, continual
    case: str  # of the part: a case, a plan, a shift
    n: int  # labelled images
    turn: int  # number of the draw


class Origin(NamedTuple):
    """What draws depend on, besides the code."""

    base: str  # name of the base set
    seed: int


class Records:
    """Rows by key, kept in a file."""

    def __init__(self, path: Path, origin: Origin) -> None:
        """Read what is there; a last line that a killed process did not finish is dropped.

        Raises:
            ValueError: the file has draws of another origin, or no draws.
        """
        self._path, self._origin = path, origin
        self._rows: dict[Key, Row] = {}
        if not path.exists():
            return
        whole, end, torn = path.read_text(encoding="utf-8").rpartition("\n")
        if torn:
            path.write_text(whole + end, encoding="utf-8")
        try:
            first, *lines = whole.splitlines() or [write_origin(origin)]
            found = Origin(**json.loads(first))
            self._rows = dict(map(read_line, lines))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: expected draws of an earlier run ({error}): name another folder") from None
        if found != origin:
            raise ValueError(
                f"{path}: expected draws of {origin.base} with seed {origin.seed}, got some of {found.base} with seed "
                f"{found.seed}: name another folder"
            )

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Key, Row]]:
        """Yield keys and rows, in the order of the keys."""
        yield from sorted(self._rows.items())

    def add(self, found: Iterable[tuple[Key, Row]]) -> None:
        """Keep rows, in memory and in the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(write_origin(self._origin) + "\n")
            for key, row in found:
                self._rows[key] = row
                file.write(write_line(key, row) + "\n")

    def of(self, part: str) -> dict[tuple[str, int], list[Row]]:
        """Return the rows of a part by case and n, in the order of the draws."""
        found: dict[tuple[str, int], list[Row]] = defaultdict(list)
        for key, row in self:
            if key.part == part:
                found[key.case, key.n].append(row)
        return dict(found)


def write_origin(origin: Origin) -> str:
    """Return the first line of a file."""
    return json.dumps(origin._asdict())


def read_line(line: str) -> tuple[Key, Row]:
    """Return what a line of the file holds."""
    found = json.loads(line)
    return Key(*found["key"]), found["row"]


def write_line(key: Key, row: Row) -> str:
    """Return a line of the file."""
    return json.dumps({"key": list(key), "row": row})
