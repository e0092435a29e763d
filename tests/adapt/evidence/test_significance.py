import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from adapt.evidence.cross_fit import CrossFit
from adapt.evidence.significance import evidence, fold_dependence, labels_needed, paired_interval, paired_p
from tests.adapt.evidence.draws import deal, draw, scores_of

LEVEL = 0.025


def gains(before: np.ndarray, after: np.ndarray, current: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    everything, nothing = np.ones(len(before), dtype=np.bool_), np.zeros(len(before), dtype=np.int64)
    return CrossFit(nothing, current, candidate, before, after, everything).gains


answers = arrays(np.bool_, 12)
cross_entropies = arrays(np.float32, 12, elements=st.floats(0, 60, width=32) | st.just(math.inf))


@given(cross_entropies, cross_entropies, answers, answers)
def test_evidence_is_bounded_and_changes_sign_when_the_soups_change_places(
    before: np.ndarray, after: np.ndarray, current: np.ndarray, candidate: np.ndarray
):
    found = gains(before, after, current, candidate)
    swapped = gains(after, before, candidate, current)
    assert np.abs(found).max() <= 2
    assert np.array_equal(found, -swapped)
    assert np.all(found[candidate & ~current & (after <= before)] >= 1)


def test_evidence_counts_a_right_answer_as_one_nat():
    right, wrong = np.asarray([True]), np.asarray([False])
    assert evidence(np.asarray([-0.25], dtype=np.float32), right, wrong) == pytest.approx(1.25)
    assert evidence(np.asarray([7], dtype=np.float32), wrong, wrong) == pytest.approx(-1)


@given(arrays(np.float32, st.integers(5, 40), elements=st.floats(-2, 2, width=16)))
def test_p_value_is_that_of_students_paired_test(gains: np.ndarray):
    if gains.std() < 0.06:  # less counts as if it were that of `MIN_SPREAD`
        return
    found = paired_p(gains)
    assert found == pytest.approx(
        max(stats.ttest_1samp(gains.astype(np.float64), 0, alternative="greater").pvalue, 2.0 ** -len(gains)), rel=1e-3
    )
    assert paired_p(gains + np.float32(0.1)) <= found
    assert paired_p(gains, dependence=1.2) >= found


def test_p_value_where_there_is_nothing_to_test_or_no_spread():
    assert paired_p(np.zeros(20, dtype=np.float32)) == 1
    assert paired_p(np.ones(1, dtype=np.float32)) == 1
    assert paired_p(np.ones(12, dtype=np.float32)) == 2.0**-12
    assert paired_p(-np.ones(12, dtype=np.float32)) == pytest.approx(1)


@pytest.mark.parametrize("n", [10, 20, 100])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_p_value_keeps_its_level_where_few_images_decide(n: int, share: float):
    generator = np.random.default_rng(n)
    rejected = 0
    for _ in range(2000):
        hits = generator.choice([-1, 0, 1], p=[share / 2, 1 - share, share / 2], size=n)
        gains = hits + np.clip(generator.standard_normal(n) * 0.2, -1, 1)
        rejected += paired_p(gains.astype(np.float32)) < LEVEL
    assert rejected <= stats.binom.ppf(0.999, 2000, LEVEL)


@pytest.mark.parametrize("gain", [0.1, 0.2])
def test_as_many_labels_as_needed_prove_the_gain_four_times_in_five(gain: float):
    generator = np.random.default_rng(0)
    seen = (gain - np.resize([-0.5, 0.5], 50)).astype(np.float32)
    needed = labels_needed(paired_p(seen), 50, threshold=LEVEL)
    assert needed is not None
    proven = [paired_p((gain + 0.5 * generator.standard_normal(needed)).astype(np.float32)) < LEVEL for _ in range(500)]
    assert np.mean(proven) == pytest.approx(0.8, abs=0.06)


def test_fewer_labels_are_needed_the_stronger_the_evidence_and_no_number_is_given_without_any():
    found = [labels_needed(p, 100, threshold=LEVEL) for p in (0.01, 0.05, 0.2, 0.3)]
    assert found == sorted(found)
    assert labels_needed(0.05, 100, threshold=0.05) == pytest.approx(229, abs=1)
    assert [labels_needed(p, 100, threshold=LEVEL) for p in (0.499, 0.5, 0.9, 1.0)] == [None] * 4
    assert labels_needed(0.2, 100, threshold=0.01) > labels_needed(0.2, 100, threshold=LEVEL)


def test_interval_matches_a_published_one():
    """Fagerland, Lydersen, Laake 2013 (BMC Med Res Methodol 13:91), airway hyper-responsiveness: 1 and 7 of 21."""
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200))
def test_interval_holds_the_gain_and_mirrors(wins: int, losses: int, ties: int):
    n = max(1, wins + losses + ties)
    low, high = paired_interval(wins, losses, n)
    assert -1 <= low <= (wins - losses) / n <= high <= 1
    assert low < high
    assert paired_interval(losses, wins, n) == pytest.approx((-high, -low), abs=1e-6)
    wider = paired_interval(wins, losses, n, dependence=1.3)
    assert wider[0] <= low + 1e-9
    assert wider[1] >= high - 1e-9


@pytest.mark.parametrize("n", [10, 20, 50, 200])
@pytest.mark.parametrize("shares", [(0.05, 0.05), (0.1, 0.02), (0.3, 0.05)])
def test_interval_covers_as_often_as_it_says_even_at_small_n(n: int, shares: tuple[float, float]):
    better, worse = shares
    counts = np.random.default_rng(n).multinomial(n, [better, worse, 1 - better - worse], size=400)
    covered, (rows, times) = 0, np.unique(counts, axis=0, return_counts=True)
    for (wins, losses, _), often in zip(rows.tolist(), times.tolist(), strict=True):
        low, high = paired_interval(wins, losses, n)
        covered += often * (low <= better - worse <= high)
    assert covered / 400 > 0.92


def test_unrelated_rivals_make_folds_dependent_and_one_rival_does_not():
    generator = np.random.default_rng(0)
    many = [fold_dependence(draw(generator, 60, 100), deal(generator, 100)) for _ in range(5)]
    one = [fold_dependence(draw(generator, 2, 100), deal(generator, 100)) for _ in range(5)]
    assert np.mean(many) > 1.08
    assert np.mean(one) < 1.06


def test_dependence_is_repeatable_and_survives_unusable_soups():
    generator = np.random.default_rng(0)
    scores, folds = draw(generator, 10, 50), deal(generator, 50)
    assert fold_dependence(scores, folds, seed=3) == fold_dependence(scores, folds, seed=3)
    scores.losses[4:] = math.inf
    assert math.isfinite(fold_dependence(scores, folds))
    scores.losses[0] = math.inf
    assert fold_dependence(scores, folds) == 1


def test_a_soup_that_answers_alike_but_saves_cross_entropy_is_proven_sooner_than_by_its_answers():
    """Two or three images put right, and all others a little surer."""
    margins = 2 + np.random.default_rng(0).standard_normal(100)
    scores = scores_of(np.stack([margins, margins + 0.4]))
    current, candidate = scores.correct
    wins, losses = int((candidate & ~current).sum()), int((current & ~candidate).sum())
    assert stats.binom.sf(wins - 1, wins + losses, 0.5) > LEVEL
    assert paired_p(gains(*scores.losses[:, 3], current, candidate)) < LEVEL


def test_a_rung_that_was_tried_is_one_more_rival():
    """Nothing but the held-out answers of rungs differs from the current soup: they alone make folds dependent."""
    generator = np.random.default_rng(0)
    many, folds = draw(generator, 60, 100), deal(generator, 100)
    losses, right = many.losses[:, 3], many.correct
    assert fold_dependence(many.take(slice(0, 1)), folds) == pytest.approx(1, abs=0.02)
    alone = fold_dependence(many.take(slice(0, 1)), folds, others=(losses[1:], right[1:]))
    assert alone > 1.05


def test_dependence_divides_the_normal_score() -> None:
    gains = (0.2 + np.random.default_rng(0).standard_normal(60)).astype(np.float32)
    plain = paired_p(gains)
    assert 0.001 < plain < 0.4
    assert paired_p(gains, dependence=1.2) == pytest.approx(stats.norm.sf(stats.norm.isf(plain) / 1.2))
    assert paired_p(-gains, dependence=1.2) == paired_p(-gains)


def test_soups_clearly_worse_than_the_current_one_are_no_rivals():
    """Among them a swap of their answers for the current soup's would often find one that looks better."""
    generator = np.random.default_rng(0)
    noise = 3 * generator.standard_normal((61, 100))
    folds, behind = deal(generator, 100), 4.5 * (np.arange(61) > 0)[:, None]
    assert fold_dependence(scores_of(3 + noise), folds) > 1.03
    assert fold_dependence(scores_of(3 + noise - behind), folds) == 1


def test_equal_weights_change_nothing():
    generator = np.random.default_rng(5)
    scores, folds = draw(generator, 8, 60, alike=0.9), deal(generator, 60)
    assert fold_dependence(scores, folds, weights=np.ones(60, dtype=np.float32)) == fold_dependence(scores, folds)


def test_differences_of_rounding_prove_nothing():
    generator = np.random.default_rng(0)
    gains = (1e-4 + 1e-6 * generator.standard_normal(1000)).astype(np.float32)
    assert paired_p(gains) > 0.4
    assert paired_p(np.ones(30, dtype=np.float32)) == 2.0**-30
