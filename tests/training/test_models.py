import copy

import pytest
import timm
import torch
from pydantic import JsonValue

from training.manifest import Architecture, InputSpec
from training.models import Classifier, create_classifier, timm_arguments

STAGES: dict[str, JsonValue] = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_sizes": [4, 4]}


LEVIT: dict[str, JsonValue] = {"embed_dim": [16, 32], "depth": [1, 1], "num_heads": [1, 2], "key_dim": 8}
SMALL: dict[str, JsonValue] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# Families that fix positions or windows at creation, cut down where timm lets us.
FIXED: dict[str, dict[str, JsonValue]] = {
    "flexivit_small": SMALL,
    "gmlp_ti16_224": {},
    "resmlp_12_224": {},
    "convit_tiny": SMALL | {"local_up_to_layer": 1},
    "tnt_s_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads_outer": 2, "num_heads_inner": 2, "inner_dim": 8},
    "pit_ti_224": {"base_dims": [8, 8, 8], "depth": [1, 1, 1]},
    "nest_tiny": {},
    "visformer_tiny": {"embed_dim": 48, "depth": [1, 1, 1], "init_channels": 8, "num_heads": 2, "group": 4},
    "levit_128s": {},
    "hiera_tiny_224": {"embed_dim": 16, "stages": [1, 1, 1, 1]},
    "coatnet_nano_rw_224": {},
    "test_coatnet": {},
    "crossvit_tiny_240": {"img_scale": [1, 1]},
    "xcit_nano_12_p16_224": SMALL,
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
}


def spec_of(size: int) -> InputSpec:
    return InputSpec(height=size, width=size, mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.3))


@pytest.mark.parametrize(("name", "kwargs"), FIXED.items(), ids=list(FIXED))
def test_networks_with_a_fixed_grid_are_told_the_input_size(name: str, kwargs: dict[str, JsonValue]) -> None:
    classifier = create_classifier(Architecture(name=name, kwargs=kwargs), spec_of(96), 3)
    assert classifier(torch.rand(2, 3, 96, 96)).shape == (2, 3)


def test_the_recipe_may_say_the_size_and_others_are_not_told() -> None:
    told = Architecture(name="vit_tiny_patch16_224", kwargs={"img_size": 64})
    assert timm_arguments(told, spec_of(96)) == {"img_size": 64}
    for name in ("resnet18", "saucier_resnet", "mobilevit_xxs"):
        assert timm_arguments(Architecture(name=name), spec_of(96)) == {}
    tagged = Architecture(name="vit_tiny_patch16_224.augreg_in21k")
    assert timm_arguments(tagged, spec_of(96)) == {"img_size": (96, 96)}


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("efficientformer_l1", {}, r"at 96x96 pixels \(timm's own size is 224x224\): The size of tensor a"),
        ("resnet18.none", {}, r"Invalid pretrained tag \(none\)"),
        ("sam2_hiera_tiny", {"embed_dim": 16, "stages": [1, 1, 1, 1], "global_att_blocks": [3]}, "modulo by zero"),
        ("resnet18", {"global_pool": ""}, r"expected logits \(1, 3\), got \(1, 3, 3, 3\)|at 96x96 pixels"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name: str, kwargs: dict[str, JsonValue], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        create_classifier(Architecture(name=name, kwargs=kwargs), spec_of(96), 3)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(name="tiny_vit_5m_224", kwargs=STAGES),
        Architecture(name="levit_128s", kwargs=LEVIT),
    ],
    ids=lambda architecture: architecture.name,
)
@torch.no_grad()
def test_logits_follow_position_biases_that_change_in_eval_mode(architecture: Architecture) -> None:
    classifier = create_classifier(architecture, spec_of(64), 3)
    copied = copy.deepcopy(classifier)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for one in (classifier, copied):
        before = one(images)
        for name, tensor in one.net.state_dict().items():
            if name.endswith("attention_biases"):
                tensor.normal_(std=3)
        fresh = timm.create_model(architecture.name, num_classes=3, **timm_arguments(architecture, spec_of(64)))
        fresh.load_state_dict(one.net.state_dict())
        after = one(images)
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, Classifier(fresh, spec_of(64)).eval()(images))
