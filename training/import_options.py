"""What the options of `import` say: the network, its input and classes, what it was trained and is attacked with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from training.cli import Command
from training.data import ImageSet, find_files, find_test_folder
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.documents import Frozen, file_sha256
from training.folders import class_folders, composed
from training.foreign import Channels, Fitted
from training.manifest import Ingredient, InputSpec, Metric, Name, ThreatModel, parse_threat
from training.measure import accuracy_of, metrics_of
from training.models import Classifier
from training.parameters import Arg, Positional
from training.recipe import EvaluationSpec

SAME_CHANNELS = 1e-4  # a mean or std given on the command line agrees with the checkpoint's within this
MAX_CHANNEL = 2.0  # a larger one is on the scale 0 to 255


class ImportedFile(Frozen):
    """The checkpoint that was imported."""

    file: str = Field(description="its name, without folders")
    sha256: str
    path: str = Field(description="where in it the weights were: keys, then the prefix of their names")
    source: str | None = Field(description="where it comes from: a paper, a URL")
    license: str | None = Field(description="of the weights")


class ImportOptions(Command):
    """The options of `import`."""

    checkpoint: Annotated[Path, Positional] = Field(
        description="safetensors, or torch.save's; pickle with code is refused"
    )
    arch: str | None = Field(default=None, description="name in timm's registry; not needed with --into")
    arch_kwargs: str | None = Field(default=None, description="arguments of timm.create_model, as a JSON object")
    ingredient: Annotated[str, Arg(name="name")] = Field(description="what to call the ingredient")
    threat_model: Annotated[str, Arg(metavar="NORM:EPS")] = Field(
        description='what it was trained against: "Linf:8/255", "L2:0.5", "L1:12" or "none"'
    )
    input_size: tuple[int, ...] = Field(
        default=(), description="height and width in pixels; one number for a square; not needed with --into"
    )
    resize: Literal["stretch", "crop"] | None = Field(
        default=None, description="how images are brought to that size; default: stretch"
    )
    mean: Channels | None = Field(default=None, description="of RGB in [0, 1]; default: the checkpoint's")
    std: Channels | None = Field(default=None, description="of RGB in [0, 1]; default: the checkpoint's")
    classes: tuple[str, ...] = Field(
        default=(), description="names in the order of the logits, or a file with one a line; default: data's, sorted"
    )
    data: Path | None = Field(
        default=None,
        description="test images: one folder per class, or train/ and test/ (or val/) with such folders; with --into "
        "by default those of its recipe",
    )
    out: Path | None = Field(default=None, description="folder of the new base set")
    into: Path | None = Field(
        default=None, description="base set that gets the checkpoint as a further ingredient; it gets a new digest"
    )
    new_head: bool = Field(
        default=False,
        description="the checkpoint has other classes: keep its backbone, fit a last layer to the training images",
    )
    base_set: str | None = Field(default=None, description="name of the base set; default: that of the folder")
    key: str | None = Field(default=None, description="where in the checkpoint the weights are, e.g. model_ema")
    source: str | None = Field(default=None, description="where it comes from, for the manifest")
    license: str | None = Field(default=None, description="of the weights, for the manifest")
    evaluate: bool = Field(default=False, description="attack it as well")
    threat_models: Annotated[tuple[str, ...], Arg(metavar="NORM:EPS")] = Field(
        default=(),
        description="what it is evaluated against; default: by input size, at 32 pixels Linf:8/255 L2:0.5 L1:12",
    )
    num_images: int | None = Field(
        default=None, ge=1, description="use only so many test images, balanced over classes; default: all"
    )
    n: int = Field(default=500, ge=1, description="test images to attack")
    steps: int = Field(default=40, ge=1, description="APGD steps")
    device: DeviceName = Field(default=AUTO, description=DEVICE_HELP)


def described(options: ImportOptions) -> Ingredient:
    """Return a manifest's entry of the new ingredient, without metrics and SHA-256.

    Raises:
        ValueError: no name for an ingredient, or no threat model.
    """
    name = options.ingredient
    check_name("--name", name, TypeAdapter(Name).validate_python)
    threat = None if options.threat_model.lower() == "none" else parse_threat(options.threat_model)
    return Ingredient(
        name=name,
        file=f"{name}.safetensors",
        sha256="0" * 64,
        threat_model=threat,
        objective="adversarial" if threat else "nominal",
        parent=None,
    )


def check_name(option: str, name: str, validate: Callable[[str], str]) -> None:
    """Raise ValueError, naming the option, unless the name is valid."""
    try:
        validate(name)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(f"{option}: {reason}, got {name!r}") from None


def parse_kwargs(text: str | None) -> dict[str, JsonValue]:
    """Return the network's arguments, written as a JSON object; none where nothing is written."""
    try:
        kwargs = json.loads(text or "{}")
    except json.JSONDecodeError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise ValueError(f'--arch-kwargs: expected a JSON object such as {{"depth": 2}}, got {text!r}')
    return kwargs


def class_names(options: ImportOptions, data: Path, spec: InputSpec) -> tuple[str, ...]:
    """Return the classes in the order of the logits: those of the options, else the folders of the data.

    Args:
        options: of the import.
        data: folder of the images.
        spec: any input; files are found, not read.

    Raises:
        ValueError: no such folder, fewer than two classes, or a repeated name.
    """
    if options.new_head:
        if options.classes:
            raise ValueError("--classes: a new last layer has the classes of the data, leave this out")
        train = data / "train"
        return find_files(train if train.is_dir() else data, spec).class_names
    names = named_classes(options)
    if not names:
        root = find_test_folder(data) or data
        if not root.is_dir():
            raise ValueError(f"{root}: expected a folder with one folder per class, found no such folder")
        names = tuple(dict.fromkeys(composed(folder.name) for folder in class_folders(root)))
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"expected the different names of at least 2 classes, got {list(names)[:5]}")
    return names


def named_classes(options: ImportOptions) -> tuple[str, ...]:
    """Return the classes that the options name, in words or by a file with one a line."""
    names = options.classes
    if len(names) == 1 and Path(names[0]).is_file():
        names = tuple(line.strip() for line in Path(names[0]).read_text(encoding="utf-8").splitlines() if line.strip())
    return names


def input_spec(options: ImportOptions, mean: Channels, std: Channels) -> InputSpec:
    """Return the network's input as the options have it, with this mean and standard deviation."""
    if len(options.input_size) not in (1, 2):
        raise ValueError(f"--input-size: expected a height and a width, got {list(options.input_size)}")
    height, width = options.input_size[0], options.input_size[-1]
    return InputSpec(height=height, width=width, mean=mean, std=std, resize=options.resize or "stretch")


def agree(theirs: Channels, ours: Channels) -> bool:
    """Say whether two means, or two standard deviations, are the same up to rounding."""
    return max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) <= SAME_CHANNELS


def channels(options: ImportOptions, which: Literal["mean", "std"], found: Channels | None) -> Channels:
    """Return mean or std: the checkpoint's, else the one given.

    Raises:
        ValueError: there is neither, they differ, or they are on the scale 0 to 255.
    """
    given: Channels | None = getattr(options, which)
    if found is None and given is None:
        raise ValueError(
            f"{options.checkpoint}: holds no {which} of a normalisation: give --mean and --std (0 0 0 and 1 1 1 if the "
            "network takes images in [0, 1] as they are)"
        )
    if found and given and not agree(found, given):
        raise ValueError(f"--{which}: the checkpoint has {list(found)}, got {list(given)}")
    chosen = found or given
    assert chosen is not None
    if max(map(abs, chosen)) > MAX_CHANNEL:
        raise ValueError(f"{which}: expected values for pixels in [0, 1], got {list(chosen)}: divide them by 255")
    return chosen


def imported_file(options: ImportOptions, fitted: Fitted) -> ImportedFile:
    """Return what provenance says of the checkpoint."""
    return ImportedFile(
        file=options.checkpoint.name,
        sha256=file_sha256(options.checkpoint),
        path=fitted.path,
        source=options.source,
        license=options.license,
    )


def evaluation_spec(options: ImportOptions, default: tuple[ThreatModel, ...]) -> EvaluationSpec:
    """Return how the network is attacked: with the threat models of the options, else with the default ones."""
    threats = tuple(map(parse_threat, options.threat_models)) or default
    if len({threat.norm for threat in threats}) < len(threats):
        raise ValueError(f"--threat-models: expected at most one of each norm, got {list(options.threat_models)}")
    return EvaluationSpec(n=options.n, num_steps=options.steps, threat_models=threats)


def measured(
    options: ImportOptions, classifier: Classifier, test: ImageSet, spec: EvaluationSpec, *, device: str
) -> dict[str, Metric]:
    """Return the accuracy on all test images, and with --evaluate on attacked ones."""
    if options.evaluate:
        return metrics_of(classifier, spec, test, seed=options.seed, device=device)
    return {"clean": Metric(value=accuracy_of(classifier, test, device=device), n=len(test))}
