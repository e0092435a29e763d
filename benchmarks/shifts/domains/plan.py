"""Which pieces of work are missing, in the order in which they are worth most."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from benchmarks.shifts.context import STREAMS
from benchmarks.shifts.domains.study import Record
from benchmarks.shifts.domains.work import Unit, is_free
from benchmarks.shifts.lines import Lines
from benchmarks.shifts.rivals.registry import TRAINED

LEAST_STREAM = 0.5  # of the pictures without labels that a method is to be given: with fewer it is not run
TOGETHER = ("ladder", "ladder_served", "ladder_full")  # share a search, so one piece of work has both


class Plan(NamedTuple):
    """What is measured in this run."""

    domains: tuple[str, ...]
    methods: tuple[str, ...]
    n: tuple[int, ...]
    draws: tuple[int, ...]  # their seeds
    costly_n: tuple[int, ...]  # for methods that train
    costly_draws: tuple[int, ...]
    pools: Mapping[str, int] = {}  # pictures of each domain that are not unseen ones; without, there are enough


def missing(plan: Plan, records: Lines[Record], most: Mapping[str, int]) -> Iterator[Unit]:
    """Yield what is not there yet: all of the first draw before the second.

    Args:
        plan: what is wanted.
        records: what is there.
        most: how many pictures of each domain may be labelled; larger n are left out.
    """
    for draw in plan.draws:
        for domain in plan.domains:
            counts = tuple(n for n in plan.n if n <= most[domain])
            for methods in _pieces(plan.methods):
                wanted = tuple(n for n in counts if _is_wanted(plan, methods[0], domain, n, draw))
                if is_free(methods[0]):
                    yield from _unit(domain, draw, wanted, methods, records)
                else:
                    for n in wanted:
                        yield from _unit(domain, draw, (n,), methods, records)


def _unit(
    domain: str, draw: int, counts: Sequence[int], methods: Sequence[str], records: Lines[Record]
) -> Iterator[Unit]:
    """Yield what is missing of these; nothing if that is nothing."""

    def is_there(method: str, n: int) -> bool:
        return (domain, n, draw, method) in records.records

    lacking = tuple(n for n in counts if not all(is_there(method, n) for method in methods))
    left = tuple(method for method in methods if not all(is_there(method, n) for n in lacking))
    if lacking:
        yield Unit(domain, draw, lacking, left)


def _is_wanted(plan: Plan, method: str, domain: str, n: int, draw: int) -> bool:
    if method in STREAMS and domain in plan.pools and plan.pools[domain] - n < LEAST_STREAM * STREAMS[method]:
        return False
    return method not in TRAINED or (draw in plan.costly_draws and (n in plan.costly_n or is_free(method)))


def _pieces(methods: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield methods that are one piece of work: those that look answers up, ours, each slow one alone."""
    alone = [method for method in methods if method in TRAINED or method in STREAMS]
    free = tuple(method for method in methods if is_free(method) and method not in alone)
    ours = tuple(method for method in methods if method in TOGETHER)
    others = tuple(method for method in methods if method not in (*alone, *free, *ours))
    yield from (piece for piece in (free, others, ours) if piece)
    yield from ((method,) for method in alone)
