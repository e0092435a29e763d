"""The report's tables of gains: ours against every other method, over all shifts and by family of shifts."""

from collections.abc import Sequence

from benchmarks.shifts.bootstrap import Difference, holm
from benchmarks.shifts.comparison import SUITE, Comparison
from benchmarks.shifts.results import Accuracies, Results, Settings
from benchmarks.shifts.rivals.registry import RIVALS
from benchmarks.tables import table

OURS = ("ladder", "soup_auto", "soup_grid")  # the first that was run is what the others are compared with
ENSEMBLES = ("ensemble", "ensemble_weighted")
TOLERATED, SIGNIFICANT = -0.003, 0.05  # a shift family counts as lost where the difference is clearly below


def gains(results: Results, accuracies: Accuracies, heads: list[str], shown: int) -> list[str]:
    """Return the tables as lines of the report; none where there is nothing to compare.

    Args:
        results: of the run.
        accuracies: of its methods.
        heads: of the columns, one for each number of labelled pictures.
        shown: the number of labelled pictures for which details are shown.
    """
    ours = next((name for name in OURS if name in accuracies), None)
    if ours is None or len(accuracies) < 2:
        return []
    found, settings = Comparison(results, accuracies, ours), results.settings
    return [*_overall(found, accuracies, settings, heads), *_by_family(found, accuracies, settings, heads, shown)]


def _overall(found: Comparison, accuracies: Accuracies, settings: Settings, heads: list[str]) -> list[str]:
    """Return a table of how far ours is above every other method, draw by draw."""
    rows = [
        [name, *(_signed(found.against(name, n).get(SUITE)) for n in settings.n)]
        for name in accuracies
        if name != found.ours
    ]
    return [
        f"## Points by which {found.ours} is above, paired",
        "",
        "In brackets the 95 % interval of a bootstrap over unseen pictures and draws; the shifts stay as they are.",
        "",
        *table(["method", *heads], rows),
        "",
    ]


def _signed(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    mean = f"{100 * difference.mean:+.2f}"
    if not len(difference.samples):
        return mean
    return f"{mean} [{100 * difference.interval[0]:+.2f}, {100 * difference.interval[1]:+.2f}]"


def _rivals_in(accuracies: Accuracies) -> list[str]:
    """Return the methods that a user would take instead."""
    return [name for name in accuracies if name in RIVALS or name in ENSEMBLES or name.startswith("fixed_")]


def _by_family(
    found: Comparison, accuracies: Accuracies, settings: Settings, heads: list[str], shown: int
) -> list[str]:
    """Return ours against the best rival of each family, and against every rival at one n."""
    rivals = _rivals_in(accuracies)
    if not rivals:
        return []
    against_best: dict[str, list[str]] = {family: [family] for family in found.families}
    for n in settings.n:
        best = {family: _best_rival(found, rivals, family, n) for family in found.families}
        adjusted = holm([difference.p_not_below(TOLERATED) for _, difference in best.values()])
        for (family, (name, difference)), p in zip(best.items(), adjusted, strict=True):
            lost = f", lost (p = {p:.3f})" if p < SIGNIFICANT else ""
            against_best[family].append(f"{name} {_signed(difference)}{lost}")
    rows = []
    for name in rivals:
        differences = found.against(name, shown)
        there = [family for family in found.families if family in differences]
        adjusted = holm([differences[family].p_value for family in there])
        p_values = dict(zip(there, adjusted, strict=True))
        rows.append(
            [name]
            + [
                f"{100 * differences[family].mean:+.2f} ({p_values[family]:.3f})" if family in p_values else "-"
                for family in found.families
            ]
        )
    return [
        f"## Points by which {found.ours} is above the best rival of each family of shifts",
        "",
        f"The rival is the best one on the very pictures. `lost`: more than {-100 * TOLERATED:.1f} points below, by a "
        "one-sided bootstrap with p adjusted for the number of families (Holm).",
        "",
        *table(["family", *heads], list(against_best.values())),
        "",
        f"## Points by which {found.ours} is above each rival by family, n = {shown}",
        "",
        "In brackets p, two-sided, adjusted for the number of families (Holm).",
        "",
        *table(["method", *found.families], rows),
        "",
    ]


def _best_rival(found: Comparison, rivals: Sequence[str], family: str, n: int) -> tuple[str, Difference]:
    compared = {name: found.against(name, n) for name in rivals}
    best = min((name for name in rivals if family in compared[name]), key=lambda name: compared[name][family].mean)
    return best, compared[best][family]
