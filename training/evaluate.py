"""Clean, robust and union accuracy of classifiers, and the `evaluate` command over a base set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from jaxtyping import Float, Int
from pydantic import Field, ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from training.attack_losses import LossName
from training.attacks import apgd, eval_mode, pgd
from training.bases import load_base_set
from training.cli import Command, Result
from training.data import DataSpec, ImageSet, load_folder, load_splits
from training.images import to_input
from training.manifest import Manifest, first_error
from training.threat import DEFAULT_THREATS, NORMS, Norm, ThreatModel, union

AttackName = Literal["apgd", "pgd"]

# APGD's losses as in Croce et al. 2023 (arXiv:2302.10164), appendix B.2. Plain PGD always climbs the cross-entropy.
APGD_LOSSES: dict[Norm, LossName] = {"Linf": "dlr", "L2": "dlr", "L1": "ce"}


@dataclass(frozen=True)
class Evaluation:
    """Which images a classifier gets right, unperturbed and under each threat model.

    `correct` maps "clean", then the norm of each threat model, to a bool tensor (N,) on the CPU. An image counts under
    a threat model if it is classified correctly both clean and attacked.
    """

    correct: Mapping[str, Tensor]

    @property
    def union(self) -> Tensor:
        """Which images survive every threat model, bool (N,)."""
        return union(list(self.correct.values()))

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.correct["clean"])

    def accuracies(self) -> dict[str, float]:
        """Return the accuracies "clean", one for each norm, and "union", as fractions."""
        columns = {**self.correct, "union": self.union}
        return {name: int(correct.sum()) / self.n for name, correct in columns.items()}


def evaluate_classifier(
    model: nn.Module,
    images: Float[Tensor, "N C H W"],
    labels: Int[Tensor, "N"],
    threats: Sequence[ThreatModel],
    *,
    attack: AttackName = "apgd",
    num_steps: int = 40,
    device: str = "cpu",
    batch_size: int = 250,
    seed: int = 0,
    progress: str | None = None,
) -> Evaluation:
    """Attack a classifier with every threat model and return which images it gets right.

    The same seed, batch size and device give the same answer. The model is moved to `device` and stays there;
    otherwise it is left as it was found.

    Args:
        model: logits (B, K) of images in [0, 1].
        images: clean images in [0, 1], on any device.
        labels: their classes, int64.
        threats: at most one of each norm.
        attack: APGD (DLR loss for Linf and L2, cross-entropy for L1) or plain PGD (cross-entropy).
        num_steps: steps of the attack; one restart, from a random point.
        device: where to compute.
        batch_size: images attacked at once.
        seed: of the random starts.
        progress: label of a progress bar on stderr; null for none.

    Raises:
        ValueError: no images, two threat models of one norm, logits that are not finite, or as `attacks.apgd`.
    """
    norms = [threat.norm for threat in threats]
    if len(set(norms)) < len(norms):
        raise ValueError(f"expected at most one threat model of each norm, got {norms}")
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"expected images and one label for each, got {len(images)} and {len(labels)}")
    model.to(device)
    correct: dict[str, list[Tensor]] = {name: [] for name in ("clean", *norms)}
    total = len(images) * (1 + len(threats))
    with tqdm(total=total, desc=progress, unit="image", disable=None if progress else True) as bar, eval_mode(model):
        for start in range(0, len(images), batch_size):
            x = images[start : start + batch_size].to(device, memory_format=torch.channels_last)
            y = labels[start : start + batch_size].to(device)
            clean = _is_correct(model, x, y)
            correct["clean"].append(clean.cpu())
            bar.update(len(x))
            for threat in threats:
                # A stream of its own for every norm and batch: leaving one out changes no other.
                generator = torch.Generator().manual_seed(_stream(seed, threat.norm, start))
                survived = clean.clone()
                if clean.any():
                    x_adv = _perturb(model, x[clean], y[clean], threat, attack, num_steps, generator)
                    survived[clean] = _is_correct(model, x_adv, y[clean])
                correct[threat.norm].append(survived.cpu())
                bar.update(len(x))
    return Evaluation({name: torch.cat(parts) for name, parts in correct.items()})


def _stream(seed: int, norm: Norm, start: int) -> int:
    return ((seed * 1_000_003 + start) * len(NORMS) + NORMS.index(norm)) % 2**63


def _perturb(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, attack: AttackName, steps: int, noise: torch.Generator
) -> Tensor:
    if attack == "pgd":
        return pgd(model, x, y, threat, num_steps=steps, generator=noise)
    return apgd(model, x, y, threat, num_steps=steps, loss=APGD_LOSSES[threat.norm], generator=noise)


@torch.no_grad()
def _is_correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x)
    if not torch.isfinite(logits).all():
        raise ValueError("expected finite logits, got NaN or infinity: the weights are broken")
    correct: Tensor = logits.argmax(1) == y
    return correct


class Evaluate(Command):
    """Attack every ingredient of a base set: clean, robust and union accuracy on its test images.

    Example: python -m training evaluate bases/cifar10-small --data .data/cifar10 --n 500
    """

    name: ClassVar[str] = "evaluate"
    folder: Annotated[Path, tyro.conf.Positional] = Field(description="the base set")
    data: Path | None = Field(
        default=None,
        description="the recipe's data folder (its test part is used), or any folder with one folder per class; "
        "default: where the recipe found its data",
    )
    n: int = Field(default=1000, ge=1, description="test images, balanced over classes and drawn by the seed")
    attack: AttackName = Field(default="apgd", description="apgd: adaptive; pgd: plain, weaker")
    steps: int = Field(default=40, ge=1, description="steps of the attack")
    batch_size: int = Field(default=250, ge=1, description="images attacked at once")
    device: str = Field(default="cpu", description="torch device: cpu, cuda, cuda:1, ...")

    def execute(self) -> Result:
        """Evaluate."""
        device = _checked_device(self.device)
        base = load_base_set(self.folder)
        threats = evaluation_threats(base.manifest)
        test = load_test_images(base.manifest, self.data).balanced(self.n, seed=self.seed)
        images, labels = torch.from_numpy(to_input(test.images)), torch.from_numpy(test.labels)
        rows = {}
        for name in base.manifest.ingredient_names:
            evaluation = evaluate_classifier(
                base.model(name).to(memory_format=torch.channels_last),
                images,
                labels,
                threats,
                attack=self.attack,
                num_steps=self.steps,
                device=device,
                batch_size=self.batch_size,
                seed=self.seed,
                progress=name,
            )
            rows[name] = {**evaluation.accuracies(), "n": evaluation.n}
        losses = {threat.norm: APGD_LOSSES[threat.norm] if self.attack == "apgd" else "ce" for threat in threats}
        data = {
            "base_set": base.manifest.name,
            "digest": base.manifest.digest,
            "ingredients": rows,
            "threat_models": {threat.norm: threat.eps for threat in threats},
            "attack": self.attack,
            "losses": losses,
            "steps": self.steps,
            "restarts": 1,
            "seed": self.seed,
        }
        return Result(data, _text(data, threats))


def evaluation_threats(manifest: Manifest) -> tuple[ThreatModel, ...]:
    """Return what a base set is measured against: the threat models of its recipe's evaluation.

    A norm that the recipe does not name (a set that was imported, say) has the usual radius for small images: Linf
    8/255, L2 0.5, L1 12. The radii that ingredients were *trained* with are often smaller, and do not count.
    """
    section = manifest.provenance.recipe.get("evaluation")
    given = section.get("threat_models") if isinstance(section, dict) else None
    try:
        named = [ThreatModel.model_validate(entry) for entry in given] if isinstance(given, list) else []
    except ValidationError as error:
        raise ValueError(f"provenance.recipe.evaluation.threat_models: {first_error(error)}") from None
    by_norm = {threat.norm: threat for threat in (*DEFAULT_THREATS, *named)}
    return tuple(by_norm[norm] for norm in NORMS)


def load_test_images(manifest: Manifest, data: Path | None) -> ImageSet:
    """Load the test images of a base set's recipe, or other images of its classes.

    Args:
        manifest: names data source, input size and classes.
        data: the recipe's data folder, or a folder with one folder per class (some may be absent). Default: where the
            recipe says.

    Raises:
        ValueError: no such data, or images of unknown classes.
    """
    recipe = manifest.provenance.recipe.get("data")
    try:
        spec = DataSpec.model_validate(recipe) if recipe is not None else DataSpec(source="folder")
    except ValidationError as error:
        raise ValueError(f"provenance.recipe.data: {first_error(error)}") from None
    if data is not None and not _has_parts(data) and not _is_torchvision(spec, data):
        return load_folder(data, manifest.input, manifest.class_names)
    if spec.source == "digits" and data is None:
        test = load_splits(spec, manifest.input).test
    else:
        root = data or (Path(spec.path) if spec.path else None)
        if root is None or not root.is_dir():
            raise ValueError(f"{root or manifest.name}: found no such data folder; give the images with --data PATH")
        if not _has_parts(root):
            test = load_splits(spec, manifest.input, root).test
        else:
            test = load_folder(root / "test", manifest.input, manifest.class_names)  # the training part is not needed
    if test.class_names != manifest.class_names:
        raise ValueError(f"expected images of the classes {list(manifest.class_names)}, got {list(test.class_names)}")
    return test


def _has_parts(root: Path) -> bool:
    return (root / "test").is_dir() and (root / "train").is_dir()


def _is_torchvision(spec: DataSpec, root: Path) -> bool:
    return spec.source == "cifar10" and (root / "cifar-10-batches-py").is_dir()


def _checked_device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return name


def _text(data: Mapping[str, Any], threats: Sequence[ThreatModel]) -> str:
    """Lay the accuracies out as a table, in percent."""
    rows = data["ingredients"]
    titles: dict[str, str] = {threat.norm: _label(threat) for threat in threats}
    columns = {"clean": "clean", **titles, "union": "union"}
    width = max(len("ingredient"), *(len(name) for name in rows))
    losses = ", ".join(f"{norm}: {loss}" for norm, loss in data["losses"].items())
    n = next(iter(rows.values()))["n"]
    lines = [
        f"{data['base_set']}: accuracy in percent on n = {n} test images (standard error at most {50 / n**0.5:.1f})",
        f"attack: {data['attack'].upper()}, {data['steps']} steps, 1 restart, loss {losses}; seed {data['seed']}",
        "  ".join([f"{'ingredient':{width}}", *(f"{title:>10}" for title in columns.values())]),
    ]
    for name, row in rows.items():
        lines.append("  ".join([f"{name:{width}}", *(f"{100 * row[column]:10.1f}" for column in columns)]))
    return "\n".join(lines)


def _label(threat: ThreatModel) -> str:
    levels = threat.eps * 255
    if threat.norm == "Linf" and abs(levels - round(levels, 1)) < 1e-6:
        return f"{threat.norm} {levels:.3g}/255"
    return f"{threat.norm} {threat.eps:.3g}"
