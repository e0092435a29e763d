from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from adapt.evidence.label_shift import (
    Calibration,
    calibrate,
    estimate,
    interval,
    log_posterior,
    log_ratio,
    settle,
    step,
    uncalibrated,
)
from adapt.evidence.scores import Doubles, Ints


class Drawn(NamedTuple):
    """Answers that are right about their own chances, in a world of equally frequent classes."""

    logits: Doubles
    labels: Ints


def draw(means: Doubles, frequencies: Doubles, n: int, rng: np.random.Generator) -> Drawn:
    """Normal clouds around the means of classes: log-likelihoods are known."""
    labels = rng.choice(len(frequencies), size=n, p=frequencies)
    x = means[labels] + rng.normal(size=(n, means.shape[1]))
    return Drawn(x @ means.T - 0.5 * np.square(means).sum(axis=1), labels)


def clouds(num_classes: int, distance: float, rng: np.random.Generator) -> Doubles:
    means = rng.normal(size=(num_classes, 16))
    return np.asarray(distance * means / np.linalg.norm(means, axis=1, keepdims=True))


def exact(num_classes: int) -> Calibration:
    return Calibration(1.0, np.zeros(num_classes), np.zeros((num_classes, num_classes)))


def distance(one: Doubles, other: Doubles) -> float:
    """Share of the images by which two mixtures differ."""
    return float(np.abs(one - other).sum() / 2)


EVEN = np.full(10, 0.1)
ZIPF = (1 / np.arange(1, 11)) / (1 / np.arange(1, 11)).sum()
FOUR = np.where(np.arange(10) < 4, 0.25, 0.0)


@pytest.mark.parametrize("frequencies", [EVEN, ZIPF, FOUR], ids=["even", "zipf", "four"])
def test_known_frequencies_are_found_again(frequencies: Doubles) -> None:
    rng = np.random.default_rng(1)
    logits, labels = draw(clouds(10, 2.5, rng), frequencies, 4000, rng)
    found = estimate(logits, exact(10))
    assert found.sum() == pytest.approx(1)
    assert distance(found, np.bincount(labels, minlength=10) / 4000) < 0.03


@pytest.mark.parametrize(("m", "lost"), [(50, 0.02), (200, 0.01), (1000, 0.005)])
def test_without_a_shift_hardly_anything_is_lost(m: int, lost: float) -> None:
    changes = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        means = clouds(10, 2.5, rng)
        shift = log_ratio(estimate(draw(means, EVEN, m, rng).logits, exact(10)))
        unseen, labels = draw(means, EVEN, 2000, rng)
        right = [(answers.argmax(axis=1) == labels).mean() for answers in (unseen, unseen + shift)]
        changes.append(right[1] - right[0])
    assert -lost < np.mean(changes) <= 0.002


@given(seed=st.integers(0, 10_000), m=st.integers(0, 200), num_classes=st.integers(2, 12))
@settings(max_examples=50, deadline=None)
def test_a_step_never_lowers_the_posterior_and_none_is_higher_at_the_end(seed: int, m: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    likelihoods = special.softmax(3 * rng.normal(size=(m, num_classes)), axis=1)
    known = rng.uniform(0.5, 5, num_classes)
    frequencies = rng.dirichlet(np.ones(num_classes)) + 1e-9
    frequencies /= frequencies.sum()
    for _ in range(20):
        updated = step(frequencies, likelihoods, known)
        before, after = (log_posterior(one, likelihoods, known) for one in (frequencies, updated))
        assert after >= before - 1e-9 * abs(before)
        frequencies = updated
    best = settle(likelihoods, known)
    top = log_posterior(best, likelihoods, known)
    assert best.sum() == pytest.approx(1)
    assert top >= log_posterior(frequencies, likelihoods, known) - 1e-4
    for _ in range(10):
        other = rng.dirichlet(np.ones(num_classes) * 3) * 0.1 + 0.9 * best
        assert top >= log_posterior(other, likelihoods, known) - 1e-4


def test_a_class_never_seen_stays_possible_and_zero_lies_in_its_interval() -> None:
    rng = np.random.default_rng(3)
    logits, _ = draw(clouds(10, 4.0, rng), FOUR, 500, rng)
    found = estimate(logits, exact(10))
    low, high = interval(found, logits, exact(10))
    assert (found[4:] > 0).all()
    assert (found[4:] < 0.02).all()
    assert (low[4:] < 0.001).all()
    assert (low <= found).all()
    assert (found <= high).all()
    assert np.isfinite(log_ratio(found)).all()


def test_intervals_hold_the_frequency_as_often_as_they_say() -> None:
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        means, frequencies = clouds(10, 2.0, rng), rng.dirichlet(np.full(10, 3.0))
        logits, _ = draw(means, frequencies, 300, rng)
        found = estimate(logits, exact(10))
        low, high = interval(found, logits, exact(10))
        held.append((low <= frequencies) & (frequencies <= high))
    assert 0.93 <= np.mean(held) <= 0.995


def test_intervals_take_in_what_the_calibration_does_not_know() -> None:
    """A classifier with a bias of its own, calibrated by 100 labels: without them the intervals are far wider."""
    held, widths = {"labels": [], "none": []}, {"labels": [], "none": []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        means, frequencies = clouds(10, 2.0, rng), rng.dirichlet(np.full(10, 3.0))
        bias = 0.7 * rng.normal(size=10)
        (logits, _), (labelled, labels) = draw(means, frequencies, 500, rng), draw(means, EVEN, 100, rng)
        known = {"labels": calibrate(labelled + bias, labels, temperature=1.0), "none": uncalibrated(10, 1.0)}
        for name, calibration in known.items():
            low, high = interval(estimate(logits + bias, calibration), logits + bias, calibration)
            held[name].append((low <= frequencies) & (frequencies <= high))
            widths[name].append(high - low)
    assert np.mean(held["labels"]) > 0.9
    assert np.mean(held["none"]) > 0.93
    assert np.mean(widths["none"]) > 1.5 * np.mean(widths["labels"])


def test_a_calibration_finds_bias_and_temperature_whatever_the_shares_of_the_labels() -> None:
    for shares in (EVEN, ZIPF):
        rng = np.random.default_rng(4)
        means = clouds(10, 2.5, rng)
        bias = rng.normal(size=10)
        logits, labels = draw(means, shares, 6000, rng)
        found = calibrate(2.0 * (logits - bias), labels, temperature=1.0)
        assert found.temperature == pytest.approx(2.0, rel=0.1)
        centred = found.bias - found.bias.mean() - (bias - bias.mean())
        assert np.abs(centred).max() < 0.4


def test_the_temperature_of_a_layer_fitted_to_the_labels_stays() -> None:
    rng = np.random.default_rng(5)
    logits, labels = draw(clouds(10, 2.5, rng), EVEN, 500, rng)
    assert calibrate(3.0 * logits, labels, temperature=1.0, is_fitted=True).temperature == 1.0
    assert calibrate(3.0 * logits, labels, temperature=1.0).temperature > 2.0


def test_classes_without_labels_are_not_taken_to_be_absent() -> None:
    """Labels of four classes, as an operator chose them; all ten are in the stream."""
    rng = np.random.default_rng(6)
    means = clouds(10, 3.0, rng)
    labelled, labels = draw(means, FOUR, 200, rng)
    calibration = calibrate(labelled, labels, temperature=1.0)
    assert (calibration.bias[4:] == 0).all()
    logits, _ = draw(means, EVEN, 1000, rng)
    assert distance(estimate(logits, calibration), EVEN) < 0.08


def test_labels_of_one_class_or_none_calibrate_nothing() -> None:
    for labels in (np.zeros(20, dtype=np.int64), np.zeros(0, dtype=np.int64)):
        found = calibrate(np.zeros((len(labels), 3)), labels, temperature=1.5)
        assert found.temperature == 1.5
        assert (found.bias == 0).all()


def test_labels_that_are_a_fair_draw_count_as_what_they_are() -> None:
    nothing = np.zeros((0, 3))
    counts = np.asarray([60.0, 30.0, 7.0])
    found = estimate(nothing, exact(3), counts=counts)
    np.testing.assert_allclose(found, (counts + 1) / 100)
    low, high = interval(found, nothing, exact(3), counts=counts)
    binomial = 1.96 * np.sqrt(found * (1 - found) / 100)
    np.testing.assert_allclose(high - low, 2 * binomial, rtol=0.15)


def test_a_thousand_classes() -> None:
    rng = np.random.default_rng(7)
    means = clouds(1000, 6.0, rng)
    frequencies = np.where(np.arange(1000) < 100, 1 / 100, 0.0)
    logits, _ = draw(means, frequencies, 1000, rng)
    labelled, labels = draw(means, np.full(1000, 1 / 1000), 1000, rng)
    calibration = calibrate(labelled, labels, temperature=1.0)
    found = estimate(logits, calibration)
    assert found.sum() == pytest.approx(1)
    assert found[:100].sum() > 3 * 0.1
    low, high = interval(found, logits, calibration)
    assert np.isfinite(low).all()
    assert np.isfinite(high).all()
    before, after = logits.argmax(axis=1) < 100, (logits + log_ratio(found)).argmax(axis=1) < 100
    assert after.mean() >= before.mean()
