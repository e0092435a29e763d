"""Work spread over processes, until it is done or the time is over."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import TypeVar

Unit = TypeVar("Unit")
Setup = TypeVar("Setup")
Outcome = TypeVar("Outcome")


def spread(
    todo: Iterable[Unit],
    work: Callable[[Unit, Setup], Outcome],
    setup: Setup,
    *,
    jobs: int,
    deadline: float | None = None,
) -> Iterator[Outcome]:
    """Yield what `work` returns for each unit, as it is done; of several processes in any order.

    Args:
        todo: units of work.
        work: a function of a module; with several jobs it runs in processes of its own.
        setup: what it needs besides.
        jobs: how many at a time; one runs in this process.
        deadline: on the clock of `time.monotonic`; nothing is begun after it.
    """
    units = iter(todo)
    if jobs == 1:
        for unit in units:
            if _is_over(deadline):
                return
            yield work(unit, setup)
        return
    # Processes are started anew: a copy of this one would hang where torch has used threads.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: set[Future[Outcome]] = set()
        while True:
            while len(running) < jobs and not _is_over(deadline):
                following = next(units, None)
                if following is None:
                    break
                running.add(pool.submit(work, following, setup))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
