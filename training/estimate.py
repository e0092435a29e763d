"""The cost of a recipe, before a long run: parameters, memory and time, from a few real steps."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from training.attacks import apgd
from training.augmentation import batches, to_device
from training.compute import Compute
from training.devices import seconds_of
from training.fit import Fit, Place
from training.models import Classifier, create_classifier
from training.recipe import IngredientSpec, Recipe
from training.splits import load_splits
from training.start import load_start
from training.threat import DEFAULT_THREATS
from training.trial import check_network

TIMED_STEPS = 2
SMALL_BATCH = 16  # images per timed step on a CPU, where larger batches take little less time per image ...
SMALL_MACS = 2e10  # ... and fewer images, but at least 2, where one pass of them takes more than this


@dataclass(frozen=True)
class IngredientCost:
    """The estimate of one ingredient."""

    name: str
    objective: str
    steps: int
    seconds_per_step: float  # of the recipe's whole batch

    @property
    def hours(self) -> float:
        """Training time."""
        return self.steps * self.seconds_per_step / 3600


@dataclass(frozen=True)
class Plan:
    """The estimate of a recipe."""

    recipe: str
    device: str
    processes: int
    num_images: int
    parameters: int
    macs: int  # multiply-accumulates of one forward pass of one image
    state_mib: float  # weights, gradients, optimizer state, averaged weights, per process
    activations_mib: float  # kept for the backward pass, per image
    micro_batch: int
    ingredients: tuple[IngredientCost, ...]
    evaluation_hours: float

    @property
    def memory_mib(self) -> float:
        """Memory per process."""
        return self.state_mib + self.activations_mib * self.micro_batch

    @property
    def hours(self) -> float:
        """Time of the whole run."""
        return sum(cost.hours for cost in self.ingredients) + self.evaluation_hours

    def data(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        rows = [vars(cost) | {"hours": round(cost.hours, 4)} for cost in self.ingredients]
        totals = {"memory_mib": round(self.memory_mib, 1), "hours": round(self.hours, 4)}
        return vars(self) | {"ingredients": rows} | totals

    def text(self) -> str:
        """Return a table."""
        lines = [
            f"{self.recipe}: {self.num_images:,} training images, {self.parameters / 1e6:.2f} M parameters, "
            f"{self.macs / 1e6:,.0f} MMAC per image",
            f"{self.processes} process(es) on {self.device}; memory of each about {self.memory_mib:,.0f} MiB: "
            f"{self.state_mib:,.0f} of state, {self.activations_mib:.2f} per image of {self.micro_batch} in a pass",
            f"{'ingredient':16} {'objective':12} {'steps':>9} {'s/step':>9} {'hours':>9}",
        ]
        for cost in self.ingredients:
            numbers = f"{cost.steps:9,} {cost.seconds_per_step:9.3f} {cost.hours:9.2f}"
            lines.append(f"{cost.name:16} {cost.objective:12} {numbers}")
        lines.append(f"{'evaluation':49}{self.evaluation_hours:9.2f}")
        lines.append(f"{'total':49}{self.hours:9.2f}")
        return "\n".join(lines)


def estimate(
    recipe: Recipe, *, data_path: Path | None = None, weights: Path | None = None, compute: Compute, seed: int = 0
) -> Plan:
    """Estimate the cost of a recipe on this machine, with its own data, by a few steps of every ingredient.

    Parents do not exist yet, and cost nothing to leave out. A file of weights to start from is read, to see that it
    fits; timm's own are not fetched. On a CPU a step is timed on a small batch and scaled up.

    Args:
        recipe: what would be trained.
        data_path: overrides the recipe's data folder.
        weights: overrides the file of the recipe's `start`.
        compute: device, precision, memory.
        seed: of weights and batches.

    Raises:
        ValueError: the data or the weights do not fit the recipe, or the network cannot be trained or served.
    """
    file = recipe.start_file(weights)
    splits = load_splits(recipe.data, recipe.input, data_path)
    accelerator = compute.accelerator()
    check_network(recipe.architecture, recipe.input, len(splits.train.class_names))
    costs = []
    with tempfile.TemporaryDirectory(prefix="saucier-") as folder:
        for spec in recipe.ingredients:
            torch.manual_seed(seed)
            classifier = create_classifier(recipe.architecture, recipe.input, len(splits.train.class_names))
            if spec.parent is None and recipe.start is not None and file is not None:
                load_start(recipe.start, classifier, recipe.architecture, recipe.input, file=file)
            macs, parameters = _macs(classifier, recipe), sum(p.numel() for p in classifier.parameters())
            place = Place(accelerator, compute, Path(folder))
            fit = Fit(spec, classifier, splits, recipe.augmentation, seed=seed, place=place)
            share = fit.batch_size // fit.part.of
            timed = min(share, max(2, min(SMALL_BATCH, int(SMALL_MACS / macs))))
            if accelerator.device.type == "cuda":
                timed = min(share, compute.micro_batch or share)
            images, labels = next(
                batches(splits.train, timed * fit.part.of, recipe.augmentation, seed=seed, part=fit.part)
            )
            images, labels = to_device(images, labels, accelerator.device)
            per_image = _seconds_per_step(fit, images, labels) / len(images)
            costs.append(IngredientCost(spec.name, spec.objective, fit.num_steps, round(per_image * share, 5)))
    activations = _activation_bytes(classifier, images[:2]) / 2
    evaluation = _evaluation_seconds(classifier, recipe, images, labels)
    return Plan(
        recipe=recipe.name,
        device=str(accelerator.device),
        processes=accelerator.num_processes,
        num_images=len(splits.train),
        parameters=parameters,
        macs=macs,
        state_mib=round(_state_bytes(recipe.ingredients, parameters) / 2**20, 2),
        activations_mib=round(activations / 2**20, 3),
        micro_batch=min(compute.micro_batch or share, share),
        ingredients=tuple(costs),
        evaluation_hours=round(evaluation / 3600, 4),
    )


def _seconds_per_step(fit: Fit, images: Tensor, labels: Tensor) -> float:
    fit.progress.step = fit.num_steps // 2  # past warm-up and ramp
    times = [seconds_of(lambda: fit.update(images, labels), images.device) for _ in range(1 + TIMED_STEPS)]
    return min(times[1:])


@torch.no_grad()
def _macs(classifier: Classifier, recipe: Recipe) -> int:
    with FlopCounterMode(display=False) as counter:
        classifier.eval()(torch.zeros(1, 3, recipe.input.height, recipe.input.width))
    return int(counter.get_total_flops()) // 2


def _state_bytes(specs: tuple[IngredientSpec, ...], parameters: int) -> int:
    """Weights, gradients, average; momentum, or both moments; the best so far if there is a selection."""
    copies = max(3 + (2 if spec.optimizer == "adamw" else 1) + (spec.selection is not None) for spec in specs)
    return 4 * copies * parameters


def _activation_bytes(classifier: Classifier, images: Tensor) -> int:
    """Return what autograd keeps of a forward pass in train mode, each storage counted once."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in classifier.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    classifier.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = classifier(images).sum()
    del loss
    return sum(kept.values())


def _evaluation_seconds(classifier: Classifier, recipe: Recipe, images: Tensor, labels: Tensor) -> float:
    """Time a few APGD steps, in training mode, which attacks every image to the end: an upper bound."""
    spec, steps = recipe.evaluation, 3
    seconds = seconds_of(
        lambda: apgd(classifier, images, labels, DEFAULT_THREATS[0], num_steps=steps, mode="train"), images.device
    )
    per_gradient = seconds / (steps * len(images))
    return per_gradient * spec.n * spec.num_steps * len(spec.threat_models) * len(recipe.kept)
