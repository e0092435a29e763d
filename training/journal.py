"""The finished pieces of a long computation on disk, so that an interrupted one goes on where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1


class Journal:
    """Pieces by key, appended to a file of JSON lines as they are done; in memory only if there is no file.

    The first line says what is computed. A last line that a killed process did not finish is dropped.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Open the journal, or begin one.

        Args:
            path: the file; null keeps nothing.
            settings: everything that the pieces depend on, as JSON.

        Raises:
            ValueError: the file is no journal, or one of another computation (what differs is named).
        """
        self._pieces: dict[str, list[int]] = {}
        self._path = path
        if path is None:
            return
        wanted = json.loads(json.dumps({"format_version": FORMAT_VERSION, **settings}))
        if path.exists() and (lines := _whole_lines(path)):
            self._read(path, lines, wanted)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(wanted) + "\n", encoding="utf-8")

    def _read(self, path: Path, lines: list[str], wanted: Mapping[str, Any]) -> None:
        try:
            found, *pieces = (json.loads(line) for line in lines)
            if found != wanted:
                raise ValueError(_difference(found, wanted))
            self._pieces = {piece["key"]: [int(value) for value in piece["values"]] for piece in pieces}
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: expected the state of an evaluation in JSON lines: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}; choose another folder for the state, or remove it") from None

    def get(self, key: str) -> list[int] | None:
        """Return a finished piece, null if there is none."""
        return self._pieces.get(key)

    def put(self, key: str, values: list[int]) -> None:
        """Add a finished piece; once this returns, a killed process has not lost it."""
        self._pieces[key] = values
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "values": values}) + "\n")


def _whole_lines(path: Path) -> list[str]:
    """Return the finished lines and cut off an unfinished one."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    try:
        return whole.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected the state of an evaluation in JSON lines: {error}") from None


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    changes = [f"{name} {found.get(name)!r} instead of {wanted.get(name)!r}" for name in names]
    return f"holds the state of another evaluation, with {changes[0] if changes else 'other settings'}"
