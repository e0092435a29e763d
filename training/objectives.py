"""Training objectives: one small function each, over the one loop in fit.py.

An objective turns a `Step`, one batch with what belongs to it, into a loss. Its `@objective` line says which fields of
a recipe it uses, and a recipe with others is refused; keyword-only parameters are its options, which a recipe may set.
To add one, write the function and a recipe.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from training.attacks import apgd, eval_mode, fgsm
from training.documents import Frozen
from training.manifest import NORMS, Norm, ThreatModel
from training.multi_norm import msd as msd_attack
from training.pyramid import pyramid_attack
from training.split_norm import auxiliary_norms, merge_norms, split_norms

NumThreats = Literal["none", "one", "several"]
AttackKind = Literal["fgsm", "apgd"]
AttackLoss = Literal["ce", "dlr", "kl"]


class AttackSpec(Frozen):
    """The attack inside adversarial training."""

    kind: AttackKind = Field(description="fgsm: one step from uniform noise (Linf only); apgd: several steps")
    num_steps: int | dict[Norm, int] = Field(default=1, description="gradient steps per batch; may differ by norm")
    loss: AttackLoss = Field(
        default="ce", description="what apgd maximises; kl, towards the clean prediction, starts from noise"
    )

    @model_validator(mode="after")
    def _check_fgsm(self) -> "AttackSpec":
        if self.kind == "fgsm" and (self.num_steps != 1 or self.loss != "ce"):
            raise ValueError(
                f"fgsm is one step on the loss ce, got num_steps {self.num_steps} and loss {self.loss}: use apgd"
            )
        return self

    def steps(self, norm: Norm) -> int:
        """Return the number of steps for a norm.

        Raises:
            ValueError: none is given, or not from 1 to 200.
        """
        steps = self.num_steps.get(norm, 0) if isinstance(self.num_steps, dict) else self.num_steps
        if not 1 <= steps <= 200:
            raise ValueError(f"attack.num_steps: expected 1 to 200 steps for {norm}, got {steps}")
        return steps


@dataclass(frozen=True)
class Step:
    """One batch on its way through an objective."""

    model: nn.Module  # logits of images in [0, 1]; for attacks, which leave it as it was
    forward: Callable[[Tensor], Tensor]  # the same for the update: BatchNorm on this batch, gradients in step
    images: Float[Tensor, "B 3 H W"]
    labels: Int[Tensor, "B"]
    targets: Tensor  # what the loss compares with: the labels, or probabilities (B, K) where images are mixed
    threat_models: Sequence[ThreatModel]  # of the recipe, their radii scaled by its ramp
    attack: AttackSpec | None
    noise: torch.Generator  # of attacks; differs between processes
    draws: torch.Generator  # of choices that every process must make alike
    memory: dict[str, float]  # lasts from step to step, and through a resume
    label_smoothing: float = 0.0
    mean: Callable[[Tensor], Tensor] = lambda value: value  # over all processes

    def loss(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of a forward pass in train mode."""
        return cross_entropy(self.forward(images), self.targets, label_smoothing=self.label_smoothing)

    def attacked(self, number: int = 0, *, aim: Int[Tensor, "B"] | None = None) -> Float[Tensor, "B 3 H W"]:
        """Return the images attacked within a threat model; towards the classes `aim`, if they are given.

        The attack sees the model in eval mode, so that BatchNorm statistics stay those of training batches (Croce &
        Hein 2022, appendix).
        """
        assert self.attack is not None
        threat = self.threat_models[number]
        if self.attack.kind == "fgsm":
            assert aim is None
            return fgsm(self.model, self.images, self.labels, threat, generator=self.noise)
        return apgd(
            self.model,
            self.images,
            self.labels if aim is None else aim,
            threat,
            num_steps=self.attack.steps(threat.norm),
            loss=self.attack.loss if aim is None else "ce-targeted",
            mode="train",
            random_start=self.attack.loss == "kl" and aim is None,
            generator=self.noise,
        )

    def choose(self, weights: Sequence[float]) -> int:
        """Draw a position with probability in proportion to its weight; every process draws the same."""
        return int(torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=self.draws))


class Objective(NamedTuple):
    """An objective, and what a recipe must give it."""

    function: Callable[..., Tensor]
    num_threats: NumThreats
    norms: Sequence[Norm]
    kinds: Sequence[AttackKind]
    losses: Sequence[AttackLoss]
    options: type[BaseModel]
    prepare: Callable[[nn.Module], nn.Module]
    finish: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

    @property
    def needs_attack(self) -> bool:
        """Whether a recipe gives it an attack."""
        return len(self.kinds) > 0


OBJECTIVES: dict[str, Objective] = {}


def objective(
    threats: NumThreats,
    *,
    norms: Sequence[Norm] = NORMS,
    kinds: Sequence[AttackKind] = get_args(AttackKind),
    losses: Sequence[AttackLoss] = get_args(AttackLoss),
    prepare: Callable[[nn.Module], nn.Module] = lambda net: net,
    finish: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register an objective under its function's name, with hyphens for underscores.

    Args:
        threats: how many threat models a recipe gives it.
        norms: which ones these may have.
        kinds: of the attack that a recipe gives it; empty if it takes none.
        losses: of this attack.
        prepare: changes the network before training.
        finish: turns the state dict of the changed network into that of the original one.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        parameters = inspect.signature(function).parameters.values()
        fields: dict[str, Any] = {p.name: (p.annotation, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}
        options = create_model(function.__name__, __config__=ConfigDict(extra="forbid", frozen=True), **fields)
        name = function.__name__.strip("_").replace("_", "-")
        OBJECTIVES[name] = Objective(function, threats, norms, kinds, losses, options, prepare, finish)
        return function

    return register


@objective("none", kinds=())
def nominal(step: Step) -> Float[Tensor, ""]:
    """Cross-entropy on clean images."""
    return step.loss(step.images)


@objective("one")
def adversarial(step: Step) -> Float[Tensor, ""]:
    """Single-norm adversarial training: cross-entropy on attacked images.

    Source: Madry et al. 2018 (arXiv:1706.06083).
    """
    return step.loss(step.attacked())


@objective("several")
def sat(step: Step) -> Float[Tensor, ""]:
    """One threat model per batch, drawn uniformly. Source: Madaan et al. 2021 (arXiv:2008.00267), section 4."""
    return step.loss(step.attacked(step.choose([1.0] * len(step.threat_models))))


@objective("several")
def avg(step: Step) -> Float[Tensor, ""]:
    """Every threat model on every batch, mean of the losses. Source: Tramer & Boneh 2019 (arXiv:1904.13000)."""
    losses = [step.loss(step.attacked(number)) for number in range(len(step.threat_models))]
    return torch.stack(losses).mean()


@objective("several")
def max_(step: Step) -> Float[Tensor, ""]:
    """Every threat model on every batch; per image the perturbation of largest loss.

    Losses are compared in eval mode, as the attacks see them. Source: Tramer & Boneh 2019 (arXiv:1904.13000).
    """
    points = torch.stack([step.attacked(number) for number in range(len(step.threat_models))])
    with torch.no_grad(), eval_mode(step.model):
        losses = [cross_entropy(step.model(point), step.targets, reduction="none") for point in points]
    worst = torch.stack(losses).argmax(0)
    return step.loss(points[worst, torch.arange(len(worst), device=worst.device)])


@objective("several", kinds=("apgd",), losses=("ce",))
def msd(step: Step) -> Float[Tensor, ""]:
    """One attack whose every step is the best of the threat models' steps. Norms with steps of their own take the most.

    Source: multi steepest descent, Maini, Wong & Kolter 2020 (arXiv:1909.04068), algorithm 1.
    """
    assert step.attack is not None
    steps = max(step.attack.steps(threat.norm) for threat in step.threat_models)
    return step.loss(msd_attack(step.model, step.images, step.labels, step.threat_models, num_steps=steps))


@objective("several")
def eat(step: Step, *, decay: float = 0.9) -> Float[Tensor, ""]:
    """One threat model per batch, drawn in proportion to the running robust error under each.

    For unions it is enough to train on the extremes, Linf and L1. Until both have been seen they are drawn evenly.

    Args:
        step: the batch.
        decay: of the running errors, per batch of that threat model, in [0, 1).

    Source: E-AT, Croce & Hein 2022 (arXiv:2105.12508), section 4.
    """
    # By position: two threat models may share a norm, and a ramp changes the radii from step to step.
    keys = [f"robust error {number}" for number in range(len(step.threat_models))]
    seen = all(key in step.memory for key in keys)
    number = step.choose([step.memory[key] + 1e-6 for key in keys] if seen else [1.0] * len(keys))
    logits = step.forward(step.attacked(number))
    error = float(step.mean((logits.detach().argmax(1) != step.labels).float().mean()))
    before = step.memory.get(keys[number], error)
    step.memory[keys[number]] = decay * before + (1 - decay) * error
    return cross_entropy(logits, step.targets, label_smoothing=step.label_smoothing)


@objective("one")
def trades(step: Step, *, beta: float = 6.0) -> Float[Tensor, ""]:
    """Clean cross-entropy plus `beta` times the KL divergence from the clean to the attacked prediction.

    Use an attack with loss kl. Source: TRADES, Zhang et al. 2019 (arXiv:1901.08573), equation 5.
    """
    attacked = step.attacked()
    clean = step.forward(step.images)
    divergence = kl_div(
        log_softmax(step.forward(attacked), 1), log_softmax(clean, 1), reduction="batchmean", log_target=True
    )
    return cross_entropy(clean, step.targets, label_smoothing=step.label_smoothing) + beta * divergence


@objective("one", kinds=("apgd",), losses=("ce",), prepare=split_norms, finish=merge_norms)
def advprop(step: Step) -> Float[Tensor, ""]:
    """Clean and attacked images, each with normalisation layers of their own; those of the attacked ones are dropped.

    The attack aims at a random other class. Source: AdvProp, Xie et al. 2020 (arXiv:1911.09665).
    """
    clean = step.forward(step.images)
    num_classes = clean.shape[1]
    shift = torch.randint(1, num_classes, step.labels.shape, generator=step.noise, device=step.noise.device)
    with auxiliary_norms(step.model):
        attacked = step.loss(step.attacked(aim=(step.labels + shift.to(step.labels)) % num_classes))
    return (cross_entropy(clean, step.targets, label_smoothing=step.label_smoothing) + attacked) / 2


@objective("one", norms=("Linf",), kinds=("apgd",), losses=("ce",))
def pyramid_at(
    step: Step, *, scales: tuple[int, ...] = (32, 16, 1), multipliers: tuple[float, ...] = (20.0, 10.0, 1.0)
) -> Float[Tensor, ""]:
    """Clean images and images perturbed at several scales at once, mean of the losses.

    Args:
        step: the batch; its threat model (Linf) is the radius at multiplier 1.
        scales: side of the squares that one value of the perturbation covers, in pixels, per level.
        multipliers: of the radius, per level.

    Source: Pyramid adversarial training, Herrmann et al. 2022 (arXiv:2111.15121), section 3.
    """
    assert step.attack is not None
    threat = step.threat_models[0]
    attacked = pyramid_attack(
        step.model,
        step.images,
        step.labels,
        threat,
        num_steps=step.attack.steps(threat.norm),
        scales=scales,
        multipliers=multipliers,
        generator=step.noise,
    )
    return (step.loss(step.images) + step.loss(attacked)) / 2
