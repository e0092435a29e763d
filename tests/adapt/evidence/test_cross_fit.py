import numpy as np
import pytest

from adapt.evidence.cross_fit import Comparison, CrossFit, compare_answers
from adapt.evidence.scores import balanced_weights
from adapt.evidence.significance import paired_interval, paired_p

LEVEL = 0.025


def fit_of(n: int, *, judged: np.ndarray | None = None, weights: np.ndarray | None = None, seed: int = 0) -> CrossFit:
    generator = np.random.default_rng(seed)
    return CrossFit(
        chosen=np.zeros(n, dtype=np.int64),
        current=generator.random(n) < 0.5,
        candidate=generator.random(n) < 0.7,
        current_losses=generator.random(n).astype(np.float32),
        candidate_losses=generator.random(n).astype(np.float32),
        judged=np.ones(n, dtype=np.bool_) if judged is None else judged,
        weights=weights,
    )


def compared(fit: CrossFit, **options: object) -> Comparison:
    everything: dict[str, object] = {
        "fresh": np.ones(len(fit.judged), dtype=np.bool_),
        "dependence": 1.0,
        "threshold": LEVEL,
    }
    found = compare_answers(fit, **(everything | options))  # type: ignore[arg-type]
    assert found is not None
    return found


def test_accuracies_are_those_of_the_judged_images() -> None:
    judged = np.arange(80) % 4 != 0
    fit = fit_of(80, judged=judged)
    found = compared(fit, fresh=np.arange(80) < 30)
    assert found.current == pytest.approx(fit.current[judged].mean())
    assert found.candidate == pytest.approx(fit.candidate[judged].mean())
    assert len(fit.gains) == judged.sum() == 60
    assert (found.fresh, found.held_out) == (int(judged[:30].sum()), int(judged[30:].sum()))
    assert found.p_value == paired_p(fit.gains)


def test_nothing_is_said_where_no_image_can_judge() -> None:
    fit = fit_of(10, judged=np.zeros(10, dtype=np.bool_))
    assert compare_answers(fit, fresh=np.ones(10, dtype=np.bool_), dependence=1.0, threshold=LEVEL) is None


def test_dependent_folds_make_it_less_sure() -> None:
    fit = fit_of(100)
    plain, strict = compared(fit), compared(fit, dependence=1.2)
    assert plain.p_value < 0.5
    assert strict.p_value == paired_p(fit.gains, dependence=1.2) > plain.p_value
    assert strict.interval[0] < plain.interval[0] < plain.interval[1] < strict.interval[1]
    assert strict.error == pytest.approx(1.2 * plain.error)


def test_the_error_is_that_of_a_paired_difference() -> None:
    fit = fit_of(400)
    differences = fit.candidate.astype(float) - fit.current
    assert compared(fit).error == pytest.approx(differences.std() / 20, rel=1e-6)


def test_balanced_accuracy_is_the_mean_over_classes_and_equal_weights_change_nothing() -> None:
    labels = np.arange(60) // 45
    fit = fit_of(60, weights=balanced_weights(labels))
    found = compared(fit)
    assert found.candidate == pytest.approx(np.mean([fit.candidate[labels == label].mean() for label in (0, 1)]))
    assert found.interval[0] <= found.candidate - found.current <= found.interval[1]
    equal = compared(fit_of(60, weights=np.ones(60, dtype=np.float32)))
    assert equal == compared(fit_of(60))


def test_labels_needed_are_named_where_a_gain_is_seen_but_not_proven() -> None:
    found = compared(fit_of(100))
    assert found.labels_needed is None if found.p_value < LEVEL else found.labels_needed is not None
    assert compared(fit_of(100), threshold=found.p_value / 2).labels_needed is not None
    assert compared(fit_of(100), threshold=found.p_value * 1.01).labels_needed is None


def test_the_interval_is_of_wins_and_losses() -> None:
    fit = fit_of(50)
    wins, losses = int((fit.candidate & ~fit.current).sum()), int((fit.current & ~fit.candidate).sum())
    assert compared(fit).interval == pytest.approx(paired_interval(wins, losses, 50))
