"""The `import` command: a robust checkpoint made elsewhere becomes a base set of one ingredient."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro
from pydantic import Field, JsonValue, TypeAdapter, ValidationError

from training.bases import save_base_set
from training.cli import Command, Result
from training.data import ImageSet, balanced_indices, find_files, find_test_folder
from training.devices import pick_device
from training.documents import Frozen, file_sha256
from training.folders import class_folders, composed
from training.foreign import Channels, Fitted, load_weights
from training.manifest import (
    NORMS,
    Architecture,
    BaseSetName,
    Ingredient,
    InputSpec,
    Manifest,
    Metric,
    Name,
    ThreatModel,
)
from training.measure import accuracy_of, metrics_of
from training.models import Classifier, create_classifier
from training.provenance import provenance
from training.recipe import EvaluationSpec
from training.threat import default_threats

logger = logging.getLogger(__name__)

SAME_CHANNELS = 1e-4  # a mean or std given on the command line agrees with the checkpoint's within this
MAX_CHANNEL = 2.0  # a larger one is on the scale 0 to 255


class ImportedFile(Frozen):
    """The checkpoint that was imported."""

    file: str = Field(description="its name, without folders")
    sha256: str
    path: str = Field(description="where in it the weights were: keys, then the prefix of their names")
    source: str | None = Field(description="where it comes from: a paper, a URL")
    license: str | None = Field(description="of the weights")


class ImportRecipe(Frozen):
    """Stands where the recipe of a trained base set stands."""

    imported: ImportedFile
    evaluation: EvaluationSpec


class Import(Command):
    """Make a base set of one ingredient from a robust checkpoint, to train others from.

    Example: python -m training import linf.pt --arch saucier_resnet --name linf --threat-model Linf:8/255
    --input-size 32 --data .data/cifar10 --out bases/mine
    """

    name: ClassVar[str] = "import"
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")] = Field(
        description="safetensors, or torch.save's; pickle with code is refused"
    )
    arch: str = Field(description="name in timm's registry")
    arch_kwargs: str = Field(default="{}", description="arguments of timm.create_model, as a JSON object")
    ingredient: Annotated[str, tyro.conf.arg(name="name")] = Field(description="what to call the ingredient")
    threat_model: str = Field(description='what it was trained against: "Linf:8/255", "L2:0.5", "L1:12" or "none"')
    input_size: tuple[int, ...] = Field(description="height and width in pixels; one number for a square")
    resize: Literal["stretch", "crop"] = Field(default="stretch", description="how images are brought to that size")
    mean: Channels | None = Field(default=None, description="of RGB in [0, 1]; default: the checkpoint's")
    std: Channels | None = Field(default=None, description="of RGB in [0, 1]; default: the checkpoint's")
    classes: tuple[str, ...] = Field(
        default=(), description="names in the order of the logits, or a file with one a line; default: data's, sorted"
    )
    data: Path = Field(description="test images: one folder per class, or train/ and test/ (or val/) with such folders")
    out: Path = Field(description="folder of the new base set")
    base_set: str | None = Field(default=None, description="name of the base set; default: that of the folder")
    key: str | None = Field(default=None, description="where in the checkpoint the weights are, e.g. model_ema")
    source: str | None = Field(default=None, description="where it comes from, for the manifest")
    license: str | None = Field(default=None, description="of the weights, for the manifest")
    evaluate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = Field(default=False, description="attack it as well")
    threat_models: tuple[str, ...] = Field(
        default=(),
        description="what it is evaluated against; default: by input size, at 32 pixels Linf:8/255 L2:0.5 L1:12",
    )
    num_images: int | None = Field(
        default=None, ge=1, description="use only so many test images, balanced over classes; default: all"
    )
    n: int = Field(default=500, ge=1, description="test images to attack")
    steps: int = Field(default=40, ge=1, description="APGD steps")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:1; auto: cuda where there is one")

    def execute(self) -> Result:
        """Read, check, measure, write."""
        manifest = import_checkpoint(self)
        accuracies = ", ".join(
            f"{name} {metric.value:.3f} (n = {metric.n})" for name, metric in manifest.ingredients[0].metrics.items()
        )
        text = (
            f"{self.ingredient}: {accuracies}\nwrote {self.out}; next: python -m training run RECIPE --from {self.out}"
        )
        return Result(manifest.model_dump(mode="json"), text)


def import_checkpoint(options: Import) -> Manifest:
    """Write the base set and return its manifest.

    Raises:
        ValueError: an option, the checkpoint or the data does not fit; nothing is written.
        FileExistsError: the folder already holds something.
    """
    if options.out.exists() and any(options.out.iterdir()):
        raise FileExistsError(f"{options.out}: already exists; choose another --out or remove it")
    base_set = options.base_set or options.out.resolve().name
    _check_name("--base-set", base_set, TypeAdapter(BaseSetName).validate_python)
    _check_name("--name", options.ingredient, TypeAdapter(Name).validate_python)
    device = str(pick_device(options.device))
    architecture = Architecture(name=options.arch, kwargs=_kwargs(options.arch_kwargs))
    threat = None if options.threat_model.lower() == "none" else parse_threat(options.threat_model)
    class_names = _class_names(options)
    classifier = create_classifier(architecture, _input(options, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), len(class_names))
    fitted = load_weights(options.checkpoint, classifier.net, key=options.key)
    spec = _input(options, _channels(options, "mean", fitted.mean), _channels(options, "std", fitted.std))
    logger.info("weights from %r, mean %s, std %s", fitted.path, spec.mean, spec.std)
    classifier.net.load_state_dict(fitted.state_dict)
    classifier = Classifier(classifier.net, spec).eval()
    recipe = _recipe(options, fitted, spec)
    files = find_files(find_test_folder(options.data) or options.data, spec, class_names)
    test = files.subset(balanced_indices(files.labels, options.num_images or len(files), seed=options.seed)).load()
    metrics = _measure(classifier, test, recipe.evaluation, options, device)
    name = options.ingredient
    ingredient = Ingredient(
        name=name,
        file=f"{name}.safetensors",
        sha256="0" * 64,
        threat_model=threat,
        objective="adversarial" if threat else "nominal",
        parent=None,
        metrics=metrics,
    )
    manifest = Manifest(
        name=base_set,
        architecture=architecture,
        input=spec,
        class_names=class_names,
        ingredients=(ingredient,),
        default_coefficients={name: 1.0},
        provenance=provenance(recipe, test, seed=options.seed, seconds=0, device=device),
    )
    return save_base_set(options.out, manifest, {name: fitted.state_dict})


def parse_threat(text: str) -> ThreatModel:
    """Return the threat model written as "Linf:8/255".

    Raises:
        ValueError: not a norm, a colon and a radius, or a radius out of range.
    """
    norm, colon, eps = text.partition(":")
    if not colon or norm not in NORMS:
        raise ValueError(f"expected a threat model such as Linf:8/255, L2:0.5 or L1:12, got {text!r}")
    return ThreatModel.model_validate({"norm": norm, "eps": eps})


def _check_name(option: str, name: str, validate: Callable[[str], str]) -> None:
    try:
        validate(name)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ValueError(f"{option}: {reason}, got {name!r}") from None


def _kwargs(text: str) -> dict[str, JsonValue]:
    try:
        kwargs = json.loads(text)
    except json.JSONDecodeError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise ValueError(f'--arch-kwargs: expected a JSON object such as {{"depth": 2}}, got {text!r}')
    return kwargs


def _class_names(options: Import) -> tuple[str, ...]:
    names = options.classes
    if len(names) == 1 and Path(names[0]).is_file():
        names = tuple(line.strip() for line in Path(names[0]).read_text(encoding="utf-8").splitlines() if line.strip())
    if not names:
        root = find_test_folder(options.data) or options.data
        if not root.is_dir():
            raise ValueError(f"{root}: expected a folder with one folder per class, found no such folder")
        names = tuple(dict.fromkeys(composed(folder.name) for folder in class_folders(root)))
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"expected the different names of at least 2 classes, got {list(names)[:5]}")
    return names


def _input(options: Import, mean: Channels, std: Channels) -> InputSpec:
    if len(options.input_size) not in (1, 2):
        raise ValueError(f"--input-size: expected a height and a width, got {list(options.input_size)}")
    height, width = options.input_size[0], options.input_size[-1]
    return InputSpec(height=height, width=width, mean=mean, std=std, resize=options.resize)


def _channels(options: Import, which: Literal["mean", "std"], found: Channels | None) -> Channels:
    """Return mean or std: the checkpoint's, else the one given; both must agree."""
    given: Channels | None = getattr(options, which)
    if found is None and given is None:
        raise ValueError(
            f"{options.checkpoint}: holds no {which} of a normalisation: give --mean and --std (0 0 0 and 1 1 1 if the "
            "network takes images in [0, 1] as they are)"
        )
    if found and given and max(abs(a - b) for a, b in zip(found, given, strict=True)) > SAME_CHANNELS:
        raise ValueError(f"--{which}: the checkpoint has {list(found)}, got {list(given)}")
    channels = found or given
    assert channels is not None
    if max(map(abs, channels)) > MAX_CHANNEL:
        raise ValueError(f"{which}: expected values for pixels in [0, 1], got {list(channels)}: divide them by 255")
    return channels


def _recipe(options: Import, fitted: Fitted, spec: InputSpec) -> ImportRecipe:
    threats = tuple(map(parse_threat, options.threat_models)) or default_threats(spec.height, spec.width)
    if len({threat.norm for threat in threats}) < len(threats):
        raise ValueError(f"--threat-models: expected at most one of each norm, got {list(options.threat_models)}")
    imported = ImportedFile(
        file=options.checkpoint.name,
        sha256=file_sha256(options.checkpoint),
        path=fitted.path,
        source=options.source,
        license=options.license,
    )
    evaluation = EvaluationSpec(n=options.n, num_steps=options.steps, threat_models=threats)
    return ImportRecipe(imported=imported, evaluation=evaluation)


def _measure(
    classifier: Classifier, test: ImageSet, spec: EvaluationSpec, options: Import, device: str
) -> dict[str, Metric]:
    if options.evaluate:
        return metrics_of(classifier, spec, test, seed=options.seed, device=device)
    return {"clean": Metric(value=accuracy_of(classifier, test, device=device), n=len(test))}
