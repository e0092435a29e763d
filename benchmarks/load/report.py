"""What the clients saw and what was done to the service, in numbers and words."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.load.story import Notes
from benchmarks.machine import commit
from service.demo.client import Load

KILL_SECONDS = 2.0  # after a kill in which broken connections are those of the killed worker
BACK_SECONDS = 5.0  # after the database is back in which a call may still say 503
SILENT_SECONDS = 30.0  # after connections to the database fell silent in which an adaptation may be refused with 503


def summary(load: Load, notes: Notes) -> dict[str, Any]:
    """Return what the clients saw; `failed` leaves out what was in flight in a worker when it was killed."""
    in_flight = sum(_is_after(when, notes.worker_kills) for when in load.failed_at)
    refused = sum(not _is_excused(when, status, notes) for when, status in notes.refused)
    memory = [mb for _, mb in notes.rss_mb]
    third = max(1, len(memory) // 3)
    return {
        "requests": len(load.latencies) + len(load.failed),
        "failed": len(load.failed) - in_flight,
        "in_flight_in_killed_workers": in_flight,
        "refused": refused,
        "p50_ms": round(load.percentile_ms(50), 2),
        "p99_ms": round(load.percentile_ms(99), 2),
        "rss_mb": round(float(np.mean(memory[-third:])), 1) if memory else None,
        "rss_mb_first_third": round(float(np.mean(memory[:third])), 1) if memory else None,
        "per_second": round(load.per_second, 1),
        "seconds": round(load.seconds, 1),
        "worker_kills": len(notes.worker_kills),
        "adapter_kills": len(notes.adapter_kills),
        "promises": len(notes.promises),
        "broken_promises": notes.promises.broken,
        "restarts_s": [[round(seconds, 1) for seconds in pair] for pair in notes.restarts],
        "silences": len(notes.silences),
        "heavy": {str(status): count for status, count in sorted(notes.heavy.items())},
        "upgrades": notes.upgrades["200"],
        "upgrades_failed": sum(count for said, count in notes.upgrades.items() if said not in ("200", "503")),
        "outages_s": [round(end - start, 2) for start, end in notes.outages],
        "first_failures": load.failed[:5],
    }


def _is_after(when: float, kills: list[float]) -> bool:
    return any(0 <= when - kill < KILL_SECONDS for kill in kills)


def _is_excused(when: float, status: int, notes: Notes) -> bool:
    """Say if a call may fail: its worker was killed, or the database was away."""
    if status == 0:
        return _is_after(when, notes.worker_kills)
    away = [*((start, end + BACK_SECONDS) for start, end in notes.outages)]
    away += [(start, start + SILENT_SECONDS) for start in notes.silences]
    return status == 503 and any(start <= when <= end for start, end in away)


def markdown(data: Mapping[str, Any], command: str) -> str:
    """Return the report."""
    jobs = ", ".join(f"{count} {state}" for state, count in sorted(data["jobs"].items())) or "none"
    away = ", ".join(f"{seconds:g} s" for seconds in data["outages_s"]) or "not at all"
    restarts = ", ".join(f"{down:g} s to end and {up:g} s to be ready" for down, up in data["restarts_s"]) or "none"
    heavy = ", ".join(f"{count} with {status}" for status, count in data["heavy"].items() if status != "0") or "none"
    return "\n".join(
        [
            "# Load while parts fail",
            "",
            f"Command: `{command}`, at commit {commit()}.",
            "",
            f"Machine: {data['machine']}",
            "",
            f"- {data['requests']:,} requests in {data['seconds']:g} s ({data['per_second']:g}/s) over "
            f"{data['concurrency']} connections to {data['replicas']} services of {data['workers']} workers: JPEG, "
            f"multipart with three images, JSON in turn; p50 {data['p50_ms']} ms, p99 {data['p99_ms']} ms.",
            f"- Workers killed: {data['worker_kills']}; rounds of killed adapters: {data['adapter_kills']}; database "
            f"away: {away}; its connections silenced: {data['silences']} times.",
            f"- Services restarted with SIGTERM, one after the other: {restarts}.",
            f"- Heavy uploads (20 grey pictures of 49 megapixels each), answered: {heavy}; given up by the client: "
            f"{data['heavy'].get('0', 0)}.",
            f"- Requests that offered HTTP/2, with the body in a second packet: {data['upgrades']} got their one "
            f"answer, {data['upgrades_failed']} did not.",
            f"- Wrong answers: {data['wrong_answers']} (each is compared with its version's network, run apart). "
            f"Failed requests: {data['failed']}; besides, {data['in_flight_in_killed_workers']} were in flight in a "
            "worker when it was killed.",
            f"- Promotions answered with 200: {data['promises']}; later requests that an older version answered: "
            f"{data['broken_promises']}, over all connections, and over new ones to every service right after each.",
            f"- Jobs: {jobs}; lost jobs or promotions: {data['lost_promotions']}; adaptations refused while the "
            f"database was there: {data['refused']}.",
            f"- Memory of all predictors (RSS; shared pages count in each): {data['rss_mb_first_third']} MB on average "
            f"in the first third, {data['rss_mb']} MB in the last.",
            "",
        ]
    )
