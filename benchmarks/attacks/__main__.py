"""Our APGD against the attacks of other libraries: speed and robust accuracy."""

import copy
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from benchmarks.attacks.references import REFERENCES, Attack, ours, quiet, survivors, torchattacks_apgd
from benchmarks.machine import machine
from training.attack_losses import LossName
from training.bases import load_base_set
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run
from training.evaluate import evaluation_threats, load_images
from training.images import to_input
from training.intervals import wilson
from training.parameters import Positional
from training.threat import ThreatModel

TARGET = 1.3  # images per second of ours over torchattacks', at least
ALLOWED = 0.01  # by which our robust accuracy may be higher (our attack weaker) for Linf and L2
LOSS: Literal["dlr"] = "dlr"
LOSSES: tuple[LossName, ...] = ("ce", "dlr")


class Attacks(Command):
    """Attack two ingredients with our APGD and with those of torchattacks, ART and foolbox, as many steps each.

    Example: python -m benchmarks.attacks bases/cifar10-small --data .data/cifar10 --n 500
    """

    name: ClassVar[str] = "attacks"
    base: Annotated[Path, Positional] = Field(default=Path("bases/cifar10-small"), description="base set")
    data: Path | None = Field(default=None, description="the recipe's data folder; default: where the recipe says")
    models: tuple[str, ...] = Field(default=("linf", "l1"), description="ingredients; the first is timed")
    n: int = Field(default=500, ge=1, description="test images for the accuracies")
    n_timed: int = Field(default=256, ge=1, description="test images for the times")
    steps: int = Field(default=40, ge=1, description="steps of every attack")
    restarts: int = Field(default=1, ge=1, description="restarts of every attack")
    repeats: int = Field(default=5, ge=1, description="interleaved rounds, after one that does not count")
    batch_size: int = Field(default=128, ge=1, description="images attacked at once")
    threads: int = Field(default=1, ge=1, description="torch CPU threads")

    def execute(self) -> Result:
        """Measure."""
        torch.set_num_threads(self.threads)
        base = load_base_set(self.base)
        test = load_images(base.manifest, self.data).balanced(self.n, seed=self.seed)
        images, labels = torch.from_numpy(to_input(test.images)), torch.from_numpy(test.labels)
        threats = evaluation_threats(base.manifest)
        speed = self._speed(base.model(self.models[0]), images[: self.n_timed], labels[: self.n_timed], threats[0])
        accuracies = [
            {"model": name, **row}
            for name in self.models
            for row in self._accuracies(base.model(name), images, labels, threats)
        ]
        data = {
            "base_set": base.manifest.name,
            "n": len(images),
            "steps": self.steps,
            "restarts": self.restarts,
            "threat_models": {threat.norm: threat.eps for threat in threats},
            "speed": speed,
            "accuracies": accuracies,
            "target": TARGET,
            "machine": machine(),
        }
        holds = speed["ratio"] >= TARGET and all(row["holds"] for row in accuracies)
        return Result(data, _text(data), EXIT_DONE if holds else EXIT_CLAIM_FAILED)

    def _speed(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> dict[str, Any]:
        """Time APGD of both on the images, and on those alone that stand in the end: nothing falls and is left out."""
        attacks: dict[str, Attack] = {
            "ours": partial(ours, loss=LOSS),
            "torchattacks": partial(torchattacks_apgd, loss=LOSS),
        }
        # Each may have the memory layout that it is faster with.
        models = {"contiguous": model, "channels_last": _channels_last(model)}
        standing = torch.ones_like(labels, dtype=torch.bool)
        chosen = {}
        for name, attack in attacks.items():
            seconds = {}
            for layout, variant in models.items():
                _run(attack, variant, images[:32], labels[:32], threat, self.steps, self.batch_size)
                seconds[layout] = _run(attack, variant, images, labels, threat, self.steps, self.batch_size)[1]
            chosen[name] = min(seconds, key=lambda layout: seconds[layout])
            standing &= survivors(attack, model, images, labels, threat, steps=self.steps, batch_size=self.batch_size)
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in attacks}
        upright: dict[str, list[tuple[float, float]]] = {name: [] for name in attacks}
        for _ in range(self.repeats):
            for name, attack in attacks.items():
                variant = models[chosen[name]]
                rounds[name].append(_run(attack, variant, images, labels, threat, self.steps, self.batch_size))
            for name, attack in attacks.items() if standing.any() else ():
                x, y = images[standing], labels[standing]
                upright[name].append(_run(attack, models[chosen[name]], x, y, threat, self.steps, self.batch_size))
        ratios, cpu_ratios = _ratios(rounds)
        return {
            "attack": f"APGD-{self.steps}, {LOSS} loss, {threat.norm}",
            "n": len(images),
            "batch_size": self.batch_size,
            "threads": self.threads,
            "layout": chosen,
            "images_per_second": {name: round(_rate(times, len(images)), 1) for name, times in rounds.items()},
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_per_round": [round(ratio, 3) for ratio in ratios],
            "cpu_time_ratio": round(float(np.median(cpu_ratios)), 3),
            "n_standing": int(standing.sum()),
            "ratio_standing": round(float(np.median(_ratios(upright)[0])), 3) if standing.any() else None,
        }

    def _accuracies(
        self, model: nn.Module, images: Tensor, labels: Tensor, threats: Sequence[ThreatModel]
    ) -> list[dict[str, Any]]:
        rows = []
        judge = partial(
            survivors,
            model=_channels_last(model),
            images=images,
            labels=labels,
            steps=self.steps,
            restarts=self.restarts,
            batch_size=self.batch_size,
        )
        for threat in threats:
            found = {loss: judge(partial(ours, loss=loss), threat=threat) for loss in LOSSES}
            for name, (loss, attack) in REFERENCES[threat.norm].items():
                mine, theirs = int(found[loss].sum()), int(judge(attack, threat=threat).sum())
                allowed = 0.0 if threat.norm == "L1" else ALLOWED
                rows.append(
                    {
                        "norm": threat.norm,
                        "reference": name,
                        "loss": loss,
                        "ours": mine / len(images),
                        "theirs": theirs / len(images),
                        "ours_interval": wilson(mine, len(images)),
                        "theirs_interval": wilson(theirs, len(images)),
                        "holds": mine <= theirs + allowed * len(images),
                    }
                )
        return rows


def _channels_last(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def _run(
    attack: Attack, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, steps: int, batch_size: int
) -> tuple[float, float]:
    """Return the seconds that an attack takes, on the clock and of CPU time."""
    is_channels_last = next(model.parameters()).is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    batches = [
        (x.contiguous(memory_format=layout), y)
        for x, y in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
    ]
    with quiet():
        wall, cpu = time.perf_counter(), time.process_time()
        for x, y in batches:
            attack(model, x, y, threat, steps, 1)
        return time.perf_counter() - wall, time.process_time() - cpu


def _ratios(times: dict[str, list[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    """Return torchattacks' time over ours, round by round, on the clock and of CPU time: the machine's speed drifts."""
    pairs = list(zip(times["torchattacks"], times["ours"], strict=True))
    return [theirs[0] / mine[0] for theirs, mine in pairs], [theirs[1] / mine[1] for theirs, mine in pairs]


def _rate(times: Sequence[tuple[float, float]], n: int) -> float:
    return n / float(np.median([wall for wall, _ in times]))


def _text(data: dict[str, Any]) -> str:
    speed = data["speed"]
    rates = (f"{name} {rate:.1f} ({speed['layout'][name]})" for name, rate in speed["images_per_second"].items())
    rounds = ", ".join(f"{ratio:.2f}" for ratio in speed["ratio_per_round"])
    lines = [
        data["machine"],
        f"{speed['attack']}, n = {speed['n']}, batch {speed['batch_size']}, {speed['threads']} thread(s), median of "
        f"{len(speed['ratio_per_round'])} interleaved rounds",
        f"images/s: {', '.join(rates)}",
        f"ours is {speed['ratio']:.2f} times as fast (rounds {rounds}; by CPU time {speed['cpu_time_ratio']:.2f}); "
        f"target: at least {data['target']}",
        f"on the {speed['n_standing']} images alone that stand in the end: {speed['ratio_standing']}",
        "",
        f"robust accuracy in percent with 95 % intervals, n = {data['n']}, {data['steps']} steps, "
        f"{data['restarts']} restart(s)",
        f"{'model':8} {'norm':5} {'reference':24} {'theirs':>20} {'ours':>20}  ours by",
    ]
    for row in data["accuracies"]:
        mine, theirs = _cell(row["ours"], row["ours_interval"]), _cell(row["theirs"], row["theirs_interval"])
        verdict = "" if row["holds"] else "  WEAKER"
        lines.append(
            f"{row['model']:8} {row['norm']:5} {row['reference']:24} {theirs:>20} {mine:>20}  {row['loss']}{verdict}"
        )
    return "\n".join(lines)


def _cell(share: float, interval: tuple[float, float]) -> str:
    return f"{100 * share:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


if __name__ == "__main__":
    sys.exit(run([Attacks], prog="python -m benchmarks.attacks", description="Attacks against other libraries'."))
