import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adapt.evidence.scores import Scores, balanced_weights, choose, temp_ce
from tests.adapt.evidence.draws import draw, scores_of


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


def test_scores_of_differing_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(C, T, n\)"):
        Scores(np.zeros((2, 8, 5), dtype=np.float32), np.zeros((2, 4), dtype=bool))


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


def test_only_an_eligible_soup_is_chosen():
    losses = draw(np.random.default_rng(0), 4, 30).losses
    best = choose(losses).candidate
    assert choose(losses, np.arange(4) != best).candidate != best
