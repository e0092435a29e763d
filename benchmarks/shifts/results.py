"""What a run has found so far, on disk: JSON lines that a second run continues, and the tables made of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from benchmarks.shifts.methods import HINDSIGHT, Landscape
from benchmarks.shifts.sources import family_of
from training.documents import Frozen, first_error


class Settings(Frozen):
    """What is measured. A folder of results belongs to one of these, but methods may be added to it."""

    base_set: str
    base_digest: str
    n: tuple[int, ...] = Field(description="numbers of labelled pictures, ascending")
    seed: int = Field(description="the first")
    seeds: int = Field(description="how many draws")
    shifts: tuple[str, ...]
    methods: tuple[str, ...]
    n_test: int
    data: dict[str, str] = Field(description="digests of the pictures")

    @property
    def draws(self) -> range:
        """The seeds of the draws."""
        return range(self.seed, self.seed + self.seeds)


class Found(Frozen):
    """What one method found on one draw."""

    accuracy: float = Field(description="on the unseen pictures")
    forwards: int = Field(description="pictures through the network for adapting")
    seconds: float = Field(description="of adapting")
    passes: int = Field(description="networks that an unseen picture goes through")
    coefficients: tuple[float, ...] | None = Field(description="of the soup, if it is one")


class Row(Frozen):
    """All methods on one draw."""

    shift: str
    n: int
    seed: int
    methods: dict[str, Found]

    @property
    def key(self) -> tuple[str, int, int]:
        """Which draw. Rows of the same one are of different methods."""
        return self.shift, self.n, self.seed

    def joined(self, other: "Row") -> "Row":
        """Return both rows' methods."""
        return self.model_copy(update={"methods": {**self.methods, **other.methods}})


class LandscapeRow(Frozen):
    """Accuracy of every soup of the table on one draw, with the most labelled pictures."""

    shift: str
    seed: int
    pool: tuple[float, ...]
    test: tuple[float, ...]

    @property
    def key(self) -> tuple[str, int]:
        """Which draw."""
        return self.shift, self.seed

    def joined(self, other: "LandscapeRow") -> "LandscapeRow":
        """Return the later one."""
        return other

    def landscape(self) -> Landscape:
        """Return it as methods read it."""
        return Landscape(family_of(self.shift), np.asarray(self.pool), np.asarray(self.test))


Record = TypeVar("Record", Row, LandscapeRow)


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

    def _keep(self, record: Record) -> None:
        before = self.records.get(record.key)
        self.records[record.key] = record if before is None else before.joined(record)


class Results:
    """The results of a run in its folder."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Open the folder, or begin one.

        Raises:
            ValueError: it holds the results of other settings (what differs is named), or something else.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        file = folder / "settings.json"
        if file.exists():
            _refuse_others(file, settings)
        elif (folder / "results.jsonl").exists():
            raise ValueError(f"{folder}: has results but no settings.json; choose another folder")
        else:
            file.write_text(json.dumps(_binding(settings), indent=2) + "\n", encoding="utf-8")
        self.rows = Lines(folder / "results.jsonl", Row)
        self.landscapes = Lines(folder / "landscapes.jsonl", LandscapeRow)

    def is_done(self, shift: str) -> bool:
        """Say whether nothing is left to do for a shift."""
        draws = self.settings.draws
        rows = not any(self.missing(shift, n, seed) for n in self.settings.n for seed in draws)
        return rows and all((shift, seed) in self.landscapes.records for seed in draws)

    def missing(self, shift: str, n: int, seed: int) -> list[str]:
        """Return the methods that a draw has yet to see."""
        row = self.rows.records.get((shift, n, seed))
        there = set() if row is None else set(row.methods)
        return [name for name in self.settings.methods if name not in there and name not in HINDSIGHT]

    def accuracies(self) -> "Accuracies":
        """Return the accuracies of all methods, the hindsight ones too; every shift must be done."""
        settings = self.settings
        shape = (len(settings.shifts), len(settings.n), settings.seeds)
        found = {method: np.full(shape, np.nan) for method in settings.methods}
        for i, shift in enumerate(settings.shifts):
            for k, seed in enumerate(settings.draws):
                for j, n in enumerate(settings.n):
                    row = self.rows.records[shift, n, seed].methods
                    for method in row.keys() & found:
                        found[method][i, j, k] = row[method].accuracy
        for k, seed in enumerate(settings.draws):
            landscapes = [self.landscapes.records[shift, seed].landscape() for shift in settings.shifts]
            for method in HINDSIGHT.keys() & found:
                for i, here in enumerate(landscapes):
                    accuracy = HINDSIGHT[method](here, landscapes)
                    found[method][i, :, k] = np.nan if accuracy is None else accuracy
        return {method: values for method, values in found.items() if not np.isnan(values).all()}

    def cost(self, method: str, n: int) -> Found | None:
        """Return one draw's record with forwards and seconds averaged over draws; None for a hindsight method."""
        rows = [row.methods[method] for row in self.rows.records.values() if row.n == n and method in row.methods]
        if not rows:
            return None
        forwards, seconds = (float(np.mean([getattr(row, field) for row in rows])) for field in ("forwards", "seconds"))
        return rows[0].model_copy(update={"forwards": round(forwards), "seconds": seconds})


Accuracies = dict[str, npt.NDArray[np.float64]]  # by method: (shifts, n, draws)


def contract(accuracies: Accuracies, settings: Settings) -> dict[str, Any]:
    """Return means over draws, and over shifts, as `--json` prints them."""
    shifts = {
        shift: {method: _by_n(values[i].mean(axis=1), settings.n) for method, values in accuracies.items()}
        for i, shift in enumerate(settings.shifts)
    }
    mean = {method: _by_n(values.mean(axis=(0, 2)), settings.n) for method, values in accuracies.items()}
    return {"mean": mean, "shifts": shifts, "seeds": settings.seeds, "n_test": settings.n_test}


def _by_n(values: Iterable[float], counts: tuple[int, ...]) -> dict[str, float]:
    return {str(n): round(float(value), 6) for n, value in zip(counts, values, strict=True)}


def _binding(settings: Settings) -> dict[str, Any]:
    """Return what may not differ within a folder, as JSON."""
    return settings.model_dump(mode="json", exclude={"methods"})


def _refuse_others(file: Path, settings: Settings) -> None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: expected the settings of a run in JSON: {error}") from None
    for name, wanted in _binding(settings).items():
        if not isinstance(found, dict) or found.get(name) != wanted:
            was = json.dumps(found.get(name)) if isinstance(found, dict) else "none"
            raise ValueError(
                f"{file}: has results with {name} {was}, got {json.dumps(wanted)}; choose another folder with --out, "
                "or remove this one"
            )
