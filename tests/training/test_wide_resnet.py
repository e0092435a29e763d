import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.manifest import Architecture, InputSpec
from training.models import create_classifier

INPUT = InputSpec(height=32, width=32, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_wrn_28_10_has_the_published_size() -> None:
    net = create_classifier(Architecture(name="saucier_wide_resnet"), INPUT, 10).net
    assert sum(parameter.numel() for parameter in net.parameters()) == 36_479_194
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 == pytest.approx(5.25e9, rel=0.01)


def test_keys_are_those_of_public_checkpoints() -> None:
    architecture = Architecture(name="saucier_wide_resnet", kwargs={"depth": 16, "widen_factor": 2})
    keys = create_classifier(architecture, INPUT, 10).net.state_dict().keys()
    expected = {
        "conv1.weight", "block1.layer.0.bn1.running_mean", "block1.layer.0.convShortcut.weight",
        "block2.layer.1.conv2.weight", "block3.layer.1.bn2.weight", "bn1.bias", "fc.weight",
    }  # fmt: skip
    assert expected <= keys
    assert not any("layer.1.convShortcut" in key for key in keys)


@pytest.mark.parametrize("kwargs", [{"depth": 27}, {"depth": 4}, {"widen_factor": 0}])
def test_sizes_that_do_not_exist_are_refused(kwargs: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected depth 6 n"):
        create_classifier(Architecture(name="saucier_wide_resnet", kwargs=dict(kwargs)), INPUT, 10)
