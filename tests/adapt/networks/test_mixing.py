import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.networks.mixing import FlatModel, mix
from training.bases import BaseSet, StateDictMismatch
from training.models import Classifier


def rows(base: BaseSet) -> list[dict[str, torch.Tensor]]:
    return list(base.state_dicts.values())


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key], theirs[key])
        and (not ours[key].is_floating_point() or torch.equal(torch.signbit(ours[key]), torch.signbit(theirs[key])))
        for key in ours
    )


@pytest.mark.parametrize("position", range(4))
def test_one_hot_gives_the_ingredient_bit_for_bit(base: BaseSet, position: int):
    one_hot = [float(position == other) for other in range(4)]
    assert equal(mix(rows(base), torch.tensor(one_hot)), rows(base)[position])
    model = FlatModel(base.model().net, rows(base))
    model.set([0.25] * 4)
    model.set(one_hot)
    assert equal(model.net.state_dict(), rows(base)[position])


def test_one_hot_keeps_the_sign_of_zero():
    ingredients = [{"w": torch.tensor([-0.0, 1.0])}, {"w": torch.tensor([3.0, -2.0])}]
    assert torch.signbit(mix(ingredients, torch.tensor([1.0, 0.0]))["w"]).tolist() == [True, False]


def test_equal_ingredients_give_themselves_back(base: BaseSet):
    same = [rows(base)[0]] * 3
    soup = mix(same, torch.tensor([0.7, -0.4, 0.7], dtype=torch.float64))
    assert all(torch.allclose(soup[key].float(), same[0][key].float(), rtol=1e-6, atol=1e-7) for key in soup)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.permutations(range(4)))
def test_order_changes_rounding_only(base: BaseSet, free: list[float], order: list[int]):
    coefficients = torch.tensor([*free, 1 - sum(free)], dtype=torch.float64)
    if coefficients[-1] < 0:
        coefficients = coefficients.abs() / coefficients.abs().sum()
    ours = mix(rows(base), coefficients)
    theirs = mix([rows(base)[position] for position in order], coefficients[torch.tensor(order)])
    assert all(torch.allclose(ours[key], theirs[key], rtol=1e-6, atol=1e-7) for key in ours)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-0.25, 1.25), min_size=3, max_size=3))
def test_flat_model_is_the_mixed_state_dict(base: BaseSet, free: list[float]):
    coefficients = [*free, 1 - sum(free)]
    model = FlatModel(base.model().net, rows(base))
    if not model.usable(torch.tensor([coefficients], dtype=torch.float64))[0]:
        with pytest.raises(ValueError, match="running variance"):
            mix(rows(base), torch.tensor(coefficients, dtype=torch.float64))
        return
    expected = mix(rows(base), torch.tensor(coefficients, dtype=torch.float64))
    model.set(coefficients)
    found = model.net.state_dict()
    assert all(torch.allclose(found[key].float(), expected[key].float(), rtol=1e-5, atol=1e-6) for key in expected)


def test_a_flat_model_answers_like_the_ingredient(base: BaseSet, ln_base: BaseSet):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for base_set in (base, ln_base):
        for position, name in enumerate(base_set.state_dicts):
            classifier = base_set.model(name)
            model = FlatModel(base_set.model().net, list(base_set.state_dicts.values()))
            model.set([float(position == other) for other in range(4)])
            with torch.no_grad():
                found = model.net(
                    ((images - classifier.mean) / classifier.std).contiguous(memory_format=torch.channels_last)
                )
                assert torch.allclose(found, classifier(images), atol=1e-5)


def test_integer_buffers_come_from_the_first_ingredient():
    ingredients = [
        {"steps": torch.tensor(3), "w": torch.ones(2)},
        {"steps": torch.tensor(9), "w": torch.ones(2)},
    ]
    soup = mix(ingredients, torch.tensor([0.0, 1.0]))
    assert soup["steps"] == 3
    assert soup["steps"].dtype == torch.int64


def test_half_precision_comes_back_as_half_precision():
    ingredients = [{"w": torch.tensor([1.0], dtype=torch.float16)}, {"w": torch.tensor([2.0], dtype=torch.float16)}]
    soup = mix(ingredients, torch.tensor([0.5, 0.5]))
    assert soup["w"].dtype == torch.float16
    assert soup["w"] == 1.5


def test_differing_state_dicts_are_named(base: BaseSet):
    other = dict(rows(base)[0])
    del other["head.bias"]
    with pytest.raises(StateDictMismatch, match=r"head\.bias is missing"):
        mix([rows(base)[0], other], torch.tensor([0.5, 0.5]))
    with pytest.raises(StateDictMismatch, match=r"head\.bias is missing"):
        FlatModel(base.model().net, [rows(base)[0], other])


def test_the_number_of_coefficients_is_checked(base: BaseSet):
    with pytest.raises(ValueError, match="each of 4 ingredients, got 3"):
        mix(rows(base), torch.ones(3) / 3)


def test_a_negative_running_variance_is_refused():
    ingredients = [{"bn.running_var": torch.tensor([1.0])}, {"bn.running_var": torch.tensor([3.0])}]
    with pytest.raises(ValueError, match=r"bn\.running_var.*fold BatchNorm"):
        mix(ingredients, torch.tensor([2.0, -1.0]))


def test_the_callers_network_is_left_alone(base: BaseSet):
    classifier: Classifier = base.model()
    before = {key: tensor.clone() for key, tensor in classifier.net.state_dict().items()}
    model = FlatModel(classifier.net, rows(base))
    model.set([0.1, 0.2, 0.3, 0.4])
    assert equal(before, classifier.net.state_dict())
    assert np.isfinite(model.flat.numpy()).all()
