"""The report of what a run found: tables, and the pictures of `figures`."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.machine import commit, machine
from benchmarks.shifts.figures import plot_accuracy, plot_composition, plot_fronts, plot_landscapes
from benchmarks.shifts.gains import gains
from benchmarks.shifts.results import COSTLY, Accuracies, Found, Results, Settings, contract, spread
from benchmarks.shifts.sets import FOLDER_SETS
from benchmarks.shifts.sources import family_of
from benchmarks.tables import table
from training.cli import Result
from training.manifest import NORMS

logger = logging.getLogger(__name__)

SEARCHES = ("ladder", "soup_auto")

Floats = npt.NDArray[np.float64]


def reported(results: Results) -> Result:
    """Write the report of the results into their folder and return it."""
    accuracies = results.accuracies()
    if missing := [name for name in results.settings.methods if name not in accuracies]:
        logger.info("left out, as not measured, or as all shifts are of one family: %s", ", ".join(missing))
    written = write_report(results.folder, results, accuracies)
    logger.info("wrote %s", ", ".join(str(path) for path in written))
    return Result(contract(accuracies, results.settings), markdown(results, accuracies))


def write_report(folder: Path, results: Results, accuracies: Accuracies) -> list[Path]:
    """Write `REPORT.md`, `results.json` and pictures into the folder; older ones are replaced. Return their paths."""
    written = [folder / "REPORT.md", folder / "accuracy.png", folder / "results.json"]
    written[0].write_text(markdown(results, accuracies), encoding="utf-8")
    plot_accuracy(accuracies, results.settings, written[1])
    written[2].write_text(json.dumps(contract(accuracies, results.settings), indent=1) + "\n", encoding="utf-8")
    if plot_composition(results, shown_n(results.settings), folder / "composition.png"):
        written.append(folder / "composition.png")
    if plot_landscapes(results, folder / "landscapes.png"):
        written.append(folder / "landscapes.png")
    if results.attacked.records:
        plot_fronts(results, shown_n(results.settings), folder / "fronts.png")
        written.append(folder / "fronts.png")
    return written


def shown_n(settings: Settings) -> int:
    """Return the number of labelled pictures for which details are shown: 100, or the nearest below."""
    return max((n for n in settings.n if n <= 100), default=min(settings.n))


def markdown(results: Results, accuracies: Accuracies) -> str:
    """Return the report."""
    settings = results.settings
    heads, shown = [f"n = {n}" for n in settings.n], shown_n(settings)
    return "\n".join(
        [
            f"# {settings.base_set} on {len(settings.shifts)} shifts",
            "",
            *_description(settings, results.commits()),
            "",
            "## Mean accuracy in percent",
            "",
            *table(["method", *heads], [[name, *_cells(values)] for name, values in accuracies.items()]),
            "",
            *_costly(accuracies, settings),
            *gains(results, accuracies, heads, shown),
            *_searches(results, heads),
            "## Cost of adapting: pictures through the network, and seconds",
            "",
            "Of what was looked up, the seconds are those that the same forwards took when the table was made. A "
            "backward pass counts as two forwards. `passes` is the number of networks that a picture goes through "
            "afterwards.",
            "",
            *table(["method", "passes", *heads], _costs(results)),
            "",
            *_soups(results, accuracies, shown),
            *_robustness(results, shown),
            f"## Accuracy in percent by family of shifts, n = {shown}",
            "",
            *_by_group(accuracies, settings, shown),
            "",
            f"## Accuracy in percent by shift, n = {shown}",
            "",
            *table(["shift", *accuracies], _by_shift(accuracies, settings, shown)),
            "",
            "![accuracy against the number of labelled pictures](accuracy.png)",
            "",
            "![coefficients of the chosen soups](composition.png)",
            "",
            *(
                []
                if results.soups() is None
                else ["![what each soup gains over the best ingredient](landscapes.png)", ""]
            ),
        ]
    )


def command(settings: Settings) -> str:
    """Return what was asked for, with every default spelled out."""
    options: dict[str, object] = {
        "n": _spelled(settings.n),
        "seeds": settings.seeds,
        "seed": settings.seed,
        "n-test": settings.n_test,
        "costly-n": _spelled(settings.costly_n) or "none",
        "costly-seeds": settings.costly_seeds,
        "shifts": ",".join(settings.shifts),
        "methods": ",".join(settings.methods),
    }
    if any(name in FOLDER_SETS for name in settings.shifts):
        options["folders"] = "FOLDER"
    spelled = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"python -m benchmarks.shifts bases/{settings.base_set} {spelled}"


def _description(settings: Settings, commits: Sequence[str]) -> list[str]:
    return [
        f"Command: `{command(settings)}`. Measured at commit {', '.join(commits)}; reported at {commit()}.",
        "",
        f"Base set `{settings.base_set}` ({settings.base_digest[:12]}), {settings.seeds} draws from seed "
        f"{settings.seed} on, {settings.n_test} unseen pictures of each shift and draw, none of them labelled in any "
        "shift. All methods see the same draws.",
        "After +- is one standard error over draws. These share their clean pictures: it tells how far luck in drawing "
        "goes, not other data.",
        "",
        "`ladder` is what the search finds: coefficients and all rungs. `ladder_served` is what its gate lets through. "
        "`ladder_quick` trains no weights. `ladder_stream` is also given up to 200 other pictures of the shift without "
        "labels, `ladder_stream_1000` up to 1,000, which are neither labelled nor unseen; "
        "`ladder_single` climbs with one ingredient at a time. `soup_auto` searches coefficients alone, `soup_grid` "
        "all of the grid; `soup_single` is one soup for all shifts, the best on other families; `soup_oracle` is the "
        "best on the unseen pictures themselves. `picked` is the best ingredient on the labelled pictures; with `_bn` "
        "its BatchNorm statistics are estimated on them (a network without BatchNorm stays as it is), with `_head` its "
        "last layer is fitted again. `finetune` trains all weights, `surgical` one part of the network. `tent` answers "
        "200 unseen pictures at a time, with their own statistics, and so do `eata`, `sar` and `roid`: what these "
        "rivals learn from without labels is the unseen pictures, all of them in the end, and not those of "
        "`ladder_stream`. `fixed_` is an ingredient as it is. `ensemble` runs all ingredients.",
        "",
        f"Machine: {machine()}",
    ]


def _cells(values: Floats) -> list[str]:
    return [_cell(mean, error) for mean, error in zip(*spread(values), strict=True)]


def _cell(mean: float, error: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{100 * mean:.2f}" + ("" if np.isnan(error) else f" +- {100 * error:.2f}")


def _spelled(counts: Sequence[int]) -> str:
    return ",".join(map(str, counts))


def _mean(values: Floats) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")


def _searches(results: Results, heads: list[str]) -> list[str]:
    """Return what searches say of themselves, beside what they turn out to be."""
    names = [name for name in SEARCHES if name in results.settings.methods]
    rows = []
    for name in names:
        parts: dict[str, list[str]] = {
            "bias": [],
            "bias, less luck": [],
            "promoted": [],
            "channel statistics": [],
            "last layer": [],
            "first layers": [],
        }
        for n in results.settings.n:
            records = results.records(name, n)
            found = list(records.values())
            for part, values in zip(parts, _bias(results, records), strict=False):
                parts[part].append(_signed_cell(values))
            for part, taken in (
                ("promoted", [bool(f.is_promoted) for f in found]),
                ("channel statistics", [bool(f.recalibrated) for f in found]),
                ("last layer", [bool(f.has_head) for f in found]),
                ("first layers", [bool(f.has_early) for f in found]),
            ):
                parts[part].append(f"{100 * np.mean(taken):.0f} %" if found else "-")
        if name != "ladder":
            parts = {part: cells for part, cells in parts.items() if part in ("bias", "bias, less luck", "promoted")}
        rows += [[f"{name}: {part}", *cells] for part, cells in parts.items()]
    if not rows:
        return []
    return [
        "## What the search says of itself, and which rungs it took",
        "",
        "The bias is the cross-fitted accuracy that a search reports less the candidate's on unseen pictures, in "
        "points, with its standard error over draws. Few pictures may be easy or hard ones: `less luck` takes off what "
        "the default soup, which nobody chose, is better on the labelled pictures than on the unseen ones.",
        "",
        *table(["search", *heads], rows),
        "",
    ]


def _bias(results: Results, records: Mapping[tuple[str, int], Found]) -> tuple[Floats, Floats]:
    """Return by how much the reported accuracy is above the true one, for each draw; and less the draw's luck."""
    gaps: dict[int, list[tuple[float, float]]] = {}
    for (shift, seed), found in records.items():
        if found.cross_fitted is not None and found.current is not None:
            default = results.landscapes.records[shift, seed].test[0]  # the table's first soup
            gap = found.cross_fitted - found.accuracy
            gaps.setdefault(seed, []).append((gap, gap - (found.current - default)))
    means = np.asarray([np.mean(rows, axis=0) for rows in gaps.values()]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _signed_cell(values: Floats) -> str:
    if not len(values):
        return "-"
    error = f" +- {100 * values.std(ddof=1) / np.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{100 * values.mean():+.2f}{error}"


def _costs(results: Results) -> list[list[str]]:
    rows = []
    for method in results.settings.methods:
        costs = [results.cost(method, n) for n in results.settings.n]
        cells = ["-" if cost is None else f"{cost.forwards:,} in {cost.seconds:.2f} s" for cost in costs]
        if passes := [cost.passes for cost in costs if cost is not None]:
            rows.append([method, str(max(passes)), *cells])
    return rows


def _soups(results: Results, accuracies: Accuracies, shown: int) -> list[str]:
    """Return the soup of each shift and the next best two, beside one soup for all."""
    if "soup_grid" not in accuracies or "soup_single" not in accuracies:
        return []
    settings = results.settings
    records = results.records("soup_grid", shown)
    rows = []
    for i, shift in enumerate(settings.shifts):
        some = [record for (name, _), record in records.items() if name == shift]
        tops = np.mean([[record.accuracy, *record.runners_up] for record in some], axis=0)
        fixed = max(float(_mean(accuracies[name][i])) for name in accuracies if name.startswith("fixed_"))
        single = accuracies["soup_single"][i, settings.n.index(shown)].mean()
        rows.append([shift, *(f"{100 * value:.1f}" for value in (fixed, single, *tops))])
    numbers = np.asarray([[float(cell) for cell in row[1:]] for row in rows])
    rows.append(["mean", *(f"{value:.2f}" for value in numbers.mean(axis=0))])
    head = ["shift", "best ingredient, in hindsight", "single soup", "own soup", "second", "third"]
    return [f"## Soups of the grid in percent, n = {shown}", "", *table(head[: len(rows[0])], rows), ""]


def _robustness(results: Results, shown: int) -> list[str]:
    """Return what is left of the chosen soups' accuracy under attack, if that was measured."""
    rows = [row for row in results.attacked.records.values() if row.shift in results.settings.shifts]
    if not rows:
        return []
    norms = [norm for norm in NORMS if all(norm in row.accuracy for row in rows)]  # those of the base set's recipe
    columns = ("clean", *norms, "union")
    methods = list(dict.fromkeys(row.method for row in rows))
    means = {
        name: [_mean(np.asarray([row.accuracy[column] for row in rows if row.method == name])) for column in columns]
        for name in methods
    }
    return [
        f"## Accuracy in percent under attack, n = {shown}",
        "",
        f"Soups chosen on the first draw, attacked on {rows[0].n} unseen pictures of each shift (APGD-{rows[0].steps}, "
        "one restart: upper bounds, that of L1 a generous one); means over the shifts. An ingredient is as it is.",
        "",
        *table(
            ["method", "not attacked", *norms, "union"],
            [[name, *(f"{100 * value:.1f}" for value in values)] for name, values in means.items()],
        ),
        "",
        "![accuracy under attack against accuracy, by shift](fronts.png)",
        "",
    ]


def _costly(accuracies: Accuracies, settings: Settings) -> list[str]:
    if not (costly := [name for name in COSTLY if name in accuracies]):
        return []
    draws = "the first draw" if settings.costly_seeds == 1 else f"the first {settings.costly_seeds} draws"
    return [
        f"{', '.join(costly)} train: they are run at n = {_spelled(settings.costly_n)} and on {draws} only; a dash "
        "stands for what was not run. Their hyper-parameters, and those of the other rivals, are the best on shifts of "
        "other families: `tuned.json`.",
        "",
    ]


def _by_group(accuracies: Accuracies, settings: Settings, shown: int) -> list[str]:
    j = settings.n.index(shown)
    groups = np.asarray([family_of(shift) for shift in settings.shifts])
    names = list(dict.fromkeys(groups.tolist()))
    rows = []
    for method, values in accuracies.items():
        means = [_mean(values[groups == name, j]) for name in names]
        rows.append([method, *("-" if np.isnan(mean) else f"{100 * mean:.2f}" for mean in means)])
    return table(["method", *(f"{name} ({(groups == name).sum()})" for name in names)], rows)


def _by_shift(accuracies: Accuracies, settings: Settings, shown: int) -> list[list[str]]:
    j = settings.n.index(shown)
    return [
        [shift, *("-" if np.isnan(mean) else f"{100 * mean:.1f}" for mean in means)]
        for i, shift in enumerate(settings.shifts)
        for means in [[_mean(values[i, j]) for values in accuracies.values()]]
    ]
