"""Soups with coefficients of their own for each stage, and channel statistics of the labelled pictures."""

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adapt.documents.patch import STATISTICS, Tensors
from adapt.networks.prepared import PreparedBase
from adapt.networks.recalibration import Recalibrator, project_to_simplex
from training.devices import exact_floats

STEP = 0.25  # of a coefficient, from one ingredient to another
LEAST, MOST = -0.5, 1.5  # of a coefficient
SWEEPS = 2  # over all stages, at most
EVALUATED = 250  # unseen pictures per forward

Doubles = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


class Said(NamedTuple):
    """What a soup says about pictures."""

    logits: Tensor  # (n, K)
    features: Tensor  # (n, D), what the last layer is given


def stage_of(key: str) -> str:
    """Return the stage of a tensor or layer by its name: the first part of it, or of numbered stages the first two."""
    parts = key.split(".")
    return ".".join(parts[: 2 if parts[0] in ("stages", "blocks", "layers") else 1])


class StageSoups:
    """Gives the base set's network the weights of stage-wise soups, recalibrated on the labelled pictures."""

    def __init__(self, prepared: PreparedBase, images: Pixels) -> None:
        """Take the base set and the labelled pictures, uint8 (n, H, W, 3).

        Raises:
            ValueError: the base set cannot be recalibrated, or its last layer is not linear.
        """
        if not prepared.can_recalibrate or prepared.head_key is None:
            raise ValueError("expected a base set with a linear last layer that can be recalibrated")
        self._prepared, self.head_key = prepared, prepared.head_key
        self._model = prepared.model("raw")
        own = list(prepared.base.state_dicts.values())
        self._tensors = {
            key: torch.stack([state_dict[key].double() for state_dict in own])
            for key, tensor in own[0].items()
            if tensor.is_floating_point()
        }
        moments = None if prepared.base.moments is None else list(prepared.base.moments.values())
        self._recalibrator = _ByStage(self._model, moments=moments)
        self._inputs = prepared.inputs(images)
        self.stages = tuple(dict.fromkeys(map(stage_of, self._tensors)))

    def mixed(self, coefficients: Doubles) -> Tensors:
        """Return every tensor mixed with the coefficients (G, M) of its stage, float32 by state-dict key.

        Statistics are mixed with the nearest coefficients on the simplex, as in recalibrated soups of one stage.
        """
        rows = dict(zip(self.stages, coefficients, strict=True))
        found = {}
        for key, stacked in self._tensors.items():
            row = rows[stage_of(key)]
            numbers = project_to_simplex(row) if key.endswith(STATISTICS) else row
            found[key] = torch.einsum("m,m...->...", torch.from_numpy(numbers), stacked).float().numpy()
        return found

    def set(self, coefficients: Doubles) -> Tensor:
        """Set a soup (G, M) with statistics of the labelled pictures; return its logits for these, (n, K)."""
        self._recalibrator.rows = {
            stage: project_to_simplex(row).tolist() for stage, row in zip(self.stages, coefficients, strict=True)
        }
        (*_, last) = coefficients.tolist()  # not used, because every tensor is in the patch
        with exact_floats():
            logits = self._recalibrator.run(last, [self._inputs], len(self._inputs), patch=self.mixed(coefficients))
        assert logits is not None, "the pictures are one batch"
        return logits

    @torch.inference_mode()
    def ask(self, images: Pixels) -> Said:
        """Return what the soup that was set says about pictures, uint8 (n, H, W, 3)."""
        logits: list[Tensor] = []
        features: list[Tensor] = []

        def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            features.append(inputs[0])

        handle = self._model.net.get_submodule(self.head_key).register_forward_pre_hook(catch)
        parts = np.array_split(images, -(-len(images) // EVALUATED))
        try:
            with exact_floats():
                logits.extend(self._model.net(self._prepared.inputs(part)) for part in parts)
        finally:
            handle.remove()
        return Said(torch.cat(logits), torch.cat(features))


class _ByStage(Recalibrator):
    """Mixes the moments of training with the coefficients of the layer's stage."""

    rows: Mapping[str, list[float]]

    def _estimate(self, name: str, coefficients: Sequence[float], share: float):  # type: ignore[no-untyped-def]
        return super()._estimate(name, self.rows[stage_of(name)], share)


def descend(loss: Callable[[Doubles], float], start: Doubles, *, pull: float, together: bool = False) -> Doubles:
    """Return coefficients (G, M) of lower  loss(c) + pull ||c - start||^2, stage by stage and step by step.

    Each stage in turn takes the best of the steps of `STEP` from one ingredient to another, if it lowers the objective.

    Args:
        loss: of the labelled pictures.
        start: the same coefficients in every stage.
        pull: to the start.
        together: all stages take each step together, so that the result has one vector of coefficients.
    """
    num_stages, num_ingredients = start.shape
    parts = [list(range(num_stages))] if together else [[stage] for stage in range(num_stages)]

    def objective(coefficients: Doubles) -> float:
        return loss(coefficients) + pull * float(np.square(coefficients - start).sum())

    best, value = start, objective(start)
    for _ in range(SWEEPS):
        before = value
        for part in parts:
            tried = [
                moved
                for pair in permutations(range(num_ingredients), 2)
                if (moved := _step(best, part, *pair)) is not None
            ]
            values = [objective(moved) for moved in tried]
            if values and min(values) < value:
                value = min(values)
                best = tried[int(np.argmin(values))]
        if value == before:
            break
    return best


def _step(coefficients: Doubles, stages: Sequence[int], gains: int, gives: int) -> Doubles | None:
    moved = coefficients.copy()
    moved[list(stages), gains] += STEP
    moved[list(stages), gives] -= STEP
    return moved if moved.min() >= LEAST and moved.max() <= MOST else None
