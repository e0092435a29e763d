"""Does ONNX Runtime say what torch says? The check behind every bundle and every exported file."""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from pydantic import Field

from adapt.documents.patch import Patch
from adapt.documents.soup import BnMode
from adapt.networks.folding import folded_state_dicts
from adapt.networks.mixing import mix
from deploy.session import Floats
from training.bases import BaseSet, StateDict
from training.documents import Frozen, one_line
from training.images import Pixels, to_input
from training.manifest import InputSpec

BATCHES = (1, 7)
TOLERANCE = 1e-4
# float32 rounding grows with the logits; an extrapolated soup's may be huge. Takes over above a logit of 33.
RELATIVE_TOLERANCE = 3e-6

Run = Callable[[Floats], Floats]  # images float32 (B, 3, H, W) -> logits (B, K)


class ParityError(ValueError):
    """ONNX Runtime and torch disagree on a soup's logits. One line with the worst case."""


class Case(Frozen):
    """One soup to compare on."""

    name: str = Field(description="ingredient, `default` or `random`")
    coefficients: dict[str, float]
    bn_mode: BnMode
    patch: Patch | None = None


class Comparison(Frozen):
    """One soup at one batch size."""

    name: str
    bn_mode: BnMode
    batch: int
    difference: float = Field(description="largest absolute logit difference; the largest float if one is not finite")
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance


class TorchReference:
    """The logits that torch computes for any soup of a base set. Not safe for two threads."""

    def __init__(self, base: BaseSet) -> None:
        self.base = base
        self._classifier = base.model()

    @cached_property
    def folded(self) -> dict[str, StateDict]:
        """The ingredients with BatchNorm folded, in the raw layout."""
        return folded_state_dicts(self.base)

    def state_dicts(self, bn_mode: BnMode) -> dict[str, StateDict]:
        """The ingredients that are mixed in this mode."""
        return self.folded if bn_mode == "folded" else self.base.state_dicts

    def mix(self, coefficients: Mapping[str, float], bn_mode: BnMode, patch: Patch | None = None) -> StateDict:
        """Return the soup's state dict; errors as for `adapt.networks.mixing.mix`."""
        vector = torch.tensor(self.base.manifest.vector(dict(coefficients)), dtype=torch.float64)
        tensors = None if patch is None else patch.tensors()
        return mix(list(self.state_dicts(bn_mode).values()), vector, patch=tensors)

    @torch.no_grad()
    def logits(self, state_dict: StateDict, images: Floats) -> Floats:
        """Return the network's logits (B, K) with these weights."""
        self._classifier.net.load_state_dict(state_dict)
        logits: Floats = self._classifier(torch.from_numpy(images)).numpy()
        return logits


def probe_pixels(spec: InputSpec, count: int = max(BATCHES)) -> Pixels:
    """Return seeded random images (count, H, W, 3), uint8, from fine to coarse noise: not all alike to a network."""
    generator = np.random.default_rng(0)
    images = np.empty((count, spec.height, spec.width, 3), dtype=np.uint8)
    for position in range(count):
        block = 2 ** (position % 5)
        noise = generator.integers(0, 256, (-(-spec.height // block), -(-spec.width // block), 3), dtype=np.uint8)
        images[position] = noise.repeat(block, axis=0).repeat(block, axis=1)[: spec.height, : spec.width]
    return images


def parity_cases(base: BaseSet, *, has_modes: bool, seed: int = 0) -> Iterator[Case]:
    """Yield every ingredient, the default soup and a random soup, in each BatchNorm mode.

    The random soup is affine in [-0.25, 1.25] folded and convex raw; with raw BatchNorm the default soup is left out
    where it has a negative coefficient: its variances may be negative.

    Args:
        base: the base set.
        has_modes: False if folding changes nothing: then one mode is enough.
        seed: of the random soup.
    """
    names = base.manifest.ingredient_names
    generator = np.random.default_rng(seed)
    convex = generator.dirichlet(np.ones(len(names)))
    affine = 1.5 * convex - 0.5 / len(names)
    default = base.manifest.default_coefficients
    modes: tuple[BnMode, ...] = ("folded", "raw") if has_modes else ("folded",)
    for mode in modes:
        for chosen in names:
            yield Case(name=chosen, coefficients={name: float(name == chosen) for name in names}, bn_mode=mode)
        if mode == "folded" or min(default.values()) >= 0:
            yield Case(name="default", coefficients=default, bn_mode=mode)
        random = affine if mode == "folded" else convex
        yield Case(name="random", coefficients=dict(zip(names, random.tolist(), strict=True)), bn_mode=mode)


def compare(reference: TorchReference, case: Case, run: Run, *, relative: float | None = None) -> list[Comparison]:
    """Compare a session with torch on one soup, at batch sizes 1 and 7.

    Args:
        reference: of the soup's base set.
        case: the soup.
        run: the session.
        relative: tolerance as a share of the largest logit (at least 1), for reduced precision; None is float32's:
            1e-4, or 3e-6 of the largest logit where that is more.

    Raises:
        ParityError: the session does not run at all, say because its graph has a fixed batch size.
    """
    images = to_input(probe_pixels(reference.base.manifest.input))
    state_dict = reference.mix(case.coefficients, case.bn_mode, case.patch)
    comparisons = []
    for batch in BATCHES:
        expected = reference.logits(state_dict, images[-batch:])
        found = _run(run, images[-batch:], case)
        largest = float(np.abs(expected).max())
        tolerance = max(TOLERANCE, RELATIVE_TOLERANCE * largest) if relative is None else relative * max(1.0, largest)
        difference = float(np.abs(found - expected).max()) if np.isfinite(found).all() else sys.float_info.max
        comparisons.append(
            Comparison(name=case.name, bn_mode=case.bn_mode, batch=batch, difference=difference, tolerance=tolerance)
        )
    return comparisons


def _run(run: Run, images: Floats, case: Case) -> Floats:
    try:
        return run(images)
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise ParityError(f"ONNX Runtime cannot run {case.name!r} at batch {len(images)}: {one_line(error)}") from error


def require(comparisons: list[Comparison]) -> None:
    """Raise ParityError with the worst comparison unless all hold."""
    if failed := [comparison for comparison in comparisons if not comparison.holds]:
        worst = max(failed, key=lambda comparison: comparison.difference / comparison.tolerance)
        raise ParityError(
            f"ONNX Runtime and torch differ by {worst.difference:.3g} in the logits of {worst.name!r} "
            f"({worst.bn_mode}, batch {worst.batch}), expected at most {worst.tolerance:.3g}"
        )
