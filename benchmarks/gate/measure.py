"""Which draws are wanted, and their work spread over processes."""

import itertools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from adapt.evidence.policies import Promote
from benchmarks.gate import nulls, real
from benchmarks.gate.records import Key, Records, Row

logger = logging.getLogger(__name__)

CHUNK = 20  # draws of a null case that a process does at a time
LOOKED_AT = tuple(case for case in nulls.CASES if case.num_ingredients == 4 and not case.is_second)
DRIFTING, LIKELY = "drifting", "likely"
KINDS = ((), (DRIFTING,), (LIKELY,), (DRIFTING, LIKELY))  # of labels in portions: the images, and what is promoted
KNOWN = {case.name: case for case in (*nulls.CASES, nulls.BETTER)}


class Plan(NamedTuple):
    """How much is drawn."""

    n: tuple[int, ...]  # labelled images of the null cases
    draws: int  # of each null case and n
    looks: int  # draws of each plan of many looks and each null case
    shifts: tuple[str, ...]
    real_n: tuple[int, ...]  # labelled pictures of real adaptations
    real_draws: int  # of each shift and n
    portions: tuple[int, ...]  # sizes of the portions in which labels come
    portion_shifts: tuple[str, ...]


class Job(NamedTuple):
    """Draws that one process does."""

    part: str
    case: str
    n: int
    turns: tuple[int, ...]


def wanted(plan: Plan, records: Records, parts: Sequence[str]) -> Iterator[Job]:
    """Yield what is missing: the first draws of everything before the second ones."""
    chunks = [range(start, start + CHUNK) for start in range(0, max(plan.draws, plan.looks), CHUNK)]
    for chunk in chunks:
        if "null" in parts:
            for n, case in itertools.product(plan.n, nulls.CASES):
                yield from _missing(records, "null", case.name, n, [turn for turn in chunk if turn < plan.draws])
        if "looks" in parts:
            for series, case in itertools.product(nulls.PLANS, (nulls.BETTER, *LOOKED_AT)):
                turns = [turn for turn in chunk if turn < plan.looks]
                yield from _missing(records, "looks", f"{series.name}: {case.name}", series.portion, turns)
        if "real" in parts:
            for n, turn, shift in itertools.product(plan.real_n, chunk, plan.shifts):
                if turn < plan.real_draws:
                    yield from _missing(records, "first", shift, n, [turn])
        if "continual" in parts:
            for turn, portion, shift, kind in itertools.product(chunk, plan.portions, plan.portion_shifts, KINDS):
                if turn < plan.real_draws:
                    name = ", ".join([shift, *kind])
                    yield from _missing(records, "continual", name, portion, [turn])


def _missing(records: Records, part: str, case: str, n: int, turns: Sequence[int]) -> Iterator[Job]:
    if missing := tuple(turn for turn in turns if Key(part, case, n, turn) not in records):
        yield Job(part, case, n, missing)


def measure(
    plan: Plan,
    records: Records,
    parts: Sequence[str],
    *,
    base: Path,
    data: Path,
    seed: int,
    jobs: int,
    minutes: float | None,
) -> None:
    """Do what is missing in several processes, until it is done or the time is over."""
    started, todo = time.monotonic(), wanted(plan, records, parts)
    with ProcessPoolExecutor(jobs, initializer=_one_thread) as pool:
        running: set[Future[list[tuple[Key, Row]]]] = set()
        while True:
            while len(running) < jobs and (minutes is None or time.monotonic() - started < 60 * minutes):
                job = next(todo, None)
                if job is None:
                    break
                running.add(pool.submit(work, job, base, data, seed))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                records.add(future.result())


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def work(job: Job, base: Path, data: Path, seed: int) -> list[tuple[Key, Row]]:
    """Do a job; in a process of its own."""
    started = time.perf_counter()
    found = [pair for turn in job.turns for pair in _draw(job, turn, base, data, seed)]
    logger.info("%s, %s, n = %d: %.1f s", job.part, job.case, job.n, time.perf_counter() - started)
    return found


def _draw(job: Job, turn: int, base: Path, data: Path, seed: int) -> Iterator[tuple[Key, Row]]:
    key = Key(job.part, job.case, job.n, turn)
    if job.part == "null":
        yield key, nulls.draw(KNOWN[job.case], job.n, turn, seed=seed)._asdict()
    elif job.part == "looks":
        series, _, name = job.case.partition(": ")
        plan = next(plan for plan in nulls.PLANS if plan.name == series)
        yield key, {"looks": [list(look) for look in nulls.look(KNOWN[name], plan, turn, seed=seed)]}
    elif job.part == "first":
        rows = real.adapt_twice(*real.world(base, data), job.case, job.n, turn)
        for part, row in rows.items():
            yield key._replace(part=part), row
    else:
        shift, *kind = job.case.split(", ")
        promote: Promote = "likely" if LIKELY in kind else "auto"
        yield (
            key,
            real.adapt_in_portions(
                *real.world(base, data), shift, job.n, turn, drifts=DRIFTING in kind, promote=promote
            ),
        )
