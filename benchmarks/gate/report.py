"""Tables and a picture of what the draws say."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from adapt.plots import COLOURS
from adapt.score import P_THRESHOLD
from benchmarks.gate.draws import OLD, OURS, TESTS
from benchmarks.gate.measure import CRITERIA, EDGES, FALSE, LEVELS, MIXES, NOISE, Claim, Plan
from benchmarks.machine import commit, machine
from benchmarks.pictures import save_figure
from benchmarks.tables import table

MEANING = {
    "default": "default soup served",
    "earlier": "a soup found on as many other pictures served",
    "oracle": "the most accurate soup served",
    "tied": "all soups equally good",
    "clean, default": "clean pictures, default soup served",
    "clean, earlier": "clean pictures, a soup found earlier served",
}


def write_report(
    folder: Path, data: Mapping[str, Any], plan: Plan, checked: Sequence[Claim], command: str
) -> list[Path]:
    """Write `REPORT.md` and `gate.png` into the folder; older ones are replaced. Return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    report, picture = folder / "REPORT.md", folder / "gate.png"
    report.write_text(markdown(data, plan, checked, command), encoding="utf-8")
    plot(data, plan, picture)
    return [report, picture]


def markdown(data: Mapping[str, Any], plan: Plan, checked: Sequence[Claim], command: str) -> str:
    """Return the report."""
    heads = [f"n = {n}" for n in plan.n]
    level = data["level"]
    sections = [
        "# Is what an adaptation reports true, and how sure is its gate?",
        "",
        f"Command: `{command}`, at commit {commit()}.",
        "",
        f"Simulated on the logits of every soup on {data['pictures']} pictures of each of {len(plan.shifts)} "
        f"populations: {', '.join(plan.shifts)}. Labelled pictures are drawn with replacement, so what is true of a "
        "soup is known: its accuracy on all pictures. "
        f"{plan.draws} draws of each for every n with the default soup served, half as many with other soups. The "
        f"search is that of the grid; it promotes below p = {P_THRESHOLD:g}, and by McNemar's test, as it once did, "
        f"below {LEVELS[OLD]:g}. Percentages, and points of accuracy.",
        "",
        f"Machine: {machine()}",
        "",
        *(f"- {'Holds' if claim.holds else '**Does not hold**'}: {claim.name}." for claim in checked),
        "",
        "![level, power, bias and wrong labels](gate.png)",
        "",
        "## False promotions",
        "",
        "A promotion is false if the candidate is truly no more accurate than what it replaces. Percent of all draws; "
        "in brackets those that lose more than half a point. Where all soups are equally good every promotion is false "
        "and none does harm.",
        "",
    ]
    for scenario, cells in level.items():
        nulls = ", ".join(f"{100 * cells[n]['null']:.0f}" for n in plan.n)
        sections += [
            f"**{MEANING[scenario].capitalize()}** ({cells[plan.n[0]]['draws']} draws for each n; the candidate is no "
            f"better in {nulls} % of them)",
            "",
            *table(["test", *heads], [[test, *(_false(cells[n]["tests"][test]) for n in plan.n)] for test in TESTS]),
            "",
        ]
    lower, gains = zip(
        *((level["default"][n]["promoted_with_lower_accuracy"], level["default"][n]["their_gain"]) for n in plan.n),
        strict=True,
    )
    sections += [
        "## Power",
        "",
        "Default soup served. Promoted candidates, percent, by their true gain; ours / McNemar's.",
        "",
        *table(["true gain, points", *heads], _power(data, plan)),
        "",
        "Mean true gain served, points (the candidates' mean gain in the last row):",
        "",
        *table(
            ["test", *heads],
            [
                *(
                    [test, *(_points(level["default"][n]["tests"][test]["served_gain"]) for n in plan.n)]
                    for test in TESTS
                ),
                ["all promoted", *(_points(level["default"][n]["gain"]) for n in plan.n)],
            ],
        ),
        "",
        "Promoted although the reported accuracy is lower, percent of draws: "
        f"{', '.join(f'{100 * share:.1f}' for share in lower)}; their mean true gain: "
        f"{', '.join('none' if gain is None else _points(gain, signed=True) for gain in gains)}.",
        "",
        "## Bias of the reported accuracy",
        "",
        "Points above the truth, with one standard error; the naive accuracy is that of the candidate on the very "
        "pictures that chose it. The last row is how often the 95 % interval holds the true gain.",
        "",
        *table(["", *heads], _bias(data, plan)),
        "",
        "## Labels needed",
        "",
        "Labelled pictures at which four adaptations in five are promoted, interpolated, and the median of what is "
        "named after n pictures.",
        "",
        *table(["shift", "gain", "true", *(f"after {n}" for n in plan.n)], _labels(data, plan)),
        "",
        "## Criterion",
        "",
        "Mean true accuracy of the soup with the best value; in brackets the difference to tempCE, +- its error.",
        "",
        *table(["criterion", *heads], _criteria(data, plan)),
        "",
        "## Classes",
        "",
        "True accuracy over all classes alike of the candidate, the accuracy reported, and false promotions in "
        "percent, where the labelled pictures' classes are even, where some are 20 times as frequent as others, and "
        "where half of them are missing. `weighted`: every class that occurs counts alike in choosing and reporting.",
        "",
        *table(["classes", "n", "weighted", "true", "reported", "promoted", "false"], _classes(data)),
        "",
        "## Wrong labels",
        "",
        "Share of labels replaced by another class at random: true accuracy of the candidate, promotions, false ones.",
        "",
        *table(["wrong", "n", "served", "true", "reported", "promoted", "false", "gain served"], _noise(data)),
        "",
    ]
    return "\n".join(sections)


def _false(rates: Mapping[str, float]) -> str:
    return f"{100 * rates['false']:.1f} ({100 * rates['harmful']:.1f})"


def _points(value: float, *, signed: bool = False) -> str:
    return f"{100 * value:{'+' if signed else ''}.2f}"


def _spans() -> list[tuple[float | None, str]]:
    names = [f"up to {100 * EDGES[0]:g}"]
    names += [f"{100 * low:g} to {100 * high:g}" for low, high in pairwise(EDGES)]
    return list(zip((None, *EDGES), [*names, f"over {100 * EDGES[-1]:g}"], strict=True))


def _power(data: Mapping[str, Any], plan: Plan) -> list[list[str]]:
    rows = []
    for low, name in _spans():
        cells = []
        for n in plan.n:
            found = [cell for cell in data["power"][n] if cell["from"] == low]
            cells.append(f"{100 * found[0][OURS]:.0f} / {100 * found[0][OLD]:.0f}" if found else "")
        rows.append([name, *cells])
    return rows


def _bias(data: Mapping[str, Any], plan: Plan) -> list[list[str]]:
    cells = [data["bias"][n] for n in plan.n]
    return [
        [name, *(f"{_points(cell[key], signed=True)} +- {_points(cell[key + '_error'])}" for cell in cells)]
        for name, key in (("reported", "reported"), ("naive", "naive"))
    ] + [["interval holds the truth, %", *(f"{100 * cell['coverage']:.1f}" for cell in cells)]]


def _labels(data: Mapping[str, Any], plan: Plan) -> list[list[str]]:
    return [
        [
            row["shift"],
            _points(row["gain"]),
            f"{row['true']:.0f}",
            *(f"{row['estimates'][n]:.0f}" if row["estimates"][n] < float("inf") else "none" for n in plan.n),
        ]
        for row in data["labels"]
    ]


def _criteria(data: Mapping[str, Any], plan: Plan) -> list[list[str]]:
    def cell(found: Mapping[str, float]) -> str:
        difference = f"{_points(found['difference'], signed=True)} +- {_points(found['error'])}"
        return f"{_points(found['accuracy'])} ({difference})"

    return [[name, *(cell(data["criteria"][n][name]) for n in plan.n)] for name in CRITERIA]


def _classes(data: Mapping[str, Any]) -> list[list[str]]:
    rows = sorted(data["classes"], key=lambda row: (MIXES.index(row["mix"]), row["n"], row["balance"]))
    return [
        [
            row["mix"],
            str(row["n"]),
            "yes" if row["balance"] else "no",
            *_cells(row, "truth", "reported", "promoted", "false"),
        ]
        for row in rows
    ]


def _noise(data: Mapping[str, Any]) -> list[list[str]]:
    rows = sorted(data["noise"], key=lambda row: (row["scenario"], row["n"], row["share"]))
    return [
        [
            f"{100 * row['share']:.0f} %",
            str(row["n"]),
            row["scenario"],
            *_cells(row, "truth", "reported", "promoted", "false"),
            _points(row["served_gain"], signed=True),
        ]
        for row in rows
    ]


def _cells(row: Mapping[str, float], *keys: str) -> list[str]:
    return [f"{100 * row[key]:.1f}" for key in keys]


def plot(data: Mapping[str, Any], plan: Plan, path: Path) -> None:
    """Draw false promotions, power, bias and what wrong labels do."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late: slow
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    (level, power), (bias, noise) = figure.subplots(2, 2)
    for number, (scenario, cells) in enumerate(data["level"].items()):
        for test, style in ((OURS, "-o"), (OLD, ":x")):
            rates = [100 * cells[n]["tests"][test]["false"] for n in plan.n]
            label = scenario if test == OURS else "_"
            level.plot(plan.n, rates, style, color=COLOURS[number], markersize=4, label=label)
    level.axhline(100 * FALSE, color="black", linewidth=0.8)
    level.set(title="False promotions (dotted: McNemar's test)", ylabel="percent of draws", ylim=(0, None))
    shown = [(low, name) for low, name in _spans()]
    for number, n in enumerate(plan.n):
        cells = {cell["from"]: cell for cell in data["power"][n] if cell["draws"] >= 10}
        places = [place for place, (low, _) in enumerate(shown) if low in cells]
        for test, style in ((OURS, "-o"), (OLD, ":x")):
            rates = [100 * cells[shown[place][0]][test] for place in places]
            label = f"n = {n}" if test == OURS else "_"
            power.plot(places, rates, style, color=COLOURS[number], markersize=4, label=label)
    power.set_xticks(range(len(shown)), [name for _, name in shown])
    power.set(title="Power (dotted: McNemar's test)", xlabel="true gain of the candidate, points", ylabel="promoted, %")
    for number, (key, name) in enumerate((("reported", "reported"), ("naive", "on the pictures that chose"))):
        cells = [data["bias"][n] for n in plan.n]
        bias.errorbar(
            plan.n,
            [100 * cell[key] for cell in cells],
            yerr=[200 * cell[f"{key}_error"] for cell in cells],
            color=COLOURS[number],
            marker="o",
            markersize=4,
            label=name,
        )
    bias.axhspan(-0.5, 0.5, color="black", alpha=0.08, linewidth=0)
    bias.set(title="Bias of the candidate's accuracy, two standard errors", ylabel="points above the truth")
    for number, n in enumerate(sorted({row["n"] for row in data["noise"]})):
        rows = {row["share"]: row for row in data["noise"] if row["n"] == n and row["scenario"] == "default"}
        shares = [100 * share for share in NOISE]
        gain = [100 * rows[share]["gain"] for share in NOISE]
        served = [100 * rows[share]["served_gain"] for share in NOISE]
        noise.plot(shares, gain, "--", color=COLOURS[number], marker="o", markersize=4, label=f"candidate, n = {n}")
        noise.plot(shares, served, "-", color=COLOURS[number], marker="o", markersize=4, label=f"served, n = {n}")
    noise.axhline(0, color="black", linewidth=0.8)
    noise.set(title="Wrong labels, default soup served", xlabel="wrong labels, %", ylabel="true gain, points")
    for axes in (level, bias):
        axes.set_xscale("log")
        axes.set_xticks(plan.n, [str(n) for n in plan.n])
        axes.minorticks_off()
        axes.set_xlabel("labelled pictures")
    for axes in (level, power, bias, noise):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    save_figure(figure, path, dpi=110)
