"""Records on disk as JSON lines, each there once it is added: a second run goes on where a first one stopped."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import ValidationError

from training.documents import Frozen, first_error


class Keyed(Frozen):
    """A document about one thing: a later one about the same thing takes its place, or completes it."""

    @property
    def key(self) -> Hashable:
        """What it is about."""
        raise NotImplementedError

    def joined(self, later: Self) -> Self:
        """Return what is kept of this one and a later one of the same key: the later one."""
        return later


Record = TypeVar("Record", bound=Keyed)


class Lines(Generic[Record]):
    """Records in a file of JSON lines, each on disk once `add` returns."""

    def __init__(self, path: Path, model: type[Record]) -> None:
        """Read what is there; a last line that a killed process did not finish is dropped.

        Raises:
            ValueError: a line is no such record.
        """
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:
            path.write_text(whole + "\n" if whole else "", encoding="utf-8")
        self.records: dict[Any, Record] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = model.model_validate_json(line)
            except ValidationError as error:
                raise ValueError(f"{path}, line {number}: {first_error(error)}") from None
            self._keep(record)

    def add(self, record: Record) -> None:
        """Append a record."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")
        self._keep(record)

    def replace(self, records: Sequence[Record]) -> None:
        """Put these in the place of all there are."""
        partial = self._path.with_name(f".{self._path.name}")
        partial.write_text("".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8")
        partial.replace(self._path)
        self.records = {}
        for record in records:
            self._keep(record)

    def _keep(self, record: Record) -> None:
        before = self.records.get(record.key)
        self.records[record.key] = record if before is None else before.joined(record)
