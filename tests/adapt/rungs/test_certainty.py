"""What answers to images without labels say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapt.rungs.certainty import Guard, entropies, soft_likelihood_ratio, symmetric_cross_entropy, weigh


@given(seed=st.integers(0, 10_000), num_classes=st.integers(2, 12))
def test_entropies_lie_between_none_and_that_of_even_answers(seed: int, num_classes: int) -> None:
    logits = 5 * torch.randn(7, num_classes, generator=torch.Generator().manual_seed(seed))
    found = entropies(logits)
    assert (found >= -1e-6).all()
    assert (found <= math.log(num_classes) + 1e-5).all()
    torch.testing.assert_close(entropies(torch.zeros(1, num_classes)), torch.tensor([math.log(num_classes)]))
    torch.testing.assert_close(symmetric_cross_entropy(logits, logits), found, rtol=1e-4, atol=1e-5)


def test_surer_answers_have_a_lower_ratio_loss_until_they_are_sure_enough() -> None:
    logits = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [3.0, 0, 0], [20.0, 0, 0]], requires_grad=True)
    losses = soft_likelihood_ratio(logits)
    assert (losses.diff() < 0).all()
    losses[3].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-3


@given(seed=st.integers(0, 10_000))
def test_weights_do_not_depend_on_the_order_and_leave_out_what_is_like_the_mean(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, mean = 3 * torch.randn(20, 4, generator=generator), torch.tensor([0.7, 0.1, 0.1, 0.1])
    order = torch.randperm(20, generator=generator)
    found = weigh(logits, mean)
    torch.testing.assert_close(weigh(logits[order], mean).weights, found.weights[order], rtol=1e-4, atol=1e-5)
    assert found.mean.sum() == pytest.approx(1, abs=1e-5)
    alike = torch.cat([logits, mean.log()[None]])
    assert weigh(alike, mean).weights[-1] == 0


def test_a_sure_answer_unlike_the_mean_weighs_more_than_an_unsure_one() -> None:
    logits = torch.tensor([[5.0, 0, 0], [0, 5.0, 0], [0, 1.5, 0], [0, 0, 0.1]])
    weights = weigh(logits, torch.tensor([0.8, 0.1, 0.1])).weights
    assert weights[0] == 0
    assert weights[1] > weights[2]


def test_the_guard_minds_sure_answers_one_class_and_what_is_no_number() -> None:
    guard = Guard()
    even = torch.eye(4).repeat(16, 1)
    for _ in range(20):
        guard.see(2 * even)
    assert not guard.has_collapsed
    sure = Guard()
    for _ in range(60):
        sure.see(100 * even)
    assert sure.has_collapsed, "all answers are sure"
    one = Guard()
    one.see(2 * even)
    for _ in range(60):
        one.see(torch.tensor([[5.0, 0, 0, 0]]).repeat(64, 1))
    assert one.has_collapsed, "one class has taken over"
    broken = Guard()
    broken.see(torch.full((64, 4), torch.nan))
    assert broken.has_collapsed
