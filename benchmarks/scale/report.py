"""The table of costs and whether the aims hold, as data and as markdown."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.machine import commit
from benchmarks.scale.measure import BUSY_CLIENTS, CLIENTS, FEW, MANY, WORKERS
from benchmarks.tables import table

SWAP_SECONDS = 1.5
WORKER_FACTOR = 1.3
ADAPT_ROW, ADAPT_N, ADAPT_SECONDS = "photos", 100, 60

Rows = Mapping[str, Mapping[str, Any]]


def with_worker(row: Mapping[str, Any], bare_mib: float) -> dict[str, Any]:
    """Return the row with what a further worker costs: in all, beyond one without a network, as a share of the weights.

    Args:
        row: as measured.
        bare_mib: private memory of a worker whose network is next to nothing.
    """
    private = row["memory"][str(MANY)]["private"]
    session = round(private - bare_mib, 1)
    share = round(session / row["weights_mib"], 2)
    return {**row, "further_worker": {"private_mib": private, "session_mib": session, "of_weights": share}}


def aims(rows: Rows) -> list[dict[str, Any]]:
    """Return each aim with what was found; `holds` is None where no row was measured for it."""
    photos = {
        name: row["adapt"]["seconds"]
        for name, row in rows.items()
        if name == ADAPT_ROW and row["adapt"]["n"] == ADAPT_N
    }
    return [
        _aim(
            f"every swap, under load too, is on every worker within {SWAP_SECONDS:g} s",
            {name: max(row["swap"][load]["max_s"] for load in ("calm", "busy")) for name, row in rows.items()},
            lambda seconds: seconds <= SWAP_SECONDS,
        ),
        _aim(
            f"a second worker's network costs at most {WORKER_FACTOR:g} times the weights of one session",
            {name: row["further_worker"]["of_weights"] for name, row in rows.items()},
            lambda share: share <= WORKER_FACTOR,
        ),
        _aim(
            f"/adapt with {ADAPT_ROW} and {ADAPT_N} images takes at most {ADAPT_SECONDS} s",
            photos,
            lambda seconds: seconds is not None and seconds <= ADAPT_SECONDS,
        ),
        _aim("no request fails", {name: row["failed"] for name, row in rows.items()}, lambda failed: failed == 0),
    ]


def _aim(text: str, found: Mapping[str, Any], is_met: Callable[[Any], bool]) -> dict[str, Any]:
    missed = [name for name, value in found.items() if not is_met(value)]
    return {"aim": text, "found": dict(found), "missed": missed, "holds": not missed if found else None}


def markdown(data: Mapping[str, Any], command: str) -> str:
    """Return the report."""
    rows: Rows = data["rows"]
    lines = ["# What networks of other sizes cost", "", f"Command: `{command}`, at commit {commit()}.", ""]
    lines += [f"Machine: {data['machine']}", ""]
    if data["quick"]:
        lines += ["A quick run: too few swaps, requests and labelled images for figures to go by.", ""]
    lines += [
        "Every row is a base set of four ingredients. All but `photos` have random weights, which cost what trained "
        "ones cost and know nothing. Images are JPEG files of the network's input size, made by code: decoding larger "
        "ones is not in these figures. Clients and server share the cores.",
        "",
        "## Aims",
        "",
        *table(("aim", "holds", "found"), [_aim_cells(aim) for aim in data["aims"]]),
        "",
        "## Times",
        "",
        *table(TIME_HEAD, [_time_cells(name, row) for name, row in rows.items()]),
        "",
        f"Bundle: once for the weights, with {data['cores']} threads. Swap: from `PUT /deployments/default/soup` until "
        f"each of {WORKERS} workers serves the soup; calm, and while {BUSY_CLIENTS} clients keep every worker busy. "
        f"Predictions: one image a request, {WORKERS} workers. Adaptation: from the request until each worker serves "
        "what was found, on one thread, nothing else being asked.",
        "",
        "## Memory, MiB",
        "",
        *table(MEMORY_HEAD, [_memory_cells(name, row) for name, row in rows.items()]),
        "",
        "RSS counts what workers share in each of them: libraries, and the rows that soups are mixed from. PSS counts "
        f"each page once. A further worker costs what no other process has (USS, the median of {MANY} workers after a "
        f"start); without a network that is {data['bare_worker_mib']:g} MiB, mostly Python and its libraries. The "
        "difference is what the network costs: a session has its own copy of the weights, and its graph. After load: "
        f"the same for the larger of {WORKERS} workers once they have answered {CLIENTS} clients, with the memory that "
        "a batch takes. The adapter's peak is the largest RSS since its start.",
        "",
    ]
    return "\n".join(lines)


def _aim_cells(aim: Mapping[str, Any]) -> tuple[str, str, str]:
    if aim["holds"] is None:
        return aim["aim"], "not measured", ""
    verdict = "yes" if aim["holds"] else f"no: {', '.join(aim['missed'])}"
    return aim["aim"], verdict, ", ".join(f"{name} {_number(value)}" for name, value in aim["found"].items())


TIME_HEAD = (
    "network", "input", "weights, M", "bundle, s", "swap calm, median (max), s", "swap busy, median (max), s",
    "1 client, p50 / p99, ms", f"{CLIENTS} clients, p50 / p99, ms", "images/s", "adaptation, s", "ends",
)  # fmt: skip
MEMORY_HEAD = (
    "network", "weights of a session", f"RSS, {FEW} worker", f"RSS of each of {MANY}", f"PSS, {FEW} worker",
    f"PSS, all {MANY}", "a further worker", "its network", "of the weights", "after load",
    "adapter, peak",
)  # fmt: skip


def _time_cells(name: str, row: Mapping[str, Any]) -> list[str]:
    adapted, predict = row["adapt"], row["predict"]
    many = predict[str(CLIENTS)]
    seconds = adapted["seconds"]
    took = f"> {adapted['gave_up_after_s']:g}" if adapted["state"] == "given up" else _number(seconds)
    return [
        name,
        f"{row['input'][0]} x {row['input'][1]}",
        _number(row["weights_m"]),
        _number(row["bundle_s"]),
        *(f"{row['swap'][load]['median_s']} ({row['swap'][load]['max_s']})" for load in ("calm", "busy")),
        *(f"{found['p50_ms']} / {found['p99_ms']} (n = {found['answers']})" for found in (predict["1"], many)),
        _number(many["per_second"]),
        f"{took} (n = {adapted['n']})",
        adapted["state"],
    ]


def _memory_cells(name: str, row: Mapping[str, Any]) -> list[str]:
    few, many, further = row["memory"][str(FEW)], row["memory"][str(MANY)], row["further_worker"]
    numbers = (row["weights_mib"], few["rss"], many["rss"], few["pss"], many["pss"], *further.values())
    return [name, *map(_number, (*numbers, row["loaded_private_mib"], row["adapt"]["peak_mib"]))]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.5g}"
