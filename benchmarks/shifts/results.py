"""What a run has found so far, on disk: JSON lines that a second run continues, and the tables made of them."""

import base64
import copy
import json
from collections.abc import Collection
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from benchmarks.shifts.lines import Keyed, Lines
from benchmarks.shifts.methods import HINDSIGHT, Landscape
from benchmarks.shifts.rivals.registry import TRAINED
from benchmarks.shifts.sources import family_of
from training.documents import Frozen, first_error

COSTLY = TRAINED  # methods that are not run on every draw


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
    ingredients: tuple[str, ...] = Field(description="names, in the order of coefficients")
    costly_n: tuple[int, ...] = Field(description="numbers of labelled pictures for methods that train")
    costly_seeds: int = Field(description="how many draws these are given")

    @property
    def draws(self) -> range:
        """The seeds of the draws."""
        return range(self.seed, self.seed + self.seeds)

    def wants(self, method: str, n: int, seed: int) -> bool:
        """Say whether a method is to be run on a draw."""
        if method in HINDSIGHT:
            return False
        return method not in COSTLY or (n in self.costly_n and seed - self.seed < self.costly_seeds)


class Found(Frozen):
    """What one method found on one draw."""

    accuracy: float = Field(description="on the unseen pictures")
    forwards: int = Field(description="pictures through the network for adapting")
    seconds: float = Field(description="of adapting")
    cpu_seconds: float | None = Field(default=None, description="of adapting, CPU time; null in earlier results")
    passes: int = Field(description="networks that an unseen picture goes through")
    answering: float | None = Field(default=None, description="seconds that all unseen pictures took")
    coefficients: tuple[float, ...] | None = Field(description="of the soup, if it is one")
    cross_fitted: float | None = Field(default=None, description="accuracy as the search itself estimates it")
    current: float | None = Field(default=None, description="accuracy of the default soup on the labelled pictures")
    p_value: float | None = Field(default=None, description="as the search gives it")
    recalibrated: int | None = Field(default=None, description="pictures for channel statistics; null: no search")
    has_head: bool | None = Field(default=None, description="the last layer was fitted again; null: no search")
    has_early: bool | None = Field(default=None, description="first layers were trained; null: no search")
    is_promoted: bool | None = Field(default=None, description="the gate's decision; null: no search")
    unlabelled: int | None = Field(
        default=None, description="pictures without labels that a search was given; null: no search, or not kept"
    )
    runners_up: tuple[float, ...] = Field(default=(), description="accuracy of the second and third choice")
    hits: str | None = Field(default=None, description="which unseen pictures were right: bits, in base64")

    def right(self, n_test: int) -> npt.NDArray[np.bool_] | None:
        """Return which unseen pictures were answered right, (t,); None if that was not kept."""
        if self.hits is None:
            return None
        bits = np.frombuffer(base64.b64decode(self.hits), dtype=np.uint8)
        return np.unpackbits(bits, count=n_test).astype(np.bool_)


def packed(right: npt.NDArray[np.bool_]) -> str:
    """Return which pictures were right as `Found.hits`."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


class Row(Keyed):
    """All methods on one draw."""

    shift: str
    n: int
    seed: int
    methods: dict[str, Found]
    commit: str = Field(default="unknown", description="of the checkout; of several runs the last")

    @property
    def key(self) -> tuple[str, int, int]:
        """Which draw. Rows of the same one are of different methods."""
        return self.shift, self.n, self.seed

    def joined(self, later: "Row") -> "Row":
        """Return both rows' methods."""
        return self.model_copy(update={"methods": {**self.methods, **later.methods}, "commit": later.commit})


class LandscapeRow(Keyed):
    """What a draw of a shift is: its unseen pictures, and the accuracy of every soup of the table."""

    shift: str
    seed: int
    pool: tuple[float, ...] = Field(description="accuracy on all pictures that may be labelled")
    test: tuple[float, ...] = Field(description="accuracy on the unseen ones")
    pictures: tuple[int, ...] = Field(description="positions of the unseen pictures in their set")

    @property
    def key(self) -> tuple[str, int]:
        """Which draw."""
        return self.shift, self.seed

    def landscape(self) -> Landscape:
        """Return it as methods read it."""
        return Landscape(family_of(self.shift), np.asarray(self.pool), np.asarray(self.test))


class AttackedRow(Keyed):
    """One method's soup for a shift, chosen on its first draw, attacked on unseen pictures of the shift."""

    shift: str
    method: str
    n: int = Field(description="pictures")
    steps: int = Field(description="of APGD, one restart")
    accuracy: dict[str, float] = Field(description='"clean" (not attacked), each norm, and "union"')
    commit: str

    @property
    def key(self) -> tuple[str, str]:
        """Which soup."""
        return self.shift, self.method


Floats = npt.NDArray[np.float64]


class Results:
    """The results of a run in its folder."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Open the folder, or begin one.

        Raises:
            ValueError: it holds the results of other settings (what differs is named), or something else.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings = folder, settings
        file = folder / "settings.json"
        methods = settings.methods
        if file.exists():
            before = _read_settings(file, settings)
            methods = tuple(dict.fromkeys((*before, *methods)))
        elif (folder / "results.jsonl").exists():
            raise ValueError(f"{folder}: has results but no settings.json; choose another folder")
        file.write_text(settings.model_copy(update={"methods": methods}).model_dump_json(indent=2) + "\n")
        self.rows = Lines(folder / "results.jsonl", Row)
        self.landscapes = Lines(folder / "landscapes.jsonl", LandscapeRow)
        self.attacked = Lines(folder / "attacked.jsonl", AttackedRow)

    def keep_soups(self, coefficients: Floats) -> None:
        """Write down which soups (C, M) the landscapes are about, in their order."""
        (self.folder / "soups.json").write_text(json.dumps(coefficients.tolist()) + "\n")

    def soups(self) -> Floats | None:
        """Return the coefficients (C, M) of the soups of the landscapes; None if they were never written down."""
        file = self.folder / "soups.json"
        return np.asarray(json.loads(file.read_text()), dtype=np.float64) if file.exists() else None

    def is_done(self, shift: str, seed: int) -> bool:
        """Say whether nothing is left to do for a draw of a shift."""
        rows = not any(self.missing(shift, n, seed) for n in self.settings.n)
        return rows and (shift, seed) in self.landscapes.records

    def missing(self, shift: str, n: int, seed: int) -> list[str]:
        """Return the methods that a draw has yet to see."""
        row = self.rows.records.get((shift, n, seed))
        there = set() if row is None else set(row.methods)
        return [name for name in self.settings.methods if name not in there and self.settings.wants(name, n, seed)]

    def forget(self, methods: Collection[str]) -> None:
        """Drop what these methods found, so that they are run again."""
        rows = self.rows.records.values()
        self.rows.replace(
            [
                row.model_copy(update={"methods": {k: v for k, v in row.methods.items() if k not in methods}})
                for row in rows
            ]
        )

    def finished(self) -> Settings:
        """Return the settings of what can be reported: the draws with all shifts, or the shifts of the first draw.

        Raises:
            ValueError: not even that.
        """
        settings = self.settings
        seeds = 0
        while seeds < settings.seeds and all(self.is_done(shift, settings.seed + seeds) for shift in settings.shifts):
            seeds += 1
        if seeds:
            return settings.model_copy(update={"seeds": seeds})
        shifts = tuple(shift for shift in settings.shifts if self.is_done(shift, settings.seed))
        if not shifts:
            raise ValueError(f"{self.folder}: no shift is finished yet")
        return settings.model_copy(update={"seeds": 1, "shifts": shifts})

    def restricted(self) -> "Results":
        """Return the part that is finished."""
        part = copy.copy(self)
        part.settings = self.finished()
        return part

    def records(self, method: str, n: int) -> dict[tuple[str, int], Found]:
        """Return what a method found, by shift and seed."""
        settings = self.settings
        return {
            (shift, seed): row.methods[method]
            for shift, seed in product(settings.shifts, settings.draws)
            if (row := self.rows.records.get((shift, n, seed))) is not None and method in row.methods
        }

    def accuracies(self) -> "Accuracies":
        """Return the accuracies of all methods, the hindsight ones too; NaN where a costly one was not run."""
        settings = self.settings
        shape = (len(settings.shifts), len(settings.n), settings.seeds)
        found = {method: np.full(shape, np.nan) for method in settings.methods}
        for method, values in found.items():
            for j, n in enumerate(settings.n):
                for (shift, seed), record in self.records(method, n).items():
                    values[settings.shifts.index(shift), j, seed - settings.seed] = record.accuracy
        for k, seed in enumerate(settings.draws):
            landscapes = [self.landscapes.records[shift, seed].landscape() for shift in settings.shifts]
            for method in HINDSIGHT.keys() & found:
                for i, here in enumerate(landscapes):
                    accuracy = HINDSIGHT[method](here, landscapes)
                    found[method][i, :, k] = np.nan if accuracy is None else accuracy
        return {method: values for method, values in found.items() if not np.isnan(values).all()}

    def commits(self) -> list[str]:
        """Return the commits that results were measured at, in order."""
        settings = self.settings
        return list(
            dict.fromkeys(
                row.commit
                for (shift, _, seed), row in self.rows.records.items()
                if shift in settings.shifts and seed in settings.draws
            )
        )

    def cost(self, method: str, n: int) -> Found | None:
        """Return one draw's record with forwards and seconds averaged over draws; None where there is none."""
        rows = list(self.records(method, n).values())
        if not rows:
            return None
        forwards, seconds = (float(np.mean([getattr(row, field) for row in rows])) for field in ("forwards", "seconds"))
        return rows[0].model_copy(update={"forwards": round(forwards), "seconds": seconds})


Accuracies = dict[str, Floats]  # by method: (shifts, n, draws)


def spread(values: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard error over draws, each (n,), of accuracies (shifts, n, draws) averaged over shifts.

    NaN where nothing was measured; a draw counts if it has all shifts.
    """
    by_draw = values.mean(axis=0)
    counts = (~np.isnan(by_draw)).sum(axis=1)
    mean, error = np.full((2, len(by_draw)), np.nan)
    for j, count in enumerate(counts):
        there = by_draw[j][~np.isnan(by_draw[j])]
        if count:
            mean[j] = there.mean()
        if count > 1:
            error[j] = there.std(ddof=1) / np.sqrt(count)
    return mean, error


def contract(accuracies: Accuracies, settings: Settings) -> dict[str, Any]:
    """Return means over draws, and over shifts, as `--json` prints them; a number that was not measured is left out."""
    shifts = {
        shift: {method: _by_n(values[[i]], settings.n) for method, values in accuracies.items()}
        for i, shift in enumerate(settings.shifts)
    }
    mean = {method: _by_n(values, settings.n) for method, values in accuracies.items()}
    return {"mean": mean, "shifts": shifts, "seeds": settings.seeds, "n_test": settings.n_test}


def _by_n(values: Floats, counts: tuple[int, ...]) -> dict[str, float]:
    measured = {n: values[:, j][~np.isnan(values[:, j])] for j, n in enumerate(counts)}
    return {str(n): round(float(found.mean()), 6) for n, found in measured.items() if len(found)}


_FREE = {"methods", "costly_n", "costly_seeds"}  # may differ within a folder


def _read_settings(file: Path, settings: Settings) -> tuple[str, ...]:
    """Return the methods of a run that is gone on with. Raises ValueError if it had other settings."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: expected the settings of a run in JSON: {error}") from None
    for name, wanted in settings.model_dump(mode="json", exclude=_FREE).items():
        if not isinstance(found, dict) or found.get(name) != wanted:
            was = json.dumps(found.get(name)) if isinstance(found, dict) else "none"
            raise ValueError(
                f"{file}: has results with {name} {was}, got {json.dumps(wanted)}; choose another folder with --out, "
                "or remove this one"
            )
    return tuple(found.get("methods", ()))


def open_results(folder: Path) -> Results:
    """Return the results of a run with the settings that lie beside them.

    Raises:
        ValueError: no run.
    """
    file = folder / "settings.json"
    if not file.exists():
        raise ValueError(f"{folder}: expected a folder of results, found no settings.json")
    try:
        settings = Settings.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{file}: {first_error(error)}") from None
    return Results(folder, settings)
