import pytest
from scipy import stats

from adapt.evidence.levels import FALSE_PROMOTIONS, attempt_level, p_threshold
from adapt.search.config import SearchConfig


@pytest.mark.parametrize(("attempt", "share"), [(1, 1 / 2), (2, 1 / 6), (3, 1 / 12), (10, 1 / 110)])
def test_the_level_of_an_attempt_is_its_share_of_the_total(attempt: int, share: float) -> None:
    assert attempt_level(attempt, total=0.12) == pytest.approx(0.12 * share)
    assert attempt_level(attempt) == pytest.approx(FALSE_PROMOTIONS * share)
    config = SearchConfig(attempt=attempt, false_promotions=0.12)
    assert config.threshold(100) == p_threshold(attempt_level(attempt, total=0.12), 100)


def test_all_attempts_together_stay_within_the_total() -> None:
    assert 0.049 < sum(attempt_level(attempt) for attempt in range(1, 10_000)) <= 0.05


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
