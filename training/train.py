"""The training run: one loop, one ingredient after the other, resumable, ending in a base set."""

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.bases import StateDict, save_base_set
from training.checkpoint import load_checkpoint, save_atomically, save_checkpoint
from training.data import ImageSet, Splits, batches, load_splits
from training.manifest import Manifest
from training.measure import accuracy_of, measure
from training.models import Classifier, create_classifier
from training.objectives import OBJECTIVES, make_attack
from training.recipe import IngredientSpec, Recipe

logger = logging.getLogger(__name__)

CHECKPOINT, LOG, MARKER = "checkpoint.safetensors", "metrics.jsonl", "run.json"


def train(recipe: Recipe, out: Path, *, seed: int = 0, data_path: Path | None = None, device: str = "cpu") -> Manifest:
    """Train every ingredient of a recipe and write the base set to `out`.

    Work in progress stands in a hidden folder beside `out`; a run that was interrupted continues after its last epoch
    and draws what an uninterrupted run draws. The default coefficients written here are those of the ingredient with
    the best clean validation accuracy; `python -m adapt default` replaces them by the best soup.

    Args:
        recipe: what to train.
        out: folder of the base set; must not exist or be empty.
        seed: of initialisation, order, augmentation and attacks.
        data_path: overrides the recipe's data folder.
        device: torch device.

    Returns:
        The manifest of the base set written.

    Raises:
        ValueError: the data does not fit the recipe, or `out` has the unfinished run of another recipe.
        FileExistsError: `out` already holds something.
        FloatingPointError: the loss became NaN or infinite.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: already exists; choose another --out or remove it")
    splits = load_splits(recipe.data, recipe.input, data_path)
    work = _open_work_folder(recipe, seed, out, splits.train)
    logger.info("training %s on %d images, device %s, seed %d", recipe.name, len(splits.train), device, seed)
    state_dicts: dict[str, StateDict] = {}
    for position, spec in enumerate(recipe.ingredients):
        finished = work / f"{spec.name}.safetensors"
        if not finished.exists():
            torch.manual_seed(seed + position)
            classifier = create_classifier(recipe.architecture, recipe.input, len(splits.train.class_names))
            if spec.parent is not None:
                classifier.net.load_state_dict(state_dicts[spec.parent])
            run = _Fit(spec, recipe, splits, work, device, seed + 1000 * position)
            save_atomically(run.fit(classifier), finished)
            (work / CHECKPOINT).unlink(missing_ok=True)
        state_dicts[spec.name] = safetensors.torch.load_file(finished)
    manifest = measure(recipe, splits, state_dicts, seed=seed, seconds=_logged_seconds(work), device=device)
    written = save_base_set(out, manifest, state_dicts)
    shutil.copy(work / LOG, out / LOG)
    shutil.rmtree(work)
    logger.info("wrote %s", out)
    return written


def _open_work_folder(recipe: Recipe, seed: int, out: Path, data: ImageSet) -> Path:
    work = out.parent / f".{out.name}.partial"
    identity = {"recipe": recipe.model_dump(mode="json"), "seed": seed, "data": data.digest}
    marker = work / MARKER
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != identity:
        raise ValueError(
            f"{work}: holds the unfinished run of another recipe, seed or data; remove it or choose another --out"
        )
    work.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(identity), encoding="utf-8")
    return work


def _logged_seconds(work: Path) -> float:
    """Return the epochs' own time, which counts what was trained before a resume."""
    rows = (work / LOG).read_text(encoding="utf-8").splitlines()
    return round(sum(float(json.loads(row)["seconds"]) for row in rows), 1)


class _Fit:
    """The training of one ingredient."""

    def __init__(
        self, spec: IngredientSpec, recipe: Recipe, splits: Splits, work: Path, device: str, seed: int
    ) -> None:
        self.spec, self.splits, self.work, self.device, self.seed = spec, splits, work, device, seed
        self.augmentation = recipe.augmentation
        self.batch_size = min(spec.batch_size, len(splits.train))
        self.steps_per_epoch = len(splits.train) // self.batch_size
        self.num_steps = max(1, round(spec.epochs * self.steps_per_epoch))

    def fit(self, classifier: Classifier) -> StateDict:
        """Train the classifier and return the averaged weights (EMA) of its network, on the CPU."""
        spec = self.spec
        classifier.to(self.device).to(memory_format=torch.channels_last)
        average = {key: tensor.clone() for key, tensor in classifier.net.state_dict().items()}
        optimizer = torch.optim.SGD(
            _parameter_groups(classifier, spec.weight_decay), lr=spec.lr, momentum=spec.momentum, nesterov=True
        )
        step = load_checkpoint(self.work / CHECKPOINT, spec.name, classifier.net, average, optimizer)
        with tqdm(total=self.num_steps, initial=step, desc=spec.name, unit="step", disable=None) as progress:
            while step < self.num_steps:
                started, losses = time.monotonic(), []
                for images, labels, generator in self._rest_of_epoch(step):
                    losses.append(self._update(classifier, optimizer, images, labels, step, generator))
                    _update_average(average, classifier.net, min(spec.ema_decay, (step + 1) / (step + 10)))
                    step += 1
                    progress.update()
                accuracy = accuracy_of(classifier, self.splits.validation, weights=average, device=self.device)
                self._log(step, float(np.mean(losses)), accuracy, time.monotonic() - started)
                save_checkpoint(self.work / CHECKPOINT, spec.name, step, classifier.net, average, optimizer)
        return {key: tensor.cpu().contiguous() for key, tensor in average.items()}

    def _rest_of_epoch(self, step: int) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
        """Yield the batches of the epoch that begins at `step`, up to the last step of the run.

        Everything random in an epoch follows from (seed, epoch), so a resumed run draws what an uninterrupted one does.
        """
        epoch = step // self.steps_per_epoch
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        epoch_batches = batches(self.splits.train, self.batch_size, self.augmentation, generator=generator)
        for images, labels in islice(epoch_batches, self.num_steps - step):
            yield images.to(self.device), labels.to(self.device), generator

    def _update(
        self,
        classifier: Classifier,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
        step: int,
        generator: torch.Generator,
    ) -> float:
        """Take one optimiser step and return the loss."""
        spec = self.spec
        ramp = min(1.0, (step + 1) / max(1.0, spec.eps_ramp_fraction * self.num_steps))
        attack = make_attack(spec.attack, spec.threat_model, scale=ramp, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * _schedule(step, self.num_steps, spec.warmup_fraction)
        loss = OBJECTIVES[spec.objective](classifier, images, labels, attack, spec.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"{spec.name}: the loss is {value} at step {step}; a lower lr may help")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        return value

    def _log(self, step: int, loss: float, accuracy: float, seconds: float) -> None:
        """Append a line to the log: loss and the averaged weights' accuracy on the validation images."""
        epoch = math.ceil(step / self.steps_per_epoch)
        row = {
            "ingredient": self.spec.name,
            "epoch": epoch,
            "step": step,
            "loss": round(loss, 5),
            "validation_accuracy": accuracy,
            "n_validation": len(self.splits.validation),
            "seconds": round(seconds, 2),
        }
        with (self.work / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        logger.info("%s epoch %d: loss %.3f, accuracy %.3f, %.1f s", self.spec.name, epoch, loss, accuracy, seconds)


def _parameter_groups(classifier: Classifier, weight_decay: float) -> list[dict[str, object]]:
    matrices = [parameter for parameter in classifier.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in classifier.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _schedule(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Return the factor on the peak learning rate: a linear rise, then half a cosine down to zero."""
    warmup = warmup_fraction * num_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, num_steps - warmup)))


@torch.no_grad()
def _update_average(average: StateDict, net: nn.Module, decay: float) -> None:
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            average[key].lerp_(tensor, 1 - decay)
        else:
            average[key].copy_(tensor)
