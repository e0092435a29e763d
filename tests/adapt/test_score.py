import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adapt.score import (
    MIN_IMAGES,
    P_THRESHOLD,
    TEMPERATURES,
    CrossFit,
    Scores,
    choose,
    cross_fit,
    decide,
    fold_dependence,
    mcnemar_p,
    paired_interval,
    summarise,
    temp_ce,
)
from adapt.soup import AccuracySummary


def scores_of(margins: np.ndarray) -> Scores:
    """Two-class soups from their margins (C, n): right where positive."""
    scaled = -margins[:, None, :] / np.asarray(TEMPERATURES)[:, None]
    return Scores(np.logaddexp(0, scaled).astype(np.float32), margins > 0)


def draw(generator: np.random.Generator, num_soups: int, n: int, *, alike: float = 0.0) -> Scores:
    """Soups that are all right with probability .69; `alike` is the correlation of their margins."""
    shared, own = generator.standard_normal(n), generator.standard_normal((num_soups, n))
    return scores_of(3 * (0.5 + math.sqrt(alike) * shared + math.sqrt(1 - alike) * own))


def deal(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.permutation(np.arange(n) % 5)


def test_temp_ce_does_not_depend_on_the_scale_of_the_logits():
    margins = np.random.default_rng(0).standard_normal((1, 50)) + 0.5
    bold = scores_of(margins * 2**0.5)
    (plain,), (position,) = temp_ce(scores_of(margins).losses)
    (scaled,), (bolder,) = temp_ce(bold.losses)
    assert scaled == pytest.approx(plain, rel=1e-6)
    assert bolder == position + 1


def test_equals_go_to_the_first_so_the_current_soup_stays():
    margins = np.random.default_rng(0).standard_normal(30)
    assert choose(scores_of(np.stack([margins] * 4)).losses).candidate == 0


def test_an_unusable_soup_is_never_chosen():
    scores = draw(np.random.default_rng(0), 3, 20)
    scores.losses[:2] = math.inf
    assert choose(scores.losses).candidate == 2
    scores.losses[2] = math.inf
    with pytest.raises(ValueError, match="no candidate gives finite logits"):
        choose(scores.losses)


def test_held_out_images_have_no_say_in_their_own_choice():
    generator = np.random.default_rng(1)
    scores, folds = draw(generator, 6, 40), deal(generator, 40)
    before = cross_fit(scores, folds)
    changed = scores.losses.copy()
    changed[:, :, folds == 2] = generator.uniform(0, 50, changed[:, :, folds == 2].shape)
    after = cross_fit(Scores(changed, scores.correct), folds)
    assert np.array_equal(before.chosen[folds == 2], after.chosen[folds == 2])


def test_cross_fitting_needs_two_folds():
    with pytest.raises(ValueError, match="two folds"):
        cross_fit(draw(np.random.default_rng(0), 2, 5), np.zeros(5, dtype=np.int64))


def test_scores_of_differing_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(C, T, n\)"):
        Scores(np.zeros((2, 8, 5), dtype=np.float32), np.zeros((2, 4), dtype=bool))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_p_value_is_the_binomial_tail(wins: int, losses: int):
    tail = sum(math.comb(wins + losses, heads) for heads in range(wins, wins + losses + 1)) / 2 ** (wins + losses)
    assert mcnemar_p(wins, losses) == pytest.approx(tail)
    assert mcnemar_p(wins + 1, losses) <= mcnemar_p(wins, losses)
    assert mcnemar_p(wins, losses, dependence=1.2) >= mcnemar_p(wins, losses)


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


@pytest.mark.parametrize("alike", [0.0, 0.9])
@pytest.mark.parametrize("n", [20, 100])
def test_held_out_accuracy_is_unbiased_where_the_naive_one_is_not(n: int, alike: float):
    generator = np.random.default_rng(n)
    truth = float(stats.norm.cdf(0.5))
    held_out, naive = [], []
    for _ in range(400):
        scores = draw(generator, 30, n, alike=alike)
        held_out.append(cross_fit(scores, deal(generator, n)).candidate.mean())
        naive.append(scores.accuracy[choose(scores.losses).candidate])
    standard_error = np.std(held_out) / math.sqrt(400)
    assert abs(np.mean(held_out) - truth) < 3.5 * standard_error
    assert np.mean(naive) - truth > 0.02


@pytest.mark.parametrize(("num_soups", "alike", "n"), [(149, 0.9, 100), (149, 0.9, 20), (30, 0.0, 100), (5, 0.0, 300)])
def test_false_promotions_stay_at_the_level_when_current_is_as_good(num_soups: int, alike: float, n: int):
    generator = np.random.default_rng(num_soups + n)
    draws, promoted = 250, 0
    for seed in range(draws):
        scores, folds = draw(generator, num_soups, n, alike=alike), deal(generator, n)
        dependence = fold_dependence(scores, folds, seed=seed, num_flips=100)
        accuracy = summarise(cross_fit(scores, folds), dependence=dependence)
        promoted += decide(accuracy, promote="auto", same=False, counts=[n // 2, n - n // 2]).state == "promoted"
    assert promoted <= stats.binom.ppf(0.999, draws, P_THRESHOLD)


def test_a_clear_gain_is_promoted_nearly_always():
    generator = np.random.default_rng(0)
    promoted = 0
    for seed in range(50):
        scores, folds = draw(generator, 30, 200, alike=0.9), deal(generator, 200)
        margins = 3 * (0.5 + generator.standard_normal(200))
        better = scores_of(np.stack([margins, margins + 1.2]))
        both = Scores(
            np.concatenate([better.losses[:1], scores.losses, better.losses[1:]]),
            np.concatenate([better.correct[:1], scores.correct, better.correct[1:]]),
        )
        accuracy = summarise(cross_fit(both, folds), dependence=fold_dependence(both, folds, seed=seed))
        promoted += accuracy.p_value < P_THRESHOLD
    assert promoted > 45


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


def accuracy_of(wins: int, losses: int, n: int) -> AccuracySummary:
    current, candidate = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    candidate[:wins], current[wins : wins + losses] = True, True
    return summarise(CrossFit(np.zeros(n, dtype=np.int64), current, candidate))


WIN, DRAW = accuracy_of(30, 2, 100), accuracy_of(5, 4, 100)


@pytest.mark.parametrize(
    ("accuracy", "options", "state", "reason"),
    [
        (WIN, {}, "promoted", r"better on held-out images: accuracy 0\.300 against 0\.020"),
        (DRAW, {}, "kept", "not shown to be better"),
        (WIN, {"p_threshold": 0.0}, "kept", "not below 0"),
        (WIN, {"promote": "never"}, "kept", "promote=never"),
        (DRAW, {"promote": "always"}, "promoted", "promote=always"),
        (None, {"promote": "always", "counts": [1]}, "promoted", "nothing could be held out"),
        (WIN, {"same": True}, "kept", "current soup is the best"),
        (WIN, {"counts": [100]}, "kept", "of one class"),
        (WIN, {"counts": [5, 4]}, "kept", f"too few images.*got 9, expected {MIN_IMAGES}"),
        (None, {"counts": [1]}, "kept", "too few images"),
    ],
)
def test_decisions(accuracy, options: dict, state: str, reason: str):
    import re

    decision = decide(accuracy, **({"promote": "auto", "same": False, "counts": [50, 50]} | options))
    assert decision.state == state
    assert re.search(reason, decision.reason)
