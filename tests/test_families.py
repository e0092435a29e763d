"""timm's families from end to end: tried, bundled, equal in ONNX Runtime, swapped and recalibrated; or refused early.

A network that cannot be trained or served must be refused by `check_network`, which every training calls before its
first step. Every other one must do all that the service does with it.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
from pydantic import JsonValue

from adapt.documents.patch import make_patch
from adapt.networks.prepared import PreparedBase
from deploy.bundle import build_bundle
from deploy.parity import RELATIVE_TOLERANCE, TOLERANCE, TorchReference
from deploy.runtime import Bundle
from tests.conftest import make_base_set
from training.bases import add_moments, load_base_set, rewrite_manifest
from training.data import ImageSet
from training.images import to_input
from training.manifest import Architecture, InputSpec
from training.measure import moments_of
from training.models import create_classifier
from training.trial import check_network, take_step

SIZE = 64
NAMES = ("linf", "nominal")
NUM_IMAGES = 40

TINY: dict[str, JsonValue] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# A small network of each family, cut down where timm lets us.
SERVED: dict[str, dict[str, JsonValue]] = {
    "resnet10t": {},
    "gernet_s": {},
    "cs3darknet_s": {},
    "cait_xxs24_224": {"depth": 2},
    "coat_lite_tiny": {},
    "convit_tiny": TINY | {"local_up_to_layer": 1},
    "convnext_atto": {},
    "davit_tiny": {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 32, 32], "num_heads": [1, 2, 2, 2]},
    "deit_tiny_patch16_224": {"depth": 2},
    "densenet121": {"block_config": [2, 2, 2, 2]},
    "dla46_c": {},
    "dpn48b": {},
    "edgenext_xx_small": {},
    "efficientformerv2_s0": {},
    "tf_efficientnet_lite0": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {},
    "eva02_tiny_patch14_224": {"depth": 2},
    "fastvit_t8": {},
    "gcvit_xxtiny": {},
    "ghostnet_050": {},
    "hgnetv2_b0": {},
    "hiera_tiny_224": {"embed_dim": 16, "stages": [1, 1, 1, 1]},
    "inception_next_atto": {},
    "levit_128s": {},
    "mambaout_femto": {},
    "test_maxvit": {},
    "poolformerv2_s12": {},
    "mixer_s32_224": {},
    "mobilenetv3_small_050": {},
    "mobilevit_xxs": {},
    "test_nfnet": {},
    "pit_ti_224": {"base_dims": [8, 8, 8], "depth": [1, 1, 1]},
    "pvt_v2_b0": {},
    "regnetx_002": {},
    "repghostnet_050": {},
    "resnest14d": {},
    "legacy_seresnet18": {},
    "sequencer2d_s": {"layers": [1, 1, 1, 1]},
    "shvit_s1": {},
    "skresnet18": {},
    "starnet_s1": {},
    "swiftformer_xs": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "swinv2_tiny_window8_256": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
    "swinv2_cr_tiny_224": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]},
    "tnt_s_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads_outer": 2, "num_heads_inner": 2, "inner_dim": 8},
    "visformer_tiny": {"embed_dim": 48, "depth": [1, 1, 1], "init_channels": 8, "num_heads": 2, "group": 4},
    "vit_tiny_patch16_224": {"depth": 2},
    "vit_relpos_small_patch16_224": TINY,
    "samvit_base_patch16": TINY | {"global_attn_indexes": [1]},
    "ese_vovnet19b_slim_dw": {},
    "xcit_nano_12_p16_224": {"depth": 2},
    "beit_base_patch16_224": TINY,
}

# What is refused, and why.
REFUSED: dict[str, tuple[dict[str, JsonValue], str]] = {
    "crossvit_tiny_240": ({}, "The size of tensor a"),  # two scales of patches fit few sizes
    "inception_v3": ({}, "Kernel size can't be greater than actual input size"),
    "efficientformer_l1": ({}, "The size of tensor a"),  # its table of positions has one size
}


SPEC = InputSpec(height=SIZE, width=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def with_moments(folder: Path) -> None:
    """Measure the moments of a base set, where its network has layers that they move."""
    base = load_base_set(folder)
    images = ImageSet(pixels(120), np.arange(120) % 3, base.manifest.class_names, tuple(map(str, range(120))))
    found = moments_of(base.manifest, base.state_dicts, images)
    if found is not None:
        rewrite_manifest(folder, add_moments(base, *found))


def agree(found: np.ndarray, expected: np.ndarray, allowance: float = 1.0) -> bool:
    """Say if logits differ by rounding alone, by `deploy.parity`'s tolerance times an allowance."""
    tolerance = max(TOLERANCE, RELATIVE_TOLERANCE * np.abs(expected).max())
    return bool(np.abs(found - expected).max() <= allowance * tolerance)


def walk(name: str, kwargs: dict[str, JsonValue], folder: Path) -> None:
    """Do what training, serving and adaptation do with a network; raise where something is wrong."""
    architecture = Architecture(name=name, kwargs=kwargs)
    take_step(create_classifier(architecture, SPEC, 3), (3, SIZE, SIZE), 3)  # a bundle's graph is the rest
    base_folder = make_base_set(
        folder / "base",
        architecture=architecture,
        spec=SPEC,
        names=NAMES,
        moved=0.2,
        seen=pixels(NUM_IMAGES),
    )
    with_moments(base_folder)
    base = load_base_set(base_folder)
    bundle = Bundle.open(build_bundle(base_folder, folder / "bundles"))  # compared with torch in each BatchNorm mode
    prepared, reference = PreparedBase(base), TorchReference(base)
    images = pixels(NUM_IMAGES)
    some = to_input(images[:3])
    soups = [dict(zip(NAMES, row, strict=True)) for row in ((0.5, 0.5), (1.25, -0.25))]
    answers = []
    for soup in soups:  # one session after the other, as a swap makes them
        answers.append(bundle.session(soup).run(some))
        assert agree(answers[-1], reference.logits(reference.mix(soup, "folded"), some))
    assert not agree(answers[0], answers[1])
    if prepared.can_recalibrate:
        prepared.recalibrator.run((0.5, 0.5), [prepared.inputs(images // 2)], NUM_IMAGES)  # darker than in training
        patch = make_patch(prepared.recalibrator.statistics(), recalibrated=NUM_IMAGES, rungs=["statistics"])
        found = bundle.session(soups[0], bn_mode="raw", patch=patch.tensors()).run(some)
        # Statistics far from those of training let rounding grow.
        assert agree(found, reference.logits(reference.mix(soups[0], "raw", patch), some), 10)
        assert not agree(found, answers[0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kwargs"), SERVED.items(), ids=list(SERVED))
def test_a_family_is_served_and_adapted(name: str, kwargs: dict[str, JsonValue], tmp_path: Path) -> None:
    try:
        walk(name, kwargs, tmp_path)
    finally:
        shutil.rmtree(tmp_path)  # the bundles of all would be gigabytes


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_family_is_refused_before_it_is_trained(name: str) -> None:
    kwargs, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason) as caught:
        check_network(Architecture(name=name, kwargs=kwargs), SPEC, 3)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_at_least_forty_families_are_swept() -> None:
    modules = {timm.models._registry._model_to_module[name] for name in SERVED}
    assert len(modules) >= 40
    assert not SERVED.keys() & REFUSED.keys()
