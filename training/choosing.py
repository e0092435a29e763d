"""The choices of a recipe for a folder of photographs, with reasons: input, network, split, epochs, batch, radii."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch

from training.contents import SHOWN, Contents
from training.foreign import load_weights
from training.manifest import Architecture, InputSpec, Norm
from training.models import create_classifier
from training.splits import TEST_FRACTION, VALIDATION_FRACTION
from training.start import PRETRAINED
from training.threat import default_threats

ARCH = "tf_efficientnet_lite0"
SIDES = (160, 128, 96)  # of the input, in pixels; 224 takes twice the time of 160
MAX_ASPECT = 1.7  # of longer to shorter side: of longer images too little is left of the centre, so they are squeezed
PART_NAMES = {
    "test",
    "testing",
    "training",
    "val",
    "valid",
    "validation",
}  # that are no classes if nothing else is there
MIN_PER_CLASS = 10  # images of a class where tests and validation are held out of them
MIN_PER_CLASS_BESIDE_TEST = 5  # where the folder has a test part
PRETRAINING_IMAGES = 14_000  # that the first stage sees: 12 epochs of 1,170 photographs, as in the recipe photos
MIN_EPOCHS, MAX_EPOCHS = 2, 30  # of the first stage
STEPS_PER_EPOCH = 8  # at least; smaller sets get a smaller batch
BATCHES = (64, 32, 16)
LARGE_MEGAPIXELS = 4.0  # larger photographs are decoded once, and kept in memory at the input size ...
MAX_MEMORY = 4e9  # ... if they need no more than so many bytes


@dataclass(frozen=True)
class Choice:
    """One thing that was decided, for the reader of the output."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Plan:
    """The choices of the recipe."""

    arch: str
    weights: str  # a file, or "pretrained"
    input_spec: InputSpec
    test_fraction: float
    num_train: int
    num_test: int
    batch_size: int
    epochs: dict[str, float]  # by stage
    radii: dict[Norm, float]
    is_in_memory: bool
    choices: tuple[Choice, ...]


def choose(contents: Contents, *, arch: str, weights: Path | None, side: int | None) -> Plan:
    """Decide everything that a recipe says.

    Args:
        contents: of the folder.
        arch: network, by its name in timm's registry.
        weights: file to start from; None for timm's own.
        side: height and width of the input; None to choose by the images.

    Raises:
        ValueError: too few classes or images; timm has no such network, or no weights for it; the file does not fit.
    """
    _check_enough(contents)
    spec, reason = _input(contents, arch, side)
    chosen = [Choice("input", f"{spec.width} x {spec.height}, {spec.resize}", reason)]
    _check_network(arch, spec, weights, len(contents.class_names))
    why = "small, pretrained on ImageNet, quick on CPUs" if arch == ARCH else "as you said"
    chosen.append(Choice("network", arch, why))
    start = PRETRAINED if weights is None else str(weights)
    from_hub = "from timm's hub; where none can be reached, name a file with --weights"
    chosen.append(Choice("start", start, "the file fits" if weights is not None else from_hub))
    test_fraction = 0.0 if "test" in contents.parts else TEST_FRACTION
    num_train, num_test, split = _split(contents)
    chosen.append(split)
    batch_size = next((size for size in BATCHES if num_train >= STEPS_PER_EPOCH * size), BATCHES[-1])
    chosen.append(Choice("batch", str(batch_size), f"at least {STEPS_PER_EPOCH} steps an epoch where that is possible"))
    epochs = _epochs(num_train)
    listed = ", ".join(f"{name} {number:g}" for name, number in epochs.items())
    chosen.append(Choice("epochs", listed, f"by {num_train:,} training images; fewer images are seen more often"))
    radii = {threat.norm: _rounded(threat.eps / 2) for threat in default_threats(spec.height, spec.width)}
    shown = ", ".join(f"{norm} {spelled(norm, eps)}" for norm, eps in radii.items())
    chosen.append(Choice("radii", shown, f"half the usual ones at {spec.width} x {spec.height} pixels"))
    fits = num_train * spec.height * spec.width * 3 <= MAX_MEMORY
    is_in_memory = contents.megapixels > LARGE_MEGAPIXELS and fits
    why = "large photographs, decoded once" if is_in_memory else "random crops of the original files"
    chosen.append(Choice("images", "in memory" if is_in_memory else "from files", why))
    return Plan(
        arch, start, spec, test_fraction, num_train, num_test, batch_size, epochs, radii, is_in_memory, tuple(chosen)
    )


def _check_enough(contents: Contents) -> None:
    names = contents.class_names
    if set(names) <= PART_NAMES:
        raise ValueError(
            f"{contents.root}: expected one folder per class, or train/ with such folders, found {list(names)}"
        )
    if len(names) < 2:
        raise ValueError(f"{contents.root}: expected at least 2 classes, one folder each, got {list(names)}")
    least = MIN_PER_CLASS_BESIDE_TEST if "test" in contents.parts else MIN_PER_CLASS
    counts = contents.counts()
    few = [name for name in names if counts[name] < least]
    if few:
        listed = ", ".join(f"{name} {counts[name]}" for name in few[:SHOWN])
        more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
        raise ValueError(
            f"{contents.root}: expected at least {least} readable training images of each class, got {listed}{more}: "
            "add some, or move the folder away"
        )
    if "test" in contents.parts and not len(contents.parts["test"]):
        raise ValueError(f"{contents.root}: expected readable test images, got none")


def _input(contents: Contents, arch: str, side: int | None) -> tuple[InputSpec, str]:
    """Return the network's input, and the reason for its size."""
    short = contents.short_side
    chosen = side or next((size for size in SIDES if size <= short), SIDES[-1])
    reason = f"the median image has {short} pixels on its shorter side"
    resize: Literal["crop", "stretch"] = "crop"
    if contents.aspect > MAX_ASPECT:
        resize = "stretch"
        reason += f", {contents.aspect:.1f} times as many on the longer one: cropping would lose too much"
    config: Any = timm.get_pretrained_cfg(arch) if timm.is_model(arch) else None
    mean, std = getattr(config, "mean", None) or (0.5,) * 3, getattr(config, "std", None) or (0.5,) * 3
    return InputSpec(height=chosen, width=chosen, mean=tuple(mean), std=tuple(std), resize=resize), reason


def _check_network(arch: str, spec: InputSpec, weights: Path | None, num_classes: int) -> None:
    """Build the network and fit the weights, so that errors come before the data is loaded."""
    with torch.random.fork_rng(devices=[]):
        net = create_classifier(Architecture(name=arch), spec, num_classes).net
    if weights is not None:
        load_weights(weights, net, head="new")
    elif not timm.is_model_pretrained(arch):
        raise ValueError(f"--arch: timm has no pretrained weights of {arch!r}: name a file with --weights")


def _split(contents: Contents) -> tuple[int, int, Choice]:
    """Return the numbers of training and test images, and how all are split; copies of an image may change them."""
    left, numbers, held = list(contents.counts().values()), dict[str, int](), []
    for part, fraction in (("test", TEST_FRACTION), ("validation", VALIDATION_FRACTION)):
        if part in contents.parts:
            numbers[part] = len(contents.parts[part])
            continue
        out = [max(1, round(fraction * count)) for count in left]
        left = [count - gone for count, gone in zip(left, out, strict=True)]
        numbers[part] = sum(out)
        held.append(f"{fraction:g} for {part}")
    why = f"of each class {', of the rest '.join(held)}" if held else "all parts have folders"
    shown = f"{sum(left):,} / {numbers['validation']:,} / {numbers['test']:,}"
    return sum(left), numbers["test"], Choice("split", shown, f"training / validation / test; {why}")


def _epochs(num_train: int) -> dict[str, float]:
    """Return the epochs of each stage: those of the recipe photos for its number of images, more for fewer images.

    `nominal` goes on for as long as `linf` and `l2` together, so that no ingredient was trained longer than another.
    """
    first = min(MAX_EPOCHS, max(MIN_EPOCHS, round(PRETRAINING_IMAGES / num_train)))
    linf, short = round(first * 5 / 3), max(1, round(first / 2))
    return {"pretraining": first, "nominal": linf + short, "linf": linf, "l2": short, "l1": short}


def _rounded(eps: float) -> float:
    return float(f"{eps:.3g}")


def spelled(norm: Norm, eps: float) -> str:
    """Return a radius as a recipe has it: 2/255, 0.714."""
    return f"{round(eps * 255, 2):g}/255" if norm == "Linf" else f"{eps:g}"
