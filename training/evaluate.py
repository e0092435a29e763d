"""`saucier evaluate`: attack every ingredient of a base set on its test images."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationError
from torch import nn

from training.bases import BaseSet, load_base_set
from training.cli import Command, Result
from training.data import ImageSet, balanced_indices, find_test_folder, load_folder
from training.device_names import AUTO, DEVICE_HELP, DeviceName
from training.devices import pick_device
from training.documents import first_error
from training.journal import Journal
from training.manifest import Manifest, parse_threat
from training.nearest import meant
from training.parameters import Arg, Positional
from training.record import check_record, write_record
from training.robustness import (
    APGD_LOSSES,
    QUICK_STEPS,
    STRONG_LOSSES,
    STRONG_RESTARTS,
    STRONG_STEPS,
    AttackName,
    Evaluation,
    Losses,
    as_input,
    evaluate_classifier,
)
from training.splits import DataSpec, Splits, load_splits
from training.threat import NORMS, Norm, ThreatModel, default_threats

__all__ = ["APGD_LOSSES", "Evaluate", "evaluate_classifier", "evaluation_threats", "load_images"]

logger = logging.getLogger(__name__)

_CHANGED = (
    "{}: expected the files that the recipe split into training and test images, found that some were added, removed "
    "or edited since, so that training images would be tested: bring back the folder as it was"
)


class Evaluate(Command):
    """Attack every ingredient of a base set: clean, robust and union accuracy, each with its 95 % interval.

    Example: saucier evaluate bases/cifar10-small --data .data/cifar10 --n 1000 --strong --state runs/strong
    """

    name: ClassVar[str] = "evaluate"
    folder: Annotated[Path, Positional] = Field(description="the base set")
    data: Path | None = Field(
        default=None,
        description="the recipe's data folder (its test part is used), or any folder with one folder per class; "
        "default: where the recipe found its data",
    )
    n: int = Field(default=1000, ge=1, description="test images, balanced over classes and drawn by the seed")
    strong: bool = Field(
        default=False,
        description="targeted DLR loss (L1: cross-entropy first), every restart against every target; may take hours",
    )
    threat_models: Annotated[tuple[str, ...], Arg(metavar="NORM:EPS")] = Field(
        default=(), description="other radii, such as Linf:4/255 L2:1"
    )
    only: tuple[str, ...] = Field(default=(), description="these ingredients alone")
    attack: AttackName = Field(default="apgd", description="apgd: adaptive; pgd: plain, weaker")
    steps: int | None = Field(default=None, ge=1, description="steps of the attack; default 40, strong 100")
    restarts: int | None = Field(default=None, ge=1, description="restarts, per target; default 1, strong 5")
    state: Path | None = Field(default=None, description="folder that an interrupted evaluation continues from")
    record: Path | None = Field(default=None, description="new file, .jsonl or .csv, with one line per image")
    batch_size: int = Field(default=250, ge=1, description="images attacked at once")
    device: DeviceName = Field(default=AUTO, description=DEVICE_HELP)

    def execute(self) -> Result:
        """Evaluate."""
        if self.strong and self.attack != "apgd":
            raise ValueError(f"--strong is apgd with harder losses, got --attack {self.attack}: leave one out")
        check_record(self.record)
        device = str(pick_device(self.device))
        base = load_base_set(self.folder)
        threats = _overridden(evaluation_threats(base.manifest), self.threat_models)
        test = load_images(base.manifest, self.data)
        positions = balanced_indices(test.labels, self.n, seed=self.seed)
        chosen = test.subset(positions)
        images, labels = as_input(chosen)
        settings = self._settings(threats)
        evaluations = {}
        for name, model in self._models(base):
            journal = self._journal(name, {"model": self._identity(base, name), "images": chosen.digest, **settings})
            evaluations[name] = evaluate_classifier(
                model.to(memory_format=torch.channels_last),
                images,
                labels,
                threats,
                attack=self.attack,
                num_steps=settings["steps"],
                num_restarts=settings["restarts"],
                losses=self._losses(),
                device=device,
                batch_size=self.batch_size,
                seed=self.seed,
                journal=journal,
                progress=name,
            )
        if self.record is not None:
            write_record(self.record, chosen, positions, evaluations)
        data = _data(base.manifest, evaluations, settings)
        return Result(data, _text(data, threats))

    def _models(self, base: BaseSet) -> Iterator[tuple[str, nn.Module]]:
        """Yield what is attacked, by name."""
        known = list(base.state_dicts)
        if unknown := [name for name in self.only if name not in known]:
            raise ValueError(f"--only: no ingredient {unknown[0]!r}, only {known}{meant(unknown[0], known)}")
        for name in self.only or base.manifest.ingredient_names:
            yield name, base.model(name)

    def _identity(self, base: BaseSet, name: str) -> Any:
        """Return what decides the weights of a model of that name, for the state on disk."""
        return next(ingredient.sha256 for ingredient in base.manifest.ingredients if ingredient.name == name)

    def _losses(self) -> Losses:
        if self.strong:
            return STRONG_LOSSES
        return {norm: (APGD_LOSSES[norm] if self.attack == "apgd" else "ce",) for norm in NORMS}

    def _settings(self, threats: Sequence[ThreatModel]) -> dict[str, Any]:
        losses = self._losses()
        return {
            "threat_models": {threat.norm: threat.eps for threat in threats},
            "attack": self.attack,
            "strong": self.strong,
            "losses": {threat.norm: " then ".join(losses[threat.norm]) for threat in threats},
            "steps": self.steps or (STRONG_STEPS if self.strong else QUICK_STEPS),
            "restarts": self.restarts or (STRONG_RESTARTS if self.strong else 1),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "device": pick_device(self.device).type,
        }

    def _journal(self, name: str, settings: Mapping[str, Any]) -> Journal:
        file = re.sub(r"[^\w.=-]+", "-", name)[:100]
        return Journal(None if self.state is None else self.state / f"{file}.jsonl", settings)


def _overridden(threats: Sequence[ThreatModel], given: Sequence[str]) -> tuple[ThreatModel, ...]:
    """Return the threat models with the radii of those given as NORM:EPS."""
    by_norm = {threat.norm: threat for threat in threats}
    seen: set[Norm] = set()
    for text in given:
        try:
            threat = parse_threat(text)
        except ValueError as error:
            raise ValueError(f"--threat-models: {error}") from None
        if threat.norm in seen:
            raise ValueError(
                f"--threat-models: {threat.norm} is given twice: the union is over one radius of each norm"
            )
        seen.add(threat.norm)
        by_norm[threat.norm] = threat
    return tuple(by_norm[norm] for norm in NORMS if norm in by_norm)


def evaluation_threats(manifest: Manifest) -> tuple[ThreatModel, ...]:
    """Return what a base set is measured against: the threat models of its recipe's evaluation.

    A norm that the recipe does not name is not attacked. Where it names none, all three have the usual radii for the
    input size. The radii that ingredients were *trained* with are often smaller, and do not count.
    """
    section = manifest.provenance.recipe.get("evaluation")
    given = section.get("threat_models") if isinstance(section, dict) else None
    try:
        named = [ThreatModel.model_validate(entry) for entry in given] if isinstance(given, list) else []
    except ValidationError as error:
        raise ValueError(f"provenance.recipe.evaluation.threat_models: {first_error(error)}") from None
    by_norm = {threat.norm: threat for threat in named}
    if not by_norm:
        return default_threats(manifest.input.height, manifest.input.width)
    return tuple(by_norm[norm] for norm in NORMS if norm in by_norm)


def load_images(manifest: Manifest, data: Path | None, *, part: Literal["test", "validation"] = "test") -> ImageSet:
    """Load the test images of a base set's recipe, or the validation images, or other images of its classes.

    Args:
        manifest: names data source, input size and classes.
        data: the recipe's data folder, or a folder with one folder per class (some may be absent). Default: where the
            recipe says.
        part: of the recipe's data; neither was trained on.

    Raises:
        ValueError: no such data, images of unknown classes, or the recipe's own folder with other files than it had
            at training time: which of them were trained on is then unknown.
    """
    recipe = manifest.provenance.recipe.get("data")
    try:
        spec = DataSpec.model_validate(recipe) if recipe is not None else DataSpec(source="folder")
    except ValidationError as error:
        raise ValueError(f"provenance.recipe.data: {first_error(error)}") from None
    if data is not None and find_test_folder(data) is None and not _is_torchvision(spec, data):
        if (own := _own_splits(spec, manifest, data)) is not None:
            return own.validation if part == "validation" else own.test
        if spec.test_fraction:
            _check_others(data, spec)
        return load_folder(data, manifest.input, manifest.class_names)
    if spec.source == "digits" and data is None:
        found = getattr(load_splits(spec, manifest.input), part)
    else:
        root = data or (Path(spec.path) if spec.path else None)
        if root is None or not root.is_dir():
            raise ValueError(f"{root or manifest.name}: found no such data folder; give the images with --data PATH")
        if part == "test" and (folder := find_test_folder(root)) is not None:  # the training part is not needed
            found = load_folder(folder, manifest.input, manifest.class_names)
        else:
            splits = load_splits(spec, manifest.input, root)
            if spec.test_fraction and splits.train.digest != manifest.provenance.data_hash:
                raise ValueError(_CHANGED.format(root))
            found = getattr(splits, part)
    images: ImageSet = found
    if images.class_names != manifest.class_names:
        raise ValueError(f"expected images of the classes {list(manifest.class_names)}, got {list(images.class_names)}")
    return images


def _own_splits(spec: DataSpec, manifest: Manifest, data: Path) -> Splits | None:
    """Return the parts of a folder that the recipe split itself; None where these are other images.

    The digest of the training images tells: without it, a folder with one folder per class would be tested as a whole,
    training images included.
    """
    if spec.test_fraction == 0:
        return None
    try:
        splits = load_splits(spec, manifest.input, data)
    except ValueError:  # too few images to split, or a class that is absent: not what the recipe was trained on
        return None
    return splits if splits.train.digest == manifest.provenance.data_hash else None


def _check_others(data: Path, spec: DataSpec) -> None:
    """Refuse the recipe's own folder after it changed, as its name tells; say that any other is tested as a whole."""
    if spec.path is not None and data.resolve().name == Path(spec.path).name:
        raise ValueError(f"{_CHANGED.format(data)}, or rename a folder of other images")
    logger.warning(
        "%s: all images are tested: this is not the folder that the recipe split, or files in it were added, removed "
        "or edited since; in that case the accuracy counts images that were trained on",
        data,
    )


def _is_torchvision(spec: DataSpec, root: Path) -> bool:
    return spec.source == "cifar10" and (root / "cifar-10-batches-py").is_dir()


def _data(manifest: Manifest, evaluations: Mapping[str, Evaluation], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "base_set": manifest.name,
        "digest": manifest.digest,
        "ingredients": {name: {**found.accuracies(), "n": found.n} for name, found in evaluations.items()},
        "intervals": {name: found.intervals() for name, found in evaluations.items()},
        **settings,
    }


def _text(data: Mapping[str, Any], threats: Sequence[ThreatModel]) -> str:
    """Lay the accuracies out as a table, in percent."""
    rows = data["ingredients"]
    titles: dict[str, str] = {threat.norm: _label(threat) for threat in threats}
    columns = {"clean": "clean", **titles, "union": "union"}
    width = max(len("ingredient"), *(len(name) for name in rows))
    losses = ", ".join(f"{norm}: {loss}" for norm, loss in data["losses"].items())
    n, restarts = next(iter(rows.values()))["n"], data["restarts"]
    per_target = " per target" if data["strong"] else ""
    lines = [
        f"{data['base_set']}: accuracy in percent on n = {n} test images, with 95 % Wilson intervals",
        f"attack: {data['attack'].upper()}, {data['steps']} steps, "
        f"{restarts} restart{'s' * (restarts > 1)}{per_target}, loss {losses}; seed {data['seed']}",
        "  ".join([f"{'ingredient':{width}}", *(f"{title:>19}" for title in columns.values())]),
    ]
    for name, row in rows.items():
        cells = (_cell(row[column], data["intervals"][name][column]) for column in columns)
        lines.append("  ".join([f"{name:{width}}", *cells]))
    return "\n".join(lines)


def _cell(share: float, interval: tuple[float, float]) -> str:
    low, high = interval
    bounds = f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * share:5.1f} {bounds:>13}"


def _label(threat: ThreatModel) -> str:
    levels = threat.eps * 255
    if threat.norm == "Linf" and abs(levels - round(levels, 1)) < 1e-6:
        return f"{threat.norm} {levels:.3g}/255"
    return f"{threat.norm} {threat.eps:.3g}"
