"""The average, the groups with and without weight decay, and a step of each optimiser, computed by hand."""

from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from tests.conftest import BATCHNORM_NET, INPUT
from tests.training.test_train import PHASES
from training.augmentation import Part
from training.compute import share_statistics
from training.models import Classifier, create_classifier
from training.optimisation import MovingAverage, learning_rate, make_optimizer
from training.recipe import IngredientSpec


def spec(**changes: Any) -> IngredientSpec:
    return IngredientSpec.model_validate(PHASES[0] | changes)


class Counted(nn.Module):
    """One weight, one averaged buffer, one counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 1))
        self.register_buffer("statistic", torch.zeros(2))
        self.register_buffer("counter", torch.tensor(0))

    def set(self, value: float) -> None:
        with torch.no_grad():
            for name, tensor in self.state_dict().items():
                tensor.fill_(int(value) if name == "counter" else value)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        # d = 1/10, then 2/11 or the limit: 0.9 * 10 = 9, then d * 9 + (1 - d) * 20, ...
        (0.9, [9.0, 18.0, 3 / 12 * 18 + 9 / 12 * 40]),
        (0.15, [9.0, 0.15 * 9 + 0.85 * 20, 0.15 * 18.35 + 0.85 * 40]),
        (0.0, [10.0, 20.0, 40.0]),
    ],
)
def test_the_average_is_that_of_its_definition(decay: float, expected: list[float]) -> None:
    net = Counted()
    classifier = Classifier(net, INPUT)
    average = MovingAverage(classifier, decay)
    found = []
    for value in (10, 20, 40):
        net.set(value)
        average.update(classifier)
        state = average.state_dict()
        assert int(state["counter"]) == value  # counters are copied
        assert torch.equal(state["weight"].flatten(), state["statistic"])
        assert state["weight"].unique().numel() == 1
        found.append(float(state["statistic"][0]))
    assert found == pytest.approx(expected, rel=1e-6)
    assert set(state) == {"weight", "statistic", "counter"}
    assert float(net.weight[0].detach()) == 40  # the weights in training are left alone


def test_the_average_goes_on_from_a_step() -> None:
    net = Counted()
    classifier = Classifier(net, INPUT)
    whole, resumed = MovingAverage(classifier, 0.9), MovingAverage(classifier, 0.9)
    for step, value in enumerate((10, 20, 40, 80)):
        if step == 3:
            resumed.load_state_dict(whole.state_dict(), step=step)
            net.set(-5)  # what the weights were meanwhile does not matter
            net.set(value)
            resumed.update(classifier)
        net.set(value)
        whole.update(classifier)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key])


def test_the_average_answers_in_eval_mode_and_takes_no_gradients() -> None:
    classifier = create_classifier(BATCHNORM_NET, INPUT, 3).train()
    average = MovingAverage(classifier, 0.9)
    average.update(classifier)
    assert not any(part.training for part in average.classifier.modules())
    assert not any(parameter.requires_grad for parameter in average.classifier.parameters())
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def decayed(net: nn.Module, **changes: Any) -> dict[str, float]:
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = make_optimizer(spec(**changes), net).param_groups
    found = {names[parameter]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert found.keys() == set(names.values())
    return {name: decay for name, decay in found.items() if decay > 0}


def test_weights_decay_and_embeddings_biases_and_norms_do_not() -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2)
    expected = {
        "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight", "head.weight",
    }  # fmt: skip
    assert {"cls_token", "pos_embed"} < {name for name, _ in net.named_parameters()}
    assert decayed(net, weight_decay=0.3, optimizer="adamw") == dict.fromkeys(expected, 0.3)


def test_a_batchnorm_net_decays_by_convolutions_and_the_last_layer() -> None:
    net = create_classifier(BATCHNORM_NET, INPUT, 3).net
    kernels = {name for name, parameter in net.named_parameters() if parameter.ndim > 1}
    assert decayed(net) == dict.fromkeys(kernels, 5e-4)
    assert decayed(net, weight_decay=0) == {}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_without_a_gradient_a_step_shrinks_weights_and_leaves_biases(optimizer: str) -> None:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(2.0)
    made = make_optimizer(spec(optimizer=optimizer, lr=0.1, weight_decay=0.5, momentum=0.0), layer)
    layer.weight.grad, layer.bias.grad = torch.zeros(1, 1), torch.zeros(1)
    made.step()
    assert float(layer.weight.detach()) == pytest.approx(2 * (1 - 0.1 * 0.5))
    assert float(layer.bias.detach()) == 2


def test_optimizers_have_the_recipes_settings() -> None:
    layer = nn.Linear(1, 1)
    adamw = make_optimizer(spec(optimizer="adamw", momentum=0.8, second_moment=0.7), layer)
    assert all(group["betas"] == (0.8, 0.7) for group in adamw.param_groups)
    sgd = make_optimizer(spec(momentum=0.8), layer)
    assert all((group["momentum"], group["nesterov"]) == (0.8, True) for group in sgd.param_groups)


def test_the_schedule_rises_then_falls() -> None:
    cosine = [learning_rate(step, 100, 0.2, ()) for step in range(100)]
    assert max(cosine) == pytest.approx(1, abs=0.06)
    assert cosine.index(max(cosine)) in (19, 20)
    assert cosine[0] == pytest.approx(1 / 21)
    assert cosine[60] == pytest.approx(0.5)  # half of the fall
    assert cosine[-1] < 0.01
    steps = [learning_rate(step, 100, 0.0, (0.5, 0.75)) for step in range(100)]
    assert [steps[0], steps[49], steps[50], steps[75]] == pytest.approx([1, 1, 0.1, 0.01])


def test_norms_over_several_gpus_keep_their_activation() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    classifier = Classifier(net, INPUT).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = classifier(images)
        share_statistics(classifier, Part(0, 2), torch.device("cuda"))
        converted = [module for module in classifier.modules() if isinstance(module, nn.SyncBatchNorm)]
        assert len(converted) == 2
        assert torch.equal(classifier(images), before)


@pytest.mark.parametrize(("part", "device"), [(Part(0, 1), "cuda"), (Part(0, 2), "cpu")])
def test_norms_stay_where_one_process_or_cpus_train(part: Part, device: str) -> None:
    classifier = create_classifier(BATCHNORM_NET, INPUT, 3)
    share_statistics(classifier, part, torch.device(device))
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in classifier.modules())
