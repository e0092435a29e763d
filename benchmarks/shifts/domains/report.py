"""The report of a study: tables for each domain, differences, cost, and pictures."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.machine import commit
from benchmarks.shifts.domains.figures import plot_accuracy, write_sheet
from benchmarks.shifts.domains.pictures import CLEAN, Store
from benchmarks.shifts.domains.study import CORRUPTIONS, Record, Study, read_study
from benchmarks.shifts.domains.values import MEAN, Estimate, Values, contract
from benchmarks.shifts.domains.work import needs_table
from benchmarks.shifts.lines import Lines
from benchmarks.shifts.options import spelled
from benchmarks.shifts.tuned import Trials, read_trials
from benchmarks.tables import table
from training.cli import Result

logger = logging.getLogger(__name__)

OURS = ("ladder_full", "ladder", "ladder_quick", "soup_auto")  # the first there is is compared with the others
PLAIN = "finetune_nominal"

METHODS = {
    "ladder": "our search's candidate, whatever its gate says",
    "ladder_served": "what its gate lets through",
    "ladder_full": "`ladder`, by the name of its effort",
    "ladder_quick": "the same search without what trains weights",
    "ladder_stream": "`ladder`, with 200 more pictures of the domain without labels that are not unseen ones; "
    "`ladder_stream_1000`: with up to 1,000; neither is run where there is not half of that",
    "soup_auto": "the same search over coefficients alone",
    "soup_uniform": "all ingredients in equal parts",
    "picked": "the best ingredient on the labelled pictures; `_bn`: with their BatchNorm statistics; `_head`: with its "
    "last layer fitted again",
    "probe": "a last layer fitted from nothing on the nominal ingredient's features",
    "finetune": "all weights of what `picked_bn` picks; `finetune_nominal`: of the nominal ingredient",
    "lp_ft": "`finetune_nominal` after a probe",
    "surgical": "one part of what `picked_bn` picks",
    "tent": "entropy minimisation; like `eata`, `sar` and `roid` it answers the unseen pictures batch by batch, 64 at "
    "a time (200 of small ones), with their own statistics. These rivals learn from the unseen pictures, all of them "
    "in the end, and not from the stream that `ladder_stream` is given; `tent` may learn from the labelled ones "
    "instead, and `eata` sees up to 200 clean pictures",
    "t3a": "prototypes from the unseen pictures as they pass",
    "ensemble": "all ingredients' probabilities; `_weighted`: with weights fitted to the labels",
}


def reported(out: Path, study: Study, records: Lines[Record], store: Store) -> Result:
    """Write REPORT.md, results.json and the pictures of all that was measured, and return it."""
    values = Values(records.records.values())
    found = contract(values, study.n_test)
    text = markdown(study, values, list(records.records.values()))
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plot_accuracy(values, out / "accuracy.png")
    names = [name for family in values.families for name in values.members(family) if store.has(name)]
    if names:  # pictures may have been removed since
        write_sheet(store, [*([CLEAN] if store.has(CLEAN) else []), *names], out / "pictures.jpg", seed=study.seed)
        text += "![pictures of the domains](pictures.jpg)\n\n"
    (out / "REPORT.md").write_text(text, encoding="utf-8")
    logger.info("wrote REPORT.md, results.json and pictures to %s", out)
    return Result(found, text)


def reopened(out: Path) -> Result:
    """Report what lies in the folder of an earlier run.

    Raises:
        ValueError: nothing was measured there.
    """
    study, records = read_study(out), Lines(out / "records.jsonl", Record)
    if not records.records:
        raise ValueError(f"{out}: nothing was measured yet")
    return reported(out, study, records, Store(out / "pictures"))


def markdown(study: Study, values: Values, records: Sequence[Record]) -> str:
    """Return the report."""
    heads = [f"n = {n}" for n in values.counts]
    lines = [f"# {study.base_set} on {', '.join(values.families)}", "", *_description(study, values, records)]
    if len(values.averaged) > 1:
        lines += [f"## Mean of {', '.join(values.averaged)}, accuracy in percent", "", *_table(values, MEAN, heads)]
    for family in values.families:
        members = values.members(family)
        title = f"{family}, mean of {len(members)}" if len(members) > 1 else family
        lines += [f"## {title}, accuracy in percent", "", *_table(values, family, heads)]
    lines += [*_gains(values, heads), *_cost(values, heads), *_by_corruption(values), *_choices(study, values)]
    lines += ["![accuracy against the number of labelled pictures](accuracy.png)", ""]
    return "\n".join(lines)


def _description(study: Study, values: Values, records: Sequence[Record]) -> list[str]:
    commits, machines = ({getattr(record, part): None for record in records} for part in ("commit", "machine"))
    unseen = sorted({(record.domain, record.unseen) for record in records}, key=lambda pair: -pair[1])
    shown = [f"{name} {count}" for name, count in unseen if name in values.families]
    corrupted = sorted({count for name, count in unseen if name not in values.families})
    shown += [f"each corruption {count}" for count in corrupted]
    present = [f"`{name}`: {what}" for name, what in METHODS.items() if name in values.methods]
    return [
        f"Command: `{command(study, values)}`. Measured at commit {', '.join(commits)}; reported at {commit()}.",
        "",
        f"Base set `{study.base_set}` ({study.base_digest[:12]}); {_draws(values.num_draws())} from seed "
        f"{study.seed} on. Unseen pictures of a draw: {', '.join(shown)}; classes are as frequent in them as "
        "in the domain. Labelled ones are never among them and even over the classes, as far as these have enough. All "
        "methods see the same draws. After +- is one standard error over draws; in brackets how many, where others "
        "have more. Draws share their domain's pictures: the error tells how far luck in drawing goes, not other data.",
        "",
        *(
            [
                "The corruptions are those of ImageNet-C at their highest severity, scaled to the input size, of the "
                "base set's own held-out pictures. Together they count as one domain.",
                "",
            ]
            if CORRUPTIONS in values.families
            else []
        ),
        "; ".join(present) + ". `fixed_` is an ingredient as it is.",
        "",
        f"Machine: {'; '.join(machines)}",
        "",
    ]


def _draws(count: int) -> str:
    return "one draw" if count == 1 else f"up to {count} draws"


def command(study: Study, values: Values) -> str:
    """Return what measures all of this."""
    domains = [family if family == CORRUPTIONS else f"FOLDERS/{family}" for family in values.families]
    if CORRUPTIONS in values.families and len(values.members(CORRUPTIONS)) < 15:
        domains = [domain for domain in domains if domain != CORRUPTIONS] + values.members(CORRUPTIONS)
    return (
        f"python -m benchmarks.shifts bases/{study.base_set} --domains {','.join(domains)} "
        f"--n {','.join(map(str, values.counts))} --draws {values.num_draws()} --seed {study.seed} "
        f"--n-test {study.n_test} --methods {','.join(values.methods)}"
    )


def _table(values: Values, what: str, heads: Sequence[str]) -> list[str]:
    estimates = {method: [values.estimate(what, method, n) for n in values.counts] for method in values.methods}
    most = max((found.draws for row in estimates.values() for found in row if found is not None), default=0)
    rows = [
        [method, *(_cell(found, most) for found in row)]
        for method, row in estimates.items()
        if any(found is not None for found in row)
    ]
    return [*table(["method", *heads], rows), ""]


def _cell(found: Estimate | None, most: int, *, sign: str = "") -> str:
    if found is None:
        return "-"
    error = "" if found.error is None else f" +- {100 * found.error:.1f}"
    return f"{100 * found.mean:{sign}.1f}{error}" + (f" ({found.draws})" if found.draws < most else "")


def _gains(values: Values, heads: Sequence[str]) -> list[str]:
    """Return how far ours is above every other method, draw by draw, and what is aimed for."""
    ours = next((name for name in OURS if name in values.methods), None)
    if ours is None or len(values.methods) < 2:
        return []
    what = MEAN if len(values.averaged) > 1 else values.averaged[0]
    others = [name for name in values.methods if name != ours]
    rows = [
        [name, *(_cell(values.difference(what, ours, name, n), 0, sign="+") for n in values.counts)] for name in others
    ]
    over = ", ".join(values.averaged)
    lines = [f"## Points by which {ours} is above, on {over}, paired by draw", "", *table(["method", *heads], rows), ""]
    aims = [aim for n in values.counts if n == 100 for aim in _aims(values, ours, what, n)]
    return [*lines, *aims, *([""] if aims else [])]


def _aims(values: Values, ours: str, what: str, n: int) -> list[str]:
    found = []
    if (gap := values.difference(what, ours, PLAIN, n)) is not None:
        verdict = "met" if gap.mean >= -0.03 else "missed"
        found.append(f"At most 3 points below plain fine-tuning at n = {n}: {verdict} ({_cell(gap, 0, sign='+')}).")
    fixed = {
        name: there.mean
        for name in values.methods
        if name.startswith("fixed_") and (there := values.estimate(what, name, n)) is not None
    }
    if fixed:
        best = max(fixed, key=lambda name: fixed[name])
        if (gap := values.difference(what, ours, best, n)) is not None:
            verdict = "met" if gap.mean >= 0.2 else "missed"
            found.append(f"20 points above the best fixed ingredient ({best}): {verdict} ({_cell(gap, 0, sign='+')}).")
    return found


def _cost(values: Values, heads: Sequence[str]) -> list[str]:
    rows = []
    for method in values.methods:
        cells: list[str] = []
        answering: list[float] = []
        for n in values.counts:
            records = values.timed(method, n)
            found = [record.found for record in records]
            seconds, forwards = (
                float(np.mean([getattr(one, part) or 0 for one in found] or [0]))
                for part in ("cpu_seconds", "forwards")
            )
            cells.append(f"{seconds:.1f} s, {forwards:,.0f}" if found else "-")
            answering += [1000 * (r.found.answering or 0) / r.unseen for r in records if not needs_table(method)]
        rows.append([method, f"{np.mean(answering):.0f}" if answering else "-", *cells])
    elsewhere = values.num_elsewhere()
    return [
        "## Cost of adapting: seconds of CPU time, and pictures through the network",
        "",
        "Of what was looked up, the seconds are those that the same forwards took when they were made. A backward pass "
        "counts as two forwards. `ms` is what an unseen picture takes afterwards, where answers were not looked up: "
        "methods that learn as pictures pass spend their time there.",
        *([f"Times are those of CPUs; {elsewhere} results were made on a GPU."] if elsewhere else []),
        "",
        *table(["method", "ms", *heads], rows),
        "",
    ]


def _by_corruption(values: Values) -> list[str]:
    members = values.members(CORRUPTIONS) if CORRUPTIONS in values.families else []
    shown = max((n for n in values.counts if n <= 100), default=None)
    if len(members) < 2 or shown is None:
        return []
    methods = [m for m in values.methods if any(values.estimate(name, m, shown) is not None for name in members)]
    rows = [[name, *(_cell(values.estimate(name, method, shown), 0) for method in methods)] for name in members]
    return [f"## Accuracy in percent by corruption, n = {shown}", "", *table(["corruption", *methods], rows), ""]


def _choices(study: Study, values: Values) -> list[str]:
    """Return the hyper-parameters that rivals took on each domain."""
    trials = read_trials().get(study.base_set)
    if trials is None:
        return [
            f"Nothing was tuned for `{study.base_set}`: rivals took the middle of what would be tried.",
            "",
        ]
    shown = max((n for n in values.counts if n <= 100), default=min(values.counts))
    rows = [
        [method, *(_choice(trials, method, shown, family) for family in values.families)]
        for method in values.methods
        if method in trials.methods
    ]
    return [
        f"## Hyper-parameters of rivals at n = {shown}, chosen on the other domains",
        "",
        f"Tried by `{trials.command}`.",
        "",
        *table(["method", *values.families], rows),
        "",
    ]


def _choice(trials: Trials, method: str, n: int, family: str) -> str:
    try:
        return spelled(trials.best(method, n, family).options)
    except ValueError:
        return "-"
