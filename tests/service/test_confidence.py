"""When confidence has collapsed: the sums, the windows, and how often the test is wrong or late."""

from collections.abc import Callable

import numpy as np
import pytest

from service.store.confidence import LEVEL, NOTHING, Tally, WatchState, judge, level_of, observe, start

Generator = np.random.Generator
Draw = Callable[[Generator, int], np.ndarray]


def tally(values: np.ndarray) -> Tally:
    return Tally(len(values), float(values.sum()), float(values @ values))


def sure(generator: Generator, n: int) -> np.ndarray:
    """Confidences as they are: most near 1, some far below; mean 0.8."""
    return generator.beta(2.4, 0.6, n)


def unsure(generator: Generator, n: int) -> np.ndarray:
    """The same of a soup that has gone wrong; mean 0.5."""
    return generator.beta(2.5, 2.5, n)


def judged(generator: Generator, before: Draw, *, min_images: int = 50) -> WatchState:
    """A version that has just replaced another one that answered 60 images."""
    state = start(None, event=1, version=1, against=None)
    state, _ = observe(state, {1: tally(before(generator, min_images + 10))}, min_images=min_images, drop=0.1)
    return start(state, event=2, version=2, against=1)


def test_sums_give_mean_and_variance_in_whatever_parts_they_come() -> None:
    values = sure(np.random.default_rng(0), 500)
    parts = NOTHING
    for part in np.split(values, [3, 90, 91, 400]):
        parts = parts.plus(tally(part))
    assert parts.n == 500
    assert parts.mean == pytest.approx(values.mean())
    assert parts.variance == pytest.approx(values.var(ddof=1))


def test_levels_of_all_blocks_sum_to_the_level() -> None:
    assert sum(level_of(block) for block in range(1, 100_000)) == pytest.approx(LEVEL, rel=1e-4)
    assert sum(level_of(block) for block in range(1, 100_000)) < LEVEL


@pytest.mark.parametrize(("num_before", "num_now", "blocks"), [(50, 50, 30), (1000, 50, 30), (50, 2000, 4)])
def test_rollbacks_without_a_cause_are_rarer_than_the_level(num_before: int, num_now: int, blocks: int) -> None:
    """2,000 promotions to a soup that is just as sure; any fall counts, however small. The level is that of all blocks.

    Up to 7 of 2,000 are within it by four standard deviations; Welch's test would put back 10 in the last case.
    """
    generator = np.random.default_rng(1)
    put_back = 0
    for _ in range(2000):
        before = tally(sure(generator, num_before))
        put_back += any(
            judge(before, tally(sure(generator, num_now)), drop=1e-9, level=level_of(number)) is not None
            for number in range(1, blocks + 1)
        )
    assert put_back <= 2000 * LEVEL + 4 * np.sqrt(2000 * LEVEL)


def test_a_real_collapse_is_noticed_within_two_blocks_however_late_it_comes() -> None:
    generator = np.random.default_rng(2)
    for _ in range(200):
        state = judged(generator, sure, min_images=100)
        good = int(generator.integers(0, 3000))
        state, collapse = feed(state, sure(generator, good), generator)
        assert collapse is None
        state, collapse = feed(state, unsure(generator, 200 + 20), generator)
        assert collapse is not None
        assert collapse.before.mean - collapse.now.mean > 0.1


def feed(state: WatchState, values: np.ndarray, generator: Generator) -> tuple[WatchState, object]:
    """Let reports of 1 to 20 images arrive, until something happens."""
    while len(values):
        some, values = np.split(values, [generator.integers(1, 21)])
        state, collapse = observe(state, {2: tally(some)}, min_images=100, drop=0.1)
        if collapse is not None:
            return state, collapse
    return state, None


def test_what_is_proven_but_small_stays() -> None:
    """A fall by 0.05 over 100,000 images is no chance, and less than is asked for."""
    generator = np.random.default_rng(3)
    before, now = sure(generator, 100_000), sure(generator, 100_000) - 0.05
    assert judge(tally(before), tally(now), drop=0.1, level=LEVEL) is None
    assert judge(tally(before), tally(now), drop=0.03, level=LEVEL) is not None


def test_a_rise_is_no_collapse_and_constant_confidences_divide_nothing_by_zero() -> None:
    high, low = tally(np.full(60, 0.9)), tally(np.full(60, 0.5))
    assert judge(low, high, drop=0.1, level=LEVEL) is None
    assert judge(high, low, drop=0.1, level=LEVEL) is not None
    assert judge(high, high, drop=0.1, level=LEVEL) is None


def test_without_enough_of_the_version_before_nothing_is_judged() -> None:
    few, low = tally(np.full(49, 0.9)), tally(np.full(500, 0.2))
    state, _ = observe(start(None, event=1, version=1, against=None), {1: few}, min_images=50, drop=0.1)
    state = start(state, event=2, version=2, against=1)
    for _ in range(5):
        state, collapse = observe(state, {2: low}, min_images=50, drop=0.1)
        assert collapse is None
    assert (state.blocks, state.before) == (0, few)


def test_late_reports_of_the_version_before_count_until_the_first_judgement_and_others_never() -> None:
    high, low = tally(np.full(40, 0.9)), tally(np.full(60, 0.85))
    state, _ = observe(start(None, event=1, version=1, against=None), {1: high, 7: low}, min_images=50, drop=0.1)
    state = start(state, event=2, version=2, against=1)
    state, _ = observe(state, {1: high, 7: low}, min_images=50, drop=0.1)
    assert state.before == high.plus(high)
    state, _ = observe(state, {2: low}, min_images=50, drop=0.1)
    assert (state.blocks, state.last, state.open) == (1, low, NOTHING)
    state, _ = observe(state, {1: low}, min_images=50, drop=0.1)
    assert state.before == high.plus(high)


def test_a_way_back_is_not_judged_and_a_new_spell_starts_with_nothing_seen() -> None:
    high, low = tally(np.full(60, 0.9)), tally(np.full(60, 0.2))
    state, _ = observe(start(None, event=1, version=1, against=None), {1: high}, min_images=50, drop=0.1)
    state, collapse = observe(start(state, event=2, version=2, against=1), {2: low}, min_images=50, drop=0.1)
    assert collapse is not None
    back = start(state, event=3, version=1, against=None)
    assert back == start(None, event=3, version=1, against=None)
    assert observe(back, {1: low}, min_images=50, drop=0.1)[1] is None
    again = start(back, event=4, version=2, against=1)
    assert (again.before, again.recent, again.blocks) == (NOTHING, NOTHING, 0)
