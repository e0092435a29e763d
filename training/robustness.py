"""Clean, robust and union accuracy of a classifier: a quick measurement, and a strong one that can be interrupted."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Never, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from training.attack_losses import LossName
from training.attacks import NUM_TARGETS, apgd, check_images, eval_mode, pgd
from training.data import ImageSet
from training.devices import exact_floats
from training.images import to_input
from training.intervals import wilson
from training.journal import Journal
from training.threat import NORMS, Norm, ThreatModel, union

AttackName = Literal["apgd", "pgd"]
Losses = Mapping[Norm, Sequence[LossName]]

# APGD's losses as in Croce et al. 2023 (arXiv:2302.10164), appendix B.2. Plain PGD always climbs the cross-entropy.
APGD_LOSSES: dict[Norm, LossName] = {"Linf": "dlr", "L2": "dlr", "L1": "ce"}
STRONG_LOSSES: dict[Norm, tuple[LossName, ...]] = {
    "Linf": ("dlr-targeted",),
    "L2": ("dlr-targeted",),
    "L1": ("ce", "dlr-targeted"),
}
QUICK_STEPS, STRONG_STEPS, STRONG_RESTARTS = 40, 100, 5


RandomStarts = Callable[[int, Norm, int, int], int]  # seed, norm, first image of the batch, number of the attempt
Result = TypeVar("Result")


class LogitsNotFinite(ValueError):
    """A classifier whose logits are NaN or infinite."""


class Attempt(NamedTuple):
    """One run of an attack on the images still standing."""

    loss: LossName
    target: int | None  # rank of the class aimed at; null for an untargeted loss


@dataclass(frozen=True)
class Evaluation:
    """Which images a classifier gets right, unperturbed and under each threat model.

    `correct` maps "clean", then the norm of each threat model, to a bool tensor (N,) on the CPU. An image counts under
    a threat model if it is classified correctly both clean and attacked. `predicted` is the class that the unperturbed
    image is given, int64 (N,).
    """

    correct: Mapping[str, Tensor]
    predicted: Tensor

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
        return {name: hits / self.n for name, hits in self._hits().items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the 95 % Wilson interval of each accuracy."""
        return {name: wilson(hits, self.n) for name, hits in self._hits().items()}

    def _hits(self) -> dict[str, int]:
        return {name: int(correct.sum()) for name, correct in {**self.correct, "union": self.union}.items()}


def random_starts(seed: int, norm: Norm, start: int, number: int) -> int:
    """Return the seed of an attempt's random starts: leaving out a norm, a batch or an attempt changes no other."""
    return (((number * 1_000_003 + seed) * 1_000_003 + start) * len(NORMS) + NORMS.index(norm)) % 2**63


def evaluate_classifier(
    model: nn.Module,
    images: Float[Tensor, "N C H W"],
    labels: Int[Tensor, "N"],
    threats: Sequence[ThreatModel],
    *,
    attack: AttackName = "apgd",
    num_steps: int = QUICK_STEPS,
    num_restarts: int = 1,
    losses: Losses | None = None,
    device: str = "cpu",
    batch_size: int = 250,
    num_threads: int | None = None,
    seed: int = 0,
    random_starts: RandomStarts = random_starts,
    journal: Journal | None = None,
    progress: str | None = None,
) -> Evaluation:
    """Attack a classifier with every threat model and return which images it gets right.

    Attempts follow one another, each on the images that still stand: every restart goes through all losses, and a
    targeted loss through each of the 9 (L1: 5) highest-scoring other classes, so *restarts are per target*. Each
    starts from a random point of its own.

    The same seed, batch size and device give the same answer, in one go or continued from a journal. On CUDA it is
    computed in float32 throughout, not in TensorFloat-32. The model is moved to `device` and stays there; otherwise it
    is left as it was found. One more forward pass, not the attack, decides whether an image is broken.

    Args:
        model: logits (B, K) of images in [0, 1].
        images: clean images in [0, 1], on any device.
        labels: their classes, int64.
        threats: at most one of each norm.
        attack: APGD (DLR loss for Linf and L2, cross-entropy for L1) or plain PGD (cross-entropy).
        num_steps: steps of an attempt.
        num_restarts: how often to go through all losses and targets.
        losses: losses of APGD by norm, one after the other. Default: one, as above; `STRONG_LOSSES` are harder.
        device: where to compute.
        batch_size: images attacked at once.
        num_threads: batches attacked at a time, each on one core: small nets gain more from this than from torch's own
            threads, and it changes no result. Default: one batch after the other, on torch's threads.
        seed: of the random starts.
        random_starts: what gives each attempt on a batch a seed of its own.
        journal: gets every finished attempt on a batch, and spares those that it already has.
        progress: label of a progress bar on stderr; null for none.

    Raises:
        LogitsNotFinite: a ValueError: the weights are broken.
        ValueError: no images, two threat models of one norm, or as `attacks.apgd`.
    """
    norms = [threat.norm for threat in threats]
    if len(set(norms)) < len(norms):
        raise ValueError(f"expected at most one threat model of each norm, got {norms}")
    check_images(images, labels)
    if losses is None:
        losses = {norm: (APGD_LOSSES[norm] if attack == "apgd" else "ce",) for norm in NORMS}
    model.to(device)
    with eval_mode(model), exact_floats(), _pool(num_threads) as pool:
        run = _Run(
            model=model,
            images=images,
            labels=labels,
            attack=attack,
            num_steps=num_steps,
            device=device,
            batch_size=batch_size,
            random_start=partial(random_starts, seed),
            journal=journal or Journal(None, {}),
            pool=pool,
        )
        predicted, num_classes = _predict(run)
        clean = predicted == labels.cpu()
        plans = {norm: _attempts(losses[norm], norm, num_classes, num_restarts) for norm in norms}
        total = len(images) * sum(len(attempts) for attempts in plans.values())
        correct: dict[str, Tensor] = {"clean": clean}
        with tqdm(total=total, desc=progress, unit="image", disable=None if progress else True) as bar:
            for threat in threats:
                correct[threat.norm] = _survivors(run, clean, threat, plans[threat.norm], bar)
    return Evaluation(correct, predicted)


def as_input(data: ImageSet) -> tuple[Float[Tensor, "N 3 H W"], Int[Tensor, "N"]]:
    """Return images as a network takes them, float32 in [0, 1], and labels, on the CPU."""
    return torch.from_numpy(to_input(data.images)), torch.from_numpy(data.labels)


def _pool(num_threads: int | None) -> AbstractContextManager[ThreadPoolExecutor | None]:
    if num_threads is None:
        return nullcontext()
    return ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))


class _Run(NamedTuple):
    """The inputs of every attempt."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    attack: AttackName
    num_steps: int
    device: str
    batch_size: int
    random_start: Callable[[Norm, int, int], int]
    journal: Journal
    pool: ThreadPoolExecutor | None

    def over_batches(self, work: Callable[[int], Result]) -> list[Result]:
        """Return what some work, given the first image of a batch, gives for each batch."""
        starts = range(0, len(self.images), self.batch_size)
        return list(map(work, starts) if self.pool is None else self.pool.map(work, starts))


def _attempts(losses: Sequence[LossName], norm: Norm, num_classes: int, num_restarts: int) -> list[Attempt]:
    once = []
    for loss in losses:
        targets = range(min(NUM_TARGETS[norm], num_classes - 1)) if loss.endswith("-targeted") else (None,)
        once += [Attempt(loss, target) for target in targets]
    return once * num_restarts


def _predict(run: _Run) -> tuple[Tensor, int]:
    """Return the classes given to the unperturbed images, int64 (N,) on the CPU, and the number of classes."""

    def predict(start: int) -> Tensor:
        batch = run.images[start : start + run.batch_size]
        return _logits(run.model, batch.to(run.device, memory_format=torch.channels_last)).cpu()

    if (known := run.journal.get("clean")) is None:
        parts = run.over_batches(predict)
        known = [parts[0].shape[1], *torch.cat(parts).argmax(1).tolist()]
        run.journal.put("clean", known)
    return torch.tensor(known[1:], dtype=torch.long), known[0]


def _survivors(
    run: _Run, clean: Tensor, threat: ThreatModel, attempts: Sequence[Attempt], bar: "tqdm[Never]"
) -> Tensor:
    """Return which images survive all attempts, bool (N,) on the CPU."""
    survived = clean.clone()

    def attack(start: int) -> None:
        batch = survived[start : start + run.batch_size]  # a view: what breaks here, breaks there
        for number, attempt in enumerate(attempts):
            rows = start + torch.nonzero(batch)[:, 0]
            if len(rows) > 0:
                key = f"{threat.norm}/{start}/{number}"
                if (broken := run.journal.get(key)) is None:
                    noise = torch.Generator().manual_seed(run.random_start(threat.norm, start, number))
                    broken = _broken(run, rows, threat, attempt, noise)
                    run.journal.put(key, broken)
                survived[broken] = False
            bar.set_postfix(standing=int(survived.sum()), refresh=False)
            bar.update(len(batch))

    run.over_batches(attack)
    return survived


def _broken(run: _Run, rows: Tensor, threat: ThreatModel, attempt: Attempt, noise: torch.Generator) -> list[int]:
    """Attack the images in these rows; return the rows of those that the model then gets wrong."""
    x = run.images[rows].to(run.device, memory_format=torch.channels_last)
    y = run.labels[rows].to(run.device)
    if run.attack == "pgd":
        x_adv = pgd(run.model, x, y, threat, num_steps=run.num_steps, loss=attempt.loss, generator=noise)
    else:
        loss, target = attempt
        x_adv = apgd(run.model, x, y, threat, num_steps=run.num_steps, loss=loss, target=target, generator=noise)
    wrong = _logits(run.model, x_adv).argmax(1) != y
    return rows[wrong.cpu()].tolist()


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = model(x)
    if not torch.isfinite(logits).all():
        raise LogitsNotFinite("expected finite logits, got NaN or infinity: the weights are broken")
    return logits
