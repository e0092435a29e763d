import pytest
import torch

from adapt.networks.batchnorm import has_batchnorm
from adapt.networks.folding import (
    FoldError,
    _logits,
    check_same_logits,
    find_bn_pairs,
    fold,
    fold_base,
    folded_state_dicts,
    fuse,
    fused_state_dict,
    probe_images,
)
from tests.conftest import shake
from training.bases import BaseSet
from training.manifest import Architecture, InputSpec
from training.models import Classifier, create_classifier

SPEC = InputSpec(height=32, width=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
# name -> (keyword arguments, BatchNorm layers, of which follow a convolution directly and alone)
NETS: dict[str, tuple[dict[str, object], int, int]] = {
    "saucier_resnet": ({}, 9, 9),
    "resnet18": ({}, 20, 20),
    "resnetv2_18": ({"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32], "stem_chs": 8}, 9, 4),
    "saucier_wide_resnet": ({"depth": 16, "widen_factor": 2}, 13, 7),
    "densenet121": ({"block_config": [2, 2], "growth_rate": 8}, 11, 5),
    "vit_tiny_patch16_224": ({"depth": 2, "embed_dim": 48, "num_heads": 3}, 0, 0),
    "convnext_atto": ({"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, 0, 0),
}


def make(name: str) -> Classifier:
    torch.manual_seed(0)
    classifier = create_classifier(Architecture(name=name, kwargs=NETS[name][0]), SPEC, 5)
    shake(classifier, seed=1, scale=0.3)
    return classifier


@pytest.mark.parametrize("name", NETS)
def test_folding_changes_no_logit_and_no_layout(name: str):
    classifier = make(name)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    expected = _logits(classifier, images)
    before = classifier.net.state_dict()
    pairs = find_bn_pairs(classifier, probe_images(classifier, 32, 32))
    folded = fold(classifier.net, before, pairs)
    assert [(key, tensor.shape, tensor.dtype) for key, tensor in folded.items()] == [
        (key, tensor.shape, tensor.dtype) for key, tensor in before.items()
    ]
    other = make(name)
    other.net.load_state_dict(folded)
    check_same_logits(expected, _logits(other, images), "folded")
    fused = fuse(classifier.net, pairs)
    fused.load_state_dict(fused_state_dict(folded, pairs))
    with torch.no_grad():
        check_same_logits(expected, fused((images - classifier.mean) / classifier.std), "fused")


@pytest.mark.parametrize("name", NETS)
def test_batchnorm_is_found_where_it_directly_follows_a_convolution(name: str):
    classifier = make(name)
    _, num_layers, num_pairs = NETS[name]
    pairs = find_bn_pairs(classifier, probe_images(classifier, 32, 32))
    assert len(pairs) == num_pairs
    assert has_batchnorm(classifier.net) == (num_layers > 0)
    fused = fuse(classifier.net, pairs)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules()) == num_layers - num_pairs


@pytest.mark.parametrize("name", ["saucier_resnet", "densenet121"])
def test_no_statistics_are_left_after_folding(name: str):
    classifier = make(name)
    pairs = find_bn_pairs(classifier, probe_images(classifier, 32, 32))
    folded = fold(classifier.net, classifier.net.state_dict(), pairs)
    for key, tensor in folded.items():
        if key.endswith("running_mean"):
            assert (tensor == 0).all()
        if key.endswith("running_var"):
            assert torch.equal(tensor, torch.full_like(tensor, 1 - 1e-5))
    for bn in pairs:
        assert (folded[f"{bn}.weight"] == 1).all()


class Shortcut(torch.nn.Module):
    """A convolution whose output is read past its BatchNorm too: its scale must stay where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.bn = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.head((y + self.bn(y)).mean(dim=(2, 3)))


class Shared(torch.nn.Module):
    """One convolution before two BatchNorms, at two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3)
        self.bn1 = torch.nn.BatchNorm2d(3)
        self.bn2 = torch.nn.BatchNorm2d(3)
        self.head = torch.nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn2(self.conv(self.bn1(self.conv(x)))).mean(dim=(2, 3)))


class InPlace(torch.nn.Module):
    """An in-place activation between convolution and BatchNorm: the tensor is the same object, its values are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, bias=False)
        self.bn = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bn(torch.relu_(self.conv(x))).mean(dim=(2, 3)))


@pytest.mark.parametrize("net", [Shortcut, Shared, InPlace])
def test_a_convolution_that_something_else_reads_is_left_alone(net: type[torch.nn.Module]):
    torch.manual_seed(0)
    classifier = Classifier(net(), SPEC).eval()
    shake(classifier, seed=2, scale=0.3)
    probe = probe_images(classifier, 32, 32)
    assert find_bn_pairs(classifier, probe) == {}
    expected = _logits(classifier, probe)
    classifier.net.load_state_dict(fold(classifier.net, classifier.net.state_dict(), {}))
    check_same_logits(expected, _logits(classifier, probe), "reduced to the affine map")


def test_a_convolution_with_a_bias_folds():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5)
    )
    classifier = Classifier(net, SPEC).eval()
    probe = torch.rand(2, 3, 32, 32)
    _logits(classifier, probe)
    shake(classifier, seed=2, scale=0.3)
    expected, pairs = _logits(classifier, probe), find_bn_pairs(classifier, probe)
    assert pairs == {"1": "0"}
    classifier.net.load_state_dict(fold(net, net.state_dict(), pairs))
    assert (classifier.net.state_dict()["0.bias"] == 0).all()
    check_same_logits(expected, _logits(classifier, probe), "folded")


def test_a_wrong_fold_is_noticed():
    expected = torch.randn(4, 5)
    check_same_logits(expected, expected * (1 + 1e-6), "rounding")
    with pytest.raises(FoldError, match="logits moved by"):
        check_same_logits(expected, expected * 1.01, "a scale left out")
    with pytest.raises(FoldError, match="logits moved by"):
        check_same_logits(expected, torch.full_like(expected, torch.nan), "not a number")


def test_the_whole_base_set_folds_and_layernorm_stays(base: BaseSet, ln_base: BaseSet):
    folded = fold_base(base)
    assert len(folded.pairs) == 6
    assert folded.state_dicts.keys() == base.state_dicts.keys()
    assert folded_state_dicts(ln_base) == ln_base.state_dicts


def test_the_folded_soup_is_not_the_soup_of_raw_weights(base: BaseSet):
    """Else there would be no mode to choose."""
    from adapt.networks.mixing import mix

    coefficients = torch.full((4,), 0.25)
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = []
    for rows in (base.state_dicts, fold_base(base).state_dicts):
        classifier = base.model()
        classifier.net.load_state_dict(mix(list(rows.values()), coefficients))
        logits.append(_logits(classifier, images))
    assert (logits[0] - logits[1]).abs().max() > 1e-3
