import pytest

from adapt.evidence.levels import FALSE_PROMOTIONS, attempt_level
from adapt.search.config import SearchConfig


@pytest.mark.parametrize(("attempt", "share"), [(1, 1 / 2), (2, 1 / 6), (3, 1 / 12), (10, 1 / 110)])
def test_the_level_of_an_attempt_is_its_share_of_the_total(attempt: int, share: float) -> None:
    assert attempt_level(attempt, total=0.12) == pytest.approx(0.12 * share)
    assert attempt_level(attempt) == pytest.approx(FALSE_PROMOTIONS * share)
    assert SearchConfig(attempt=attempt, false_promotions=0.12).level == attempt_level(attempt, total=0.12)


def test_all_attempts_together_stay_within_the_total() -> None:
    assert 0.049 < sum(attempt_level(attempt) for attempt in range(1, 10_000)) <= 0.05


@pytest.mark.parametrize(("attempt", "total"), [(0, 0.05), (-1, 0.05), (1, 1.5), (1, -0.1)])
def test_an_attempt_or_a_total_out_of_range_is_refused(attempt: int, total: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        attempt_level(attempt, total=total)
