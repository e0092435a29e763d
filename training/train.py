"""The training run: one loop, one ingredient after the other, resumable, ending in a base set."""

import json
import logging
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.bases import StateDict, save_base_set
from training.checkpoint import load_checkpoint, save_atomically, save_checkpoint
from training.data import ImageSet, Splits, batches, load_splits
from training.evaluate import evaluate_classifier
from training.images import to_input
from training.manifest import Ingredient, Manifest, Metric, Provenance
from training.models import Classifier, create_classifier
from training.objectives import OBJECTIVES, make_attack
from training.recipe import IngredientSpec, Recipe

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"


def train(recipe: Recipe, out: Path, *, data_path: Path | None = None, device: str = "cpu") -> Manifest:
    """Train every ingredient of a recipe and write the base set to `out`.

    Work in progress stands in a hidden folder beside `out`; a run that was interrupted continues from its last epoch,
    with the same result as one that was not. The default coefficients written here are those of the ingredient with the
    best clean validation accuracy; `python -m adapt default` replaces them by the best soup.

    Args:
        recipe: what to train.
        out: folder of the base set; must not exist or be empty.
        data_path: overrides the recipe's data folder.
        device: torch device.

    Returns:
        The manifest of the base set written.

    Raises:
        ValueError: the data does not fit the recipe, or `out` holds the unfinished run of another recipe.
        FileExistsError: `out` already holds something.
        FloatingPointError: the loss became NaN or infinite.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: already exists; choose another --out or remove it")
    started = time.monotonic()
    splits = load_splits(recipe.data, recipe.input, data_path)
    work = _open_work_folder(recipe, out, splits.train)
    logger.info("training %s on %d images, device %s", recipe.name, len(splits.train), device)
    state_dicts: dict[str, StateDict] = {}
    for position, spec in enumerate(recipe.ingredients):
        finished = work / f"{spec.name}.safetensors"
        if not finished.exists():
            classifier = _new_classifier(recipe, splits, state_dicts.get(spec.parent or ""), position)
            result = _fit(classifier, splits, spec, recipe, seed=recipe.seed + 1000 * position, work=work, device=device)
            save_atomically(result, finished)
            (work / CHECKPOINT).unlink(missing_ok=True)
        state_dicts[spec.name] = safetensors.torch.load_file(finished)
    seconds = _elapsed(work, time.monotonic() - started)
    manifest = _measure(recipe, splits, state_dicts, seconds, device)
    written = save_base_set(out, manifest, state_dicts)
    shutil.copy(work / "metrics.jsonl", out / "metrics.jsonl")
    shutil.rmtree(work)
    logger.info("wrote %s", out)
    return written


def _open_work_folder(recipe: Recipe, out: Path, data: ImageSet) -> Path:
    work = out.parent / f".{out.name}.partial"
    identity = json.dumps({"recipe": recipe.model_dump(mode="json"), "data": data.digest}, sort_keys=True)
    marker = work / "run.json"
    if marker.exists() and marker.read_text(encoding="utf-8") != identity:
        raise ValueError(f"{work}: holds the unfinished run of another recipe or other data; remove it or choose another --out")
    work.mkdir(parents=True, exist_ok=True)
    marker.write_text(identity, encoding="utf-8")
    return work


def _new_classifier(recipe: Recipe, splits: Splits, parent: StateDict | None, position: int) -> Classifier:
    torch.manual_seed(recipe.seed + position)
    classifier = create_classifier(recipe.architecture, recipe.input, len(splits.train.class_names))
    if parent is not None:
        classifier.net.load_state_dict(parent)
    return classifier


def _fit(
    classifier: Classifier, splits: Splits, spec: IngredientSpec, recipe: Recipe, *, seed: int, work: Path, device: str
) -> StateDict:
    """Train one ingredient and return the averaged weights (EMA) as a CPU state dict."""
    classifier.to(device=device, memory_format=torch.channels_last)
    average = {key: tensor.clone() for key, tensor in classifier.net.state_dict().items()}
    optimizer = torch.optim.SGD(_groups(classifier, spec.weight_decay), lr=spec.lr, momentum=spec.momentum, nesterov=True)
    batch_size = min(spec.batch_size, len(splits.train))
    steps_per_epoch = len(splits.train) // batch_size
    num_steps = max(1, round(spec.epochs * steps_per_epoch))
    objective = OBJECTIVES[spec.objective]
    step = load_checkpoint(work / CHECKPOINT, spec.name, classifier.net, average, optimizer)
    progress = tqdm(total=num_steps, initial=step, desc=spec.name, unit="step", disable=None)
    epoch_started, losses = time.monotonic(), []
    while step < num_steps:
        # Everything random in an epoch follows from (seed, epoch): a resumed run draws what an uninterrupted one draws.
        epoch = step // steps_per_epoch
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for images, labels in _first(batches(splits.train, batch_size, recipe.augmentation, generator=generator), num_steps - step):
            scale = min(1.0, (step + 1) / max(1.0, spec.eps_ramp_fraction * num_steps))
            attack = make_attack(spec.attack, spec.threat_model, scale=scale, generator=generator)
            _set_lr(optimizer, spec.lr * _schedule(step, num_steps, spec.warmup_fraction))
            loss = objective(classifier, images.to(device), labels.to(device), attack, spec.label_smoothing)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"{spec.name}: the loss is {losses[-1]} at step {step}; a lower lr may help")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            _update_average(average, classifier.net, min(spec.ema_decay, (step + 1) / (step + 10)))
            step += 1
            progress.update()
        _log_epoch(work, spec.name, epoch, step, losses, time.monotonic() - epoch_started, classifier, average, splits, device)
        epoch_started, losses = time.monotonic(), []
        save_checkpoint(work / CHECKPOINT, spec.name, step, classifier.net, average, optimizer)
    progress.close()
    return {key: tensor.cpu().contiguous() for key, tensor in average.items()}


def _first(items: Iterator[tuple[Tensor, Tensor]], n: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _, item in zip(range(n), items, strict=False):
        yield item


def _groups(classifier: Classifier, weight_decay: float) -> list[dict[str, object]]:
    matrices = [parameter for parameter in classifier.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in classifier.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _schedule(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Linear rise, then half a cosine down to zero; returns the factor on the peak learning rate."""
    warmup = warmup_fraction * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, num_steps - warmup)))


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def _update_average(average: StateDict, net: nn.Module, decay: float) -> None:
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            average[key].lerp_(tensor, 1 - decay)
        else:
            average[key].copy_(tensor)


def _log_epoch(
    work: Path, name: str, epoch: int, step: int, losses: list[float], seconds: float,
    classifier: Classifier, average: StateDict, splits: Splits, device: str,
) -> None:
    """Append a line to metrics.jsonl, with the averaged weights' accuracy on the validation images."""
    accuracy = _accuracy_of(average, classifier, splits.validation, device)
    row = {
        "ingredient": name, "epoch": epoch + 1, "step": step, "loss": round(float(np.mean(losses)), 5),
        "validation_accuracy": accuracy, "n_validation": len(splits.validation), "seconds": round(seconds, 2),
    }
    with (work / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    logger.info("%s epoch %d: loss %.3f, validation accuracy %.3f, %.1f s", name, epoch + 1, row["loss"], accuracy, seconds)


@torch.no_grad()
def _accuracy_of(weights: Mapping[str, Tensor], classifier: Classifier, data: ImageSet, device: str) -> float:
    """Return the accuracy of the classifier's network with other weights; its own are put back."""
    own = {key: tensor.clone() for key, tensor in classifier.net.state_dict().items()}
    was_training = classifier.training
    classifier.net.load_state_dict(weights)
    classifier.eval()
    try:
        correct = 0
        for start in range(0, len(data), 500):
            images = torch.from_numpy(to_input(data.images[start : start + 500])).to(device)
            labels = torch.from_numpy(data.labels[start : start + 500]).to(device)
            correct += int((classifier(images).argmax(1) == labels).sum())
        return correct / len(data)
    finally:
        classifier.net.load_state_dict(own)
        classifier.train(was_training)


def _elapsed(work: Path, this_session: float) -> float:
    """Return the training seconds of the whole run: the epochs' own clock, which survives a resume."""
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return round(max(this_session, sum(row["seconds"] for row in rows)), 1)


def _measure(
    recipe: Recipe, splits: Splits, state_dicts: Mapping[str, StateDict], seconds: float, device: str
) -> Manifest:
    """Evaluate the ingredients on test images and put the manifest together."""
    classifier = _new_classifier(recipe, splits, None, 0).to(device)
    validation: dict[str, float] = {}
    ingredients = []
    for spec in recipe.ingredients:
        classifier.net.load_state_dict(state_dicts[spec.name])
        validation[spec.name] = _accuracy_of(state_dicts[spec.name], classifier, splits.validation, device)
        ingredients.append(
            Ingredient(
                name=spec.name, file=f"{spec.name}.safetensors", sha256="0" * 64, threat_model=spec.threat_model,
                objective=spec.objective, parent=spec.parent, metrics=_metrics(classifier, recipe, splits.test, device),
            )
        )
    best = max(validation, key=lambda name: validation[name])
    logger.info("clean validation accuracy: %s", validation)
    return Manifest(
        name=recipe.name, architecture=recipe.architecture, input=recipe.input, class_names=splits.train.class_names,
        ingredients=tuple(ingredients), default_coefficients={name: float(name == best) for name in validation},
        provenance=provenance(recipe, splits.train, seconds, device),
    )


def _metrics(classifier: Classifier, recipe: Recipe, test: ImageSet, device: str) -> dict[str, Metric]:
    raise NotImplementedError


def provenance(recipe: Recipe, data: ImageSet, seconds: float, device: str) -> Provenance:
    """Return where a base set comes from: recipe, code, versions, hardware, data."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    gpu = f", {torch.cuda.get_device_name()}" if device.startswith("cuda") else ""
    return Provenance(
        recipe=recipe.model_dump(mode="json"), seed=recipe.seed, git_commit=commit, git_dirty=None if status is None else bool(status),
        versions={package: metadata.version(package) for package in ("saucier", "torch", "timm", "numpy")},
        hardware=f"{platform.machine()}, {torch.get_num_threads()} threads{gpu}", data_hash=data.digest, seconds=seconds,
    )


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
