import numpy as np
import pytest
from scipy import stats

from adapt.evidence.posterior import PRIOR, Component, posterior_of_gain


def test_one_normal_part_is_updated_by_hand() -> None:
    found = posterior_of_gain(0.06, 0.04, harm=0.02, prior=(Component(1.0, 0.0, 0.03),))
    shrink = 0.03**2 / (0.03**2 + 0.04**2)
    mean, width = shrink * 0.06, (0.03**2 * (1 - shrink)) ** 0.5
    assert found.mean == pytest.approx(mean)
    assert found.chance_of_harm == pytest.approx(stats.norm.cdf(-0.02, mean, width))
    assert found.harm == 0.02


def test_of_two_parts_the_one_that_foretold_the_gain_counts_for_more() -> None:
    prior = (Component(0.5, -0.2, 0.01), Component(0.5, 0.2, 0.01))
    assert posterior_of_gain(0.19, 0.05, prior=prior).mean > 0.19
    assert posterior_of_gain(-0.19, 0.05, prior=prior).mean < -0.19


def test_its_chances_are_those_of_gains_drawn_from_the_prior() -> None:
    """Among cases in which it says that harm has a chance of 10 to 30 %, that share is harmful."""
    generator = np.random.default_rng(0)
    weights, means, deviations = (np.asarray(part) for part in zip(*PRIOR, strict=True))
    parts = generator.choice(len(PRIOR), size=6000, p=weights)
    truth = generator.normal(means[parts], deviations[parts])
    seen = generator.normal(truth, 0.04)
    said = np.asarray([posterior_of_gain(gain, 0.04).chance_of_harm for gain in seen])
    some = (said > 0.1) & (said < 0.3)
    assert some.sum() > 500
    assert (truth[some] < -0.02).mean() == pytest.approx(said[some].mean(), abs=0.05)


def test_a_surer_gain_has_less_chance_of_harm() -> None:
    chances = [posterior_of_gain(gain, 0.03).chance_of_harm for gain in (-0.05, 0.0, 0.05, 0.1)]
    assert chances == sorted(chances, reverse=True)
    assert posterior_of_gain(0.05, 0.01).chance_of_harm < posterior_of_gain(0.05, 0.1).chance_of_harm
    assert posterior_of_gain(0.0, 0.05, harm=0.1).chance_of_harm < posterior_of_gain(0.0, 0.05).chance_of_harm
