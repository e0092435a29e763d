from itertools import accumulate

import numpy as np
import pytest
from scipy import stats

from adapt.evidence.levels import FALSE_PROMOTIONS, attempt_chance, attempt_level, p_threshold
from adapt.search.config import SearchConfig


@pytest.mark.parametrize(("attempt", "share"), [(1, 1 / 2), (2, 1 / 6), (3, 1 / 12), (10, 1 / 110)])
def test_an_unrelated_attempt_has_its_share_of_the_total(attempt: int, share: float) -> None:
    assert attempt_chance(attempt, total=0.12) == pytest.approx(0.12 * share)
    assert attempt_level(attempt, total=0.12) == pytest.approx(0.12 * share)
    assert attempt_level(attempt) == pytest.approx(FALSE_PROMOTIONS * share)
    config = SearchConfig(attempt=attempt, false_promotions=0.12)
    assert config.threshold(100, 100) == p_threshold(attempt_level(attempt, total=0.12), 100)


def test_all_attempts_together_stay_within_the_total() -> None:
    assert 0.049 < sum(attempt_chance(attempt) for attempt in range(1, 10_000)) <= 0.05


@pytest.mark.parametrize("portions", [[20] * 8, [100, 20, 20, 300], [10, 10, 200, 5, 5]])
def test_nested_attempts_spend_what_each_may_and_no_more(portions: list[int]) -> None:
    """Against series drawn from the law that is assumed: sums of independent images, none of them better."""
    sizes = list(accumulate(portions))
    bounds = [stats.norm.isf(attempt_level(k, sizes[:k])) for k in range(1, len(sizes) + 1)]
    draws = 400_000
    parts = np.random.default_rng(0).standard_normal((draws, len(sizes))) * np.sqrt(portions)
    above = parts.cumsum(axis=1) / np.sqrt(sizes) > bounds
    firsts = np.bincount(np.where(above.any(axis=1), above.argmax(axis=1), len(sizes)), minlength=len(sizes))
    chances = np.asarray([attempt_chance(k) for k in range(1, len(sizes) + 1)])
    errors = np.sqrt(chances / draws)
    assert (firsts[: len(sizes)] / draws <= chances + 4 * errors).all()
    loose = np.asarray(bounds[1:]) > np.asarray(bounds[:-1]) + 1e-6  # elsewhere it is held at the bound before
    assert (firsts[1 : len(sizes)] / draws >= chances[1:] - 4 * errors[1:])[loose].all()


def test_the_more_two_attempts_share_the_higher_the_level() -> None:
    levels = [attempt_level(2, sizes) for sizes in ([0, 100], [20, 100], [50, 100], [90, 100])]
    assert levels == sorted(levels)
    assert levels[0] == attempt_chance(2) < levels[1]
    assert levels[-1] == pytest.approx(attempt_chance(1))
    assert attempt_level(4, [50, 0, 60, 90]) == attempt_level(4, [60, 90]) > attempt_chance(4)
    assert attempt_level(4, [90]) == attempt_level(4, [50, 60, 0, 90]) == attempt_chance(4)
    long = attempt_level(1000, range(20, 20_020, 20))
    assert attempt_chance(1000) < long < attempt_level(10, range(20, 220, 20))


@pytest.mark.parametrize("sizes", [[1, 2, 3], [-1], [5, -2]])
def test_impossible_sizes_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="at most 2 sizes"):
        attempt_level(2, sizes)


@pytest.mark.parametrize(("attempt", "total"), [(0, 0.05), (-1, 0.05), (1, 1.5), (1, -0.1)])
def test_an_attempt_or_a_total_out_of_range_is_refused(attempt: int, total: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        attempt_level(attempt, total=total)


def test_the_threshold_is_stricter_than_the_level_and_more_so_for_few_images() -> None:
    thresholds = [p_threshold(0.025, n) for n in (10, 20, 100, 1000)]
    assert thresholds == sorted(thresholds)
    assert 0.001 < thresholds[0] < thresholds[-1] < 0.0125
    # The normal score of the level, times 1.2 + 2 / n.
    assert stats.norm.isf(thresholds[2]) == pytest.approx(1.22 * 1.95996, rel=1e-4)
