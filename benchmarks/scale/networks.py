"""Networks with random weights as base sets of four ingredients: for what they cost, not for what they know."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.settings import PACKAGE_ROOT
from training.bases import StateDict, save_base_set
from training.data import ImageSet
from training.images import pixel_hash, to_input
from training.manifest import MANIFEST_NAME, Architecture, Ingredient, InputSpec, Manifest, Provenance
from training.measure import moments_of
from training.models import Classifier, batch_norms, create_classifier

INPUT = InputSpec(
    height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize="crop"
)  # the usual one of ImageNet networks
NETWORKS = {
    "resnet50": Architecture(name="resnet50"),
    "convnext-tiny": Architecture(name="convnext_tiny"),
    "vit-b16": Architecture(name="vit_base_patch16_224"),
}
BUNDLED = {"photos": PACKAGE_ROOT / "bases" / "photos"}
ROWS = (*BUNDLED, *NETWORKS)
CLASSES = tuple(f"class-{number}" for number in range(10))
INGREDIENTS = ("nominal", "linf", "l2", "l1")
NUM_IMAGES = 16  # random ones that statistics and moments are measured on
DISTANCE = 0.02  # of an ingredient from the first one, in standard deviations of each tensor

SMALL = Architecture(name="saucier_resnet", kwargs={"widths": [8, 16], "depths": [1, 1]})
SMALL_INPUT = InputSpec(height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def check_rows(rows: Sequence[str]) -> None:
    """Raise ValueError unless each row is one of `ROWS` or the folder of a base set, and none is named twice."""
    for row in rows:
        if row not in ROWS and not (Path(row) / MANIFEST_NAME).is_file():
            raise ValueError(f"--rows: expected some of {', '.join(ROWS)}, or folders of base sets, got {row!r}")
    if not rows or len(set(map(row_name, rows))) < len(rows):
        raise ValueError(f"--rows: expected at least one, and each with a name of its own, got {list(rows)}")


def row_name(row: str) -> str:
    """Return what a row is called in the table."""
    return Path(row).resolve().name


def find_base_set(row: str, folder: Path, *, seed: int) -> Path:
    """Return the base set of a row: one that is there, or one made for it.

    Args:
        row: one of `ROWS`, or the folder of a base set.
        folder: an empty one, for a base set that is made.
        seed: of its weights.
    """
    if row in NETWORKS:
        return make_base_set(folder / row, NETWORKS[row], INPUT, seed=seed)
    return BUNDLED.get(row, Path(row))


def make_small_base_set(folder: Path, *, seed: int) -> Path:
    """Write a base set that costs next to nothing, to see what a worker costs without one; returns its folder."""
    return make_base_set(folder / "small", SMALL, SMALL_INPUT, seed=seed)


def make_base_set(folder: Path, architecture: Architecture, spec: InputSpec, *, seed: int) -> Path:
    """Write a base set of four ingredients with random weights, near to one another, and return its folder.

    BatchNorm has the statistics of random images, so that activations keep their size; a network without BatchNorm gets
    moments, as a trained base set has them: the search then does what it does for a trained one.
    """
    generator = torch.Generator().manual_seed(seed)
    images = _random_images(spec, seed=seed)
    torch.manual_seed(seed)
    classifier = create_classifier(architecture, spec, len(CLASSES))
    first = _with_statistics(classifier, images)
    state_dicts = {name: _moved(first, generator) if number else first for number, name in enumerate(INGREDIENTS)}
    manifest = Manifest(
        name=folder.name,
        architecture=architecture,
        input=spec,
        class_names=CLASSES,
        ingredients=tuple(_ingredient(name) for name in INGREDIENTS),
        default_coefficients={name: float(name == INGREDIENTS[0]) for name in INGREDIENTS},
        provenance=Provenance(
            recipe={"random_weights": True},
            seed=seed,
            git_commit=None,
            git_dirty=None,
            versions={},
            hardware="not trained",
            data_hash=hashlib.sha256(images.images.tobytes()).hexdigest(),
            seconds=0,
        ),
    )
    found = moments_of(manifest, state_dicts, images)
    if found is None:
        save_base_set(folder, manifest, state_dicts)
    else:
        moments, described = found
        save_base_set(folder, manifest.model_copy(update={"moments": described}), state_dicts, moments=moments)
    return folder


def _random_images(spec: InputSpec, *, seed: int) -> ImageSet:
    shape = (NUM_IMAGES, spec.height, spec.width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(NUM_IMAGES, dtype=np.int64) % len(CLASSES)
    return ImageSet(pixels, labels, CLASSES, tuple(map(pixel_hash, pixels)))


@torch.no_grad()
def _with_statistics(classifier: Classifier, images: ImageSet) -> StateDict:
    """Return the weights, with the BatchNorm statistics of one pass over the images; no branch is scaled to nothing."""
    norms = batch_norms(classifier.net).values()
    for norm in norms:
        if norm.affine:
            norm.weight.fill_(1)
        norm.momentum = 1.0  # the statistics of the last batch, instead of a running mean
        norm.train()
    if norms:
        classifier(torch.from_numpy(to_input(images.images)))
    return {key: tensor.clone() for key, tensor in classifier.net.state_dict().items()}


def _moved(state_dict: StateDict, generator: torch.Generator) -> StateDict:
    """Return weights a little aside; statistics of BatchNorm and counters stay."""

    def move(key: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or key.endswith(("running_mean", "running_var")):
            return tensor.clone()
        spread = DISTANCE * (tensor.std(correction=0) + 1e-3)
        return tensor + spread * torch.randn(tensor.shape, generator=generator)

    return {key: move(key, tensor) for key, tensor in state_dict.items()}


def _ingredient(name: str) -> Ingredient:
    return Ingredient(
        name=name, file=f"{name}.safetensors", sha256="0" * 64, threat_model=None, objective="nominal", parent=None
    )
