"""`draws.jsonl.xz`: the draws of the full run as a file of about a megabyte, which is committed beside the report.

The first line says what was drawn from. The others are lines of `Records`, in the order of their keys, with numbers of
four significant digits. A series of looks keeps whether bets on fresh images win, instead of what each image says.

A change of what a search finds makes these draws obsolete: remove the file, and draw again.
"""

import json
import lzma
from pathlib import Path
from typing import Any

from benchmarks.gate.nulls import Series
from benchmarks.gate.records import Key, Origin, Records, Row, read_line, write_line, write_origin
from training.files import replace_file

DIGITS = 4  # 130,000 draws stay below 1.5 MB
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 0}]


def write_draws(path: Path, records: Records, origin: Origin) -> None:
    """Write the records; the same records give the same bytes. An older file is replaced."""
    lines = [write_origin(origin), *(write_line(key, _shortened(key, row)) for key, row in records)]
    content = lzma.compress("".join(f"{line}\n" for line in lines).encode(), filters=FILTERS)
    replace_file(path, lambda partial: partial.write_bytes(content))


def read_draws(path: Path, origin: Origin) -> list[tuple[Key, Row]]:
    """Return the draws of a file; none where there is no such file, or where its draws are of another origin.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            is_ours = Origin(**json.loads(next(file))) == origin
            return [read_line(line) for line in file] if is_ours else []
    except (lzma.LZMAError, EOFError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected draws that --out wrote, got a damaged file ({error}): remove it") from None


def _shortened(key: Key, row: Row) -> Row:
    if key.part == "looks":
        row = Series.of(row, key.n).row()
    return {name: _rounded(value) for name, value in row.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return [_rounded(one) for one in value] if isinstance(value, list) else value
