"""The training of one ingredient: the loop around every objective."""

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from training.augmentation import Augmentation, batches, mix, seeded, stream, to_device
from training.bases import StateDict
from training.checkpoint import Progress, load_checkpoint, save_atomically, save_checkpoint
from training.compute import Compute, part_of, share_statistics
from training.manifest import NORMS
from training.measure import accuracy_of
from training.models import Classifier
from training.objectives import OBJECTIVES, Step
from training.optimisation import MovingAverage, learning_rate, make_optimizer
from training.recipe import IngredientSpec
from training.robustness import as_input, evaluate_classifier
from training.splits import Splits

logger = logging.getLogger(__name__)

# In the work folder, beside the ingredients' files; no name of an ingredient begins with a dot.
CHECKPOINT, LOG, NON_FINITE = ".checkpoint.safetensors", "metrics.jsonl", "non-finite"
SAVE_SECONDS = 600.0  # between two checkpoints within an epoch
TRACK_STEPS = 20  # between two values sent to a tracker


class Place(NamedTuple):
    """Where an ingredient is trained."""

    accelerator: Accelerator
    compute: Compute
    work: Path  # folder of the checkpoint and the log


class Fit:
    """One ingredient in training.

    Args:
        spec: how to train it.
        classifier: starts from its weights; changed in place.
        splits: training and validation images.
        augmentation: of the training images.
        seed: of order, augmentation and attacks.
        place: where to compute and to keep state.
    """

    def __init__(
        self,
        spec: IngredientSpec,
        classifier: Classifier,
        splits: Splits,
        augmentation: Augmentation,
        *,
        seed: int,
        place: Place,
    ) -> None:
        self.spec, self.splits, self.augmentation, self.seed, self.place = spec, splits, augmentation, seed, place
        self.batch_size = min(spec.batch_size, len(splits.train))
        self.part = part_of(place.accelerator)
        if self.batch_size % self.part.of:
            raise ValueError(
                f"{spec.name}: a batch of {self.batch_size} cannot be shared evenly by {self.part.of} processes"
            )
        self.steps_per_epoch = len(splits.train) // self.batch_size
        self.num_steps = max(1, round(spec.epochs * self.steps_per_epoch))
        self.objective = OBJECTIVES[spec.objective]
        self.options = spec.objective_options().model_dump()
        self.classifier = classifier
        self.objective.prepare(classifier.net)
        classifier.to(place.accelerator.device).to(memory_format=torch.channels_last)
        share_statistics(classifier, self.part, place.accelerator.device)
        self.average = MovingAverage(classifier, spec.ema_decay)
        self.model: nn.Module = place.accelerator.prepare(classifier)
        if place.compute.compiled:
            classifier.compile()
        self.optimizer = make_optimizer(spec, classifier.net)
        self.best: StateDict = {}
        self.progress = Progress()

    def fit(self) -> StateDict:
        """Train, and return the averaged weights (EMA) of the last or the selected epoch, on the CPU.

        Raises:
            FloatingPointError: the loss became NaN or infinite; the batch is saved.
            KeyboardInterrupt: the run was asked to end; its state is saved.
        """
        path = self.place.work / CHECKPOINT
        self.progress, self.best = load_checkpoint(
            path, self.spec.name, self.classifier.net, self.average, self.optimizer
        )
        with (
            _interruptible() as interrupted,
            tqdm(
                total=self.num_steps,
                initial=self.progress.step,
                desc=self.spec.name,
                unit="step",
                disable=None if self.place.accelerator.is_main_process else True,
            ) as bar,
        ):
            while self.progress.step < self.num_steps:
                self._epoch(bar, interrupted)
        chosen = self.best if self.spec.selection is not None else self.average.state_dict()
        return {key: tensor.cpu().contiguous() for key, tensor in self.objective.finish(chosen).items()}

    def _epoch(self, bar: "tqdm[Any]", interrupted: threading.Event) -> None:
        """Train from the current step to the end of its epoch, or of the run."""
        progress = self.progress
        epoch, first = divmod(progress.step, self.steps_per_epoch)
        began = saved = time.monotonic()
        spent = progress.seconds
        for images, labels in self._batches(epoch, first):
            progress.losses.append(self.update(images, labels))
            progress.step += 1
            progress.seconds = spent + time.monotonic() - began
            bar.update()
            bar.set_postfix(loss=f"{progress.losses[-1]:.3f}", refresh=False)
            if progress.step % TRACK_STEPS == 0:
                self._track({"loss": progress.losses[-1]})
            if progress.step == self.num_steps or progress.step % self.steps_per_epoch == 0:
                break  # no checkpoint here: it would pass over the end of the epoch
            if self._must_stop(interrupted):
                self._save()
                raise KeyboardInterrupt
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
        self._end_epoch(epoch + 1)
        progress.losses, progress.seconds = [], 0.0
        self._save()
        if self._must_stop(interrupted):
            raise KeyboardInterrupt

    def _batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.place.accelerator.device
        for images, labels in batches(
            self.splits.train,
            self.batch_size,
            self.augmentation,
            seed=self.seed,
            epoch=epoch,
            start=first,
            part=self.part,
        ):
            yield to_device(images, labels, device)

    def update(self, images: Tensor, labels: Tensor) -> float:
        """Take one optimiser step on this process's share of a batch, and return the loss over all of it."""
        spec, accelerator, step = self.spec, self.place.accelerator, self.progress.step
        for group in self.optimizer.param_groups:
            rate = learning_rate(step, self.num_steps, spec.warmup_fraction, spec.milestones)
            group["lr"] = spec.lr * rate * group["lr_factor"]
        # Layers that draw, such as drop path, draw from torch's global generators.
        torch.manual_seed(stream(self.seed, step, self.part.number, 0))
        noise = seeded(self.seed, step, 1 + self.part.number, device=images.device)
        draws = seeded(self.seed, step, 0)
        self.optimizer.zero_grad(set_to_none=True)
        chunks = math.ceil(len(images) / (self.place.compute.micro_batch or len(images)))
        total = torch.zeros((), device=images.device)
        for number, (some, their) in enumerate(
            zip(images.tensor_split(chunks), labels.tensor_split(chunks), strict=True)
        ):
            is_last = number == chunks - 1
            with nullcontext() if is_last else accelerator.no_sync(self.model):
                loss = self._loss(some, their, noise, draws) * (len(some) / len(images))
                self._check_finite(loss, some, their)
                accelerator.backward(loss)
            total += loss.detach()
        self.optimizer.step()
        self.average.update(self.classifier)
        return float(accelerator.reduce(total, reduction="mean"))

    def _loss(self, images: Tensor, labels: Tensor, noise: torch.Generator, draws: torch.Generator) -> Tensor:
        spec, accelerator = self.spec, self.place.accelerator
        ramp = min(1.0, (self.progress.step + 1) / max(1.0, spec.eps_ramp_fraction * self.num_steps))
        self.model.train()
        targets = labels
        if self.augmentation.mixes:
            seed = int(torch.randint(2**62, (), generator=noise, device=noise.device))
            num_classes = len(self.splits.train.class_names)
            images, targets = mix(images, labels, self.augmentation, num_classes=num_classes, seed=seed)
        step = Step(
            model=self.classifier,
            forward=self.model,
            images=images,
            labels=labels,
            targets=targets,
            threat_models=[threat.model_copy(update={"eps": threat.eps * ramp}) for threat in spec.threat_models],
            attack=spec.attack,
            noise=noise,
            draws=draws,
            memory=self.progress.memory,
            label_smoothing=spec.label_smoothing,
            mean=lambda value: accelerator.reduce(value, reduction="mean"),
        )
        return self.objective.function(step, **self.options)

    def _check_finite(self, loss: Tensor, images: Tensor, labels: Tensor) -> None:
        value = float(self.place.accelerator.reduce(loss.detach(), reduction="mean"))
        if math.isfinite(value):
            return
        path = self.place.work / NON_FINITE / f"{self.spec.name}-{self.part.number}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_atomically({"images": images, "labels": labels}, path, {"step": str(self.progress.step)})
        raise FloatingPointError(
            f"{self.spec.name}: the loss is {value} at step {self.progress.step}; a lower lr may help. The batch is "
            f"saved in {path}, the state of the last checkpoint is kept"
        )

    def _must_stop(self, interrupted: threading.Event) -> bool:
        """Whether any process was interrupted; all of them stop after the same step."""
        accelerator = self.place.accelerator
        if self.part.of == 1:
            return interrupted.is_set()
        flag = torch.tensor(float(interrupted.is_set()), device=accelerator.device)
        return float(accelerator.reduce(flag, reduction="sum")) > 0

    def _end_epoch(self, epoch: int) -> None:
        """Average what the processes measured each for itself, then judge, select and log the epoch."""
        spec, accelerator, progress = self.spec, self.place.accelerator, self.progress
        if self.part.of > 1:
            _mean_buffers(self.classifier.net, accelerator)
            _mean_tensors(self.average.state_dict(), accelerator)
        device = str(accelerator.device)
        accuracy = accuracy_of(self.average.classifier, self.splits.validation, device=device)
        row: dict[str, Any] = {
            "ingredient": spec.name,
            "epoch": epoch,
            "step": progress.step,
            "loss": round(sum(progress.losses) / len(progress.losses), 5),
            "validation_accuracy": accuracy,
            "n_validation": len(self.splits.validation),
            "seconds": round(progress.seconds, 2),
        }
        if spec.selection is not None:
            robust = self._robust_accuracy()
            row["validation_robust_accuracy"] = robust
            if robust >= progress.best:
                progress.best = robust
                self.best = {key: tensor.clone() for key, tensor in self.average.state_dict().items()}
        self._track({key: float(value) for key, value in row.items() if not isinstance(value, str)})
        if accelerator.is_main_process:
            with (self.place.work / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            logger.info(
                "%s epoch %d: loss %.3f, accuracy %.3f, %.1f s",
                spec.name,
                epoch,
                row["loss"],
                accuracy,
                progress.seconds,
            )

    def _robust_accuracy(self) -> float:
        """Return the averaged weights' accuracy on validation images under all of the ingredient's threat models."""
        selection = self.spec.selection
        assert selection is not None
        chosen = self.splits.validation.balanced(selection.n, seed=0)
        by_size = sorted(self.spec.threat_models, key=lambda threat: threat.eps)
        threats = {threat.norm: threat for threat in by_size}  # the larger ball of a norm holds the smaller one
        found = evaluate_classifier(
            self.average.classifier,
            *as_input(chosen),
            tuple(threats.values()),
            num_steps=selection.num_steps,
            losses=dict.fromkeys(NORMS, ("ce",)),
            device=str(self.place.accelerator.device),
        )
        return found.accuracies()["union"]

    def _track(self, values: dict[str, float]) -> None:
        if self.place.compute.tracker is not None:
            self.place.accelerator.log(
                {f"{self.spec.name}/{key}": value for key, value in values.items()}, step=self.progress.step
            )

    def _save(self) -> None:
        if not self.place.accelerator.is_main_process:
            return
        nets = {"model": self.classifier.net.state_dict(), "average": self.average.state_dict(), "best": self.best}
        save_checkpoint(self.place.work / CHECKPOINT, self.spec.name, self.progress, nets, self.optimizer)


def _mean_buffers(net: nn.Module, accelerator: Accelerator) -> None:
    _mean_tensors(dict(net.named_buffers()), accelerator)


@torch.no_grad()
def _mean_tensors(tensors: StateDict, accelerator: Accelerator) -> None:
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.copy_(accelerator.reduce(tensor, reduction="mean"))


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets; a second one ends the process as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
