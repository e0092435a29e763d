import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from adapt.documents.soup import AccuracySummary
from adapt.evidence.cross_fit import CrossFit
from adapt.evidence.decision import decide
from adapt.evidence.scores import (
    MIN_IMAGES,
    P_THRESHOLD,
    TEMPERATURES,
    Scores,
    balanced_weights,
    choose,
    cross_fit,
    summarise,
    temp_ce,
)
from adapt.evidence.significance import evidence, fold_dependence, labels_needed, paired_interval, paired_p


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


def test_held_out_losses_are_at_temperatures_that_the_other_folds_fitted():
    generator = np.random.default_rng(2)
    scores, folds = draw(generator, 6, 40), deal(generator, 40)
    fit = cross_fit(scores, folds)
    for fold in range(5):
        held_out = folds == fold
        _, temperatures = temp_ce(scores.losses[:, :, ~held_out])
        (chosen,) = np.unique(fit.chosen[held_out])
        assert np.array_equal(fit.current_losses[held_out], scores.losses[0, temperatures[0], held_out])
        assert np.array_equal(fit.candidate_losses[held_out], scores.losses[chosen, temperatures[chosen], held_out])
        assert np.array_equal(fit.candidate[held_out], scores.correct[chosen, held_out])


answers = arrays(np.bool_, 12)
cross_entropies = arrays(np.float32, 12, elements=st.floats(0, 60, width=32) | st.just(math.inf))


@given(cross_entropies, cross_entropies, answers, answers)
def test_evidence_is_bounded_and_changes_sign_when_the_soups_change_places(
    before: np.ndarray, after: np.ndarray, current: np.ndarray, candidate: np.ndarray
):
    nothing = np.zeros(12, dtype=np.int64)
    found = CrossFit(nothing, current, candidate, before, after).evidence
    swapped = CrossFit(nothing, candidate, current, after, before).evidence
    assert np.abs(found).max() <= 2
    assert np.array_equal(found, -swapped)
    assert np.all(found[candidate & ~current & (after <= before)] >= 1)


def test_evidence_counts_a_right_answer_as_one_nat():
    right, wrong = np.asarray([True]), np.asarray([False])
    assert evidence(np.asarray([-0.25], dtype=np.float32), right, wrong) == pytest.approx(1.25)
    assert evidence(np.asarray([7], dtype=np.float32), wrong, wrong) == pytest.approx(-1)


@given(arrays(np.float32, st.integers(5, 40), elements=st.floats(-2, 2, width=16)))
def test_p_value_is_that_of_students_paired_test(gains: np.ndarray):
    if gains.std() < 1e-2:
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
        rejected += paired_p(gains.astype(np.float32)) < P_THRESHOLD
    assert rejected <= stats.binom.ppf(0.999, 2000, P_THRESHOLD)


def test_a_soup_that_answers_alike_but_saves_cross_entropy_is_proven_sooner_than_by_its_answers():
    """Two or three images put right, and all others a little surer."""
    generator = np.random.default_rng(0)
    margins = 2 + generator.standard_normal(100)
    fit = cross_fit(scores_of(np.stack([margins, margins + 0.4])), deal(generator, 100))
    wins, losses = int((fit.candidate & ~fit.current).sum()), int((fit.current & ~fit.candidate).sum())
    assert stats.binom.sf(wins - 1, wins + losses, 0.5) > P_THRESHOLD
    assert paired_p(fit.evidence) < P_THRESHOLD


@pytest.mark.parametrize("gain", [0.1, 0.2])
def test_as_many_labels_as_needed_prove_the_gain_four_times_in_five(gain: float):
    generator = np.random.default_rng(0)
    seen = (gain - np.resize([-0.5, 0.5], 50)).astype(np.float32)
    needed = labels_needed(paired_p(seen), 50)
    assert needed is not None
    proven = [
        paired_p((gain + 0.5 * generator.standard_normal(needed)).astype(np.float32)) < P_THRESHOLD for _ in range(500)
    ]
    assert np.mean(proven) == pytest.approx(0.8, abs=0.06)


def test_fewer_labels_are_needed_the_stronger_the_evidence_and_no_number_is_given_without_any():
    found = [labels_needed(p, 100) for p in (0.01, 0.05, 0.2, 0.3)]
    assert found == sorted(found)
    assert labels_needed(0.05, 100, p_threshold=0.05) == pytest.approx(229, abs=1)
    assert [labels_needed(p, 100) for p in (0.499, 0.5, 0.9, 1.0)] == [None] * 4
    assert labels_needed(0.2, 100, p_threshold=0.01) > labels_needed(0.2, 100)


@given(arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 6)))
def test_balanced_weights_let_classes_that_occur_count_alike(labels: np.ndarray):
    weights = balanced_weights(labels)
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    sums = np.bincount(labels, weights=weights)
    assert sums[sums > 0] == pytest.approx(len(labels) / np.count_nonzero(sums), rel=1e-5)


def test_a_weight_of_three_is_an_image_seen_three_times():
    scores = draw(np.random.default_rng(3), 5, 20)
    times = np.random.default_rng(4).integers(1, 4, size=20)
    weights = (times / times.mean()).astype(np.float32)
    repeated = np.repeat(scores.losses, times, axis=2)
    assert temp_ce(scores.losses, weights)[0] == pytest.approx(temp_ce(repeated)[0], rel=1e-5)
    assert choose(scores.losses, weights=weights) == choose(repeated)


def test_balanced_accuracy_is_the_mean_over_classes_and_equal_weights_change_nothing():
    generator = np.random.default_rng(5)
    scores, folds, labels = draw(generator, 8, 60, alike=0.9), deal(generator, 60), np.arange(60) // 45
    fit = cross_fit(scores, folds, weights=balanced_weights(labels))
    summary = summarise(fit)
    recalls = [fit.candidate[labels == label].mean() for label in (0, 1)]
    assert summary.candidate == pytest.approx(np.mean(recalls))
    assert summary.interval[0] <= summary.candidate - summary.current <= summary.interval[1]
    equal = cross_fit(scores, folds, weights=np.ones(60, dtype=np.float32))
    assert summarise(equal) == summarise(cross_fit(scores, folds))
    ones = np.ones(60, dtype=np.float32)
    assert fold_dependence(scores, folds, weights=ones) == fold_dependence(scores, folds)


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
    nothing = np.zeros(n, dtype=np.float32)
    return summarise(CrossFit(np.zeros(n, dtype=np.int64), current, candidate, nothing, nothing))


WIN, DRAW = accuracy_of(30, 2, 100), accuracy_of(5, 4, 100)


def test_labels_needed_are_named_where_a_gain_is_seen_but_not_proven():
    assert WIN.labels_needed is None
    assert DRAW.labels_needed is not None
    assert accuracy_of(4, 5, 100).labels_needed is None
    decision = decide(DRAW, promote="auto", same=False, counts=[50, 50])
    assert f"about {DRAW.labels_needed:,} labelled images would show a gain of this size" in decision.reason
    assert AccuracySummary.model_validate(WIN.model_dump(exclude={"labels_needed"})) == WIN


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
        (WIN, {"counts": [5], "same": True}, "kept", "too few images.*got 5"),
        (WIN, {"counts": [95], "same": True}, "kept", "all 95 images are of one class"),
        (WIN, {"counts": [1, 95, 1, 1]}, "kept", "95 of 98 images are of one class: 3 of the others.*expected 5"),
        (WIN, {"counts": [95, 2, 3]}, "promoted", "better on held-out images"),
    ],
)
def test_decisions(accuracy, options: dict, state: str, reason: str):
    import re

    decision = decide(accuracy, **({"promote": "auto", "same": False, "counts": [50, 50]} | options))
    assert decision.state == state
    assert re.search(reason, decision.reason)
