"""The results of a search, for people and programs: the job object, the report file, a table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from adapt.documents.soup import BnMode, Outcome, Soup, write_soup
from adapt.evidence.scores import TEMPERATURES, temp_ce
from adapt.rungs.pool import Pool
from adapt.search.search import Search
from training.documents import Frozen

MADE = {
    "head": "a last layer fitted to labelled images",
    "frequencies": "biases with the class frequencies of the images",
    "early": "first layers trained on labelled images",
    "site": "all weights trained on labelled images",
}
NUM_SHOWN = 5  # best candidates in the table and the plot


class CandidateReport(Frozen):
    """One soup of a search, on all support images."""

    coefficients: tuple[float, ...]
    accuracy: float = Field(description="plain: too high for the chosen one, which was picked on these images")
    temp_ce: float | None = Field(description="cross-entropy at its own best temperature; null if not usable")
    temperature: float
    recalibrated: bool = Field(default=False, description="with channel statistics of the images")


class UnseenAccuracy(Frozen):
    """Accuracy on images that had no part in the search."""

    n: int
    current: float
    candidate: float
    ingredients: dict[str, float]


class Report(Frozen):
    """`report.json`: one search, enough to draw it again."""

    base_set: str
    base_digest: str
    ingredient_names: tuple[str, ...]
    current: dict[str, float]
    current_bn_mode: BnMode
    outcome: Outcome
    duplicates: int = Field(description="exact repeats among the support images that were left out")
    candidates: tuple[CandidateReport, ...] = Field(description="all soups evaluated; the first is the current one")
    test: UnseenAccuracy | None = None


def make_report(search: Search, current: Soup, *, duplicates: int = 0, test: UnseenAccuracy | None = None) -> Report:
    """Return the report of a search."""
    soup = search.soup
    return Report(
        base_set=soup.base_set,
        base_digest=soup.base_digest,
        ingredient_names=tuple(soup.coefficients),
        current=current.coefficients,
        current_bn_mode=current.bn_mode,
        outcome=search.outcome,
        duplicates=duplicates,
        candidates=_candidates(search.pool),
        test=test,
    )


def _candidates(pool: Pool) -> tuple[CandidateReport, ...]:
    values, temperatures = temp_ce(pool.scores.losses)
    rows = zip(
        pool.coefficients.tolist(),
        pool.scores.accuracy.tolist(),
        values.tolist(),
        temperatures.tolist(),
        pool.recalibrated.tolist(),
        strict=True,
    )
    return tuple(
        CandidateReport(
            coefficients=tuple(row),
            accuracy=accuracy,
            temp_ce=value if value < float("inf") else None,
            temperature=TEMPERATURES[temperature],
            recalibrated=recalibrated,
        )
        for row, accuracy, value, temperature, recalibrated in rows
    )


def read_report(path: Path) -> Report:
    """Read `report.json`.

    Raises:
        ValueError: missing or malformed, in one line that names the file.
    """
    try:
        return Report.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected the report of a search, {' '.join(str(error).split())[:200]}") from None


def job_object(outcome: Outcome) -> dict[str, Any]:
    """Return the job object of `POST /adapt`; what only a service knows (job, deployment, versions) is null."""
    found = outcome.model_dump(mode="json")
    service: dict[str, Any] = dict.fromkeys(("job", "deployment", "version", "previous_version", "candidate_version"))
    return service | found


def write(folder: Path, report: Report, soup: Soup) -> None:
    """Write `report.json` and `soup.json` into a folder.

    Raises:
        FileExistsError: it already holds a report.
    """
    path = folder / "report.json"
    if path.exists():
        raise FileExistsError(f"{path}: already exists; choose another --out or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    write_soup(folder / "soup.json", soup)


class _Row(NamedTuple):
    name: str
    coefficients: Mapping[str, float]
    accuracy: float
    temp_ce: float | None


def table(report: Report) -> str:
    """Return a search as text: the decision, the held-out accuracies, the best soups and the ingredients."""
    outcome = report.outcome
    lines = [f"{outcome.state}: {outcome.reason}", ""]
    classes = len(outcome.support.per_class)
    lines.append(
        f"support    {outcome.support.n} images of {classes} classes"
        + (f", {report.duplicates} repeats left out" if report.duplicates else "")
        + (f"; {outcome.support.unlabelled} unlabelled" if outcome.support.unlabelled else "")
    )
    search = outcome.search
    lines.append(
        f"search     {search.strategy} {search.grid}: {search.candidates} soups,"
        f" {search.image_forwards} image-forwards, {search.seconds:.1f} s"
    )
    if (patch := outcome.patch) is not None:
        parts = [f"channel statistics of {patch.recalibrated} images"] if patch.recalibrated else []
        parts += [MADE.get(name, f"tensors of {name}") for name in patch.rungs if name != "statistics"]
        lines.append(f"candidate  replaces mixed weights by {' and '.join(parts)}")
    if (accuracy := outcome.accuracy) is not None:
        low, high = accuracy.interval
        lines.append(
            f"held out   current {accuracy.current:.3f}, candidate {accuracy.candidate:.3f}, gain "
            f"{accuracy.candidate - accuracy.current:+.3f} (95 % interval {low:+.3f} to {high:+.3f}), "
            f"p = {accuracy.p_value:.3g}"
        )
    lines += [f"not tried  {name}: {why}" for name, why in outcome.not_tried.items()]
    lines += _class_lines(outcome)
    if report.test is not None:
        test = report.test
        lines.append(f"test       current {test.current:.4f}, candidate {test.candidate:.4f} on {test.n} unseen images")
    return "\n".join([*lines, "", *_rows(report)])


def _class_lines(outcome: Outcome) -> list[str]:
    """Return the class frequencies that are farthest from what is expected, and that there are others."""
    if outcome.classes is None:
        return []
    found = sorted(outcome.classes, key=lambda each: abs(each.estimated - each.expected), reverse=True)
    shown = [f"{each.name} {each.estimated:.3f} ({each.low:.3f} to {each.high:.3f})" for each in found[:NUM_SHOWN]]
    others = f", {len(found) - NUM_SHOWN} more" if len(found) > NUM_SHOWN else ""
    return [f"classes    {', '.join(shown)}{others}; expected {found[0].expected:.3f} of each"]


def _rows(report: Report) -> list[str]:
    names = report.ingredient_names
    tested = {} if report.test is None else report.test.ingredients
    width = max(9, *map(len, names))
    head = f"{'on the support images':<26}" + "".join(f"{name:>{width + 1}}" for name in names)
    lines = [f"{head}   accuracy   tempCE" + ("     test" if tested else "")]
    for row in _shown(report):
        cells = "".join(f"{row.coefficients[name]:>{width + 1}.2f}" for name in names)
        value = "      -" if row.temp_ce is None else f"{row.temp_ce:7.4f}"
        test = f"   {tested[row.name]:.4f}" if row.name in tested else ""
        lines.append(f"{row.name:<26}{cells}   {row.accuracy:8.3f}  {value}{test}")
    return lines


def _shown(report: Report) -> list[_Row]:
    """Return the current soup, the best candidates by tempCE, and every ingredient alone."""
    names = report.ingredient_names

    def row(name: str, candidate: CandidateReport) -> _Row:
        coefficients = dict(zip(names, candidate.coefficients, strict=True))
        return _Row(name, coefficients, candidate.accuracy, candidate.temp_ce)

    rows = [row("current", report.candidates[0])]
    rows += [
        row(f"best soup {rank}" + (", recalibrated" if candidate.recalibrated else ""), candidate)
        for rank, candidate in enumerate(best(report), start=1)
    ]
    for position, name in enumerate(names):
        alone = tuple(float(position == other) for other in range(len(names)))
        plain = [candidate for candidate in report.candidates if not candidate.recalibrated]
        rows += [row(name, candidate) for candidate in plain if candidate.coefficients == alone][:1]
    return rows


def best(report: Report, count: int = NUM_SHOWN) -> list[CandidateReport]:
    """Return the candidates of least tempCE, the best first."""
    usable = [candidate for candidate in report.candidates if candidate.temp_ce is not None]
    return sorted(usable, key=lambda candidate: candidate.temp_ce or 0.0)[:count]
