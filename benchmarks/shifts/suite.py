"""The suite: which shifts there are, what family each belongs to, and its severity in the core suite."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.shifts.corruptions import CORRUPTIONS, Corruption
from benchmarks.shifts.pixels import Batch
from benchmarks.shifts.renditions import LIGHT, RENDITIONS
from training.data import ImageSet

Family = Literal["noise", "blur", "weather", "digital", "rendition", "natural"]
FAMILIES: tuple[Family, ...] = ("noise", "blur", "weather", "digital", "rendition", "natural")


@dataclass(frozen=True)
class Shift:
    """A shift that is computed from clean pictures.

    Attributes:
        name: how tables call it.
        family: hyper-parameters for one family are chosen on the others; statistics are given by family.
        corruption: what happens to the pictures, at severities 1 to 5.
        core_severity: the one of the core suite.
    """

    name: str
    family: Family
    corruption: Corruption
    core_severity: int

    def __call__(self, images: Batch, severity: int | None = None, *, seed: int) -> Batch:
        """Return the shifted pictures, uint8 (n, H, W, 3); at the core severity if none is given."""
        return self.corruption(images, self.core_severity if severity is None else severity, seed=seed)

    def of(self, data: ImageSet, severity: int | None = None, *, seed: int) -> ImageSet:
        """Return the shifted set. It keeps the hashes of the clean originals: these tell whether two sets share one."""
        return ImageSet(self(data.images, severity, seed=seed), data.labels, data.class_names, data.hashes)


_FAMILIES: Mapping[Family, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness", "low_light", "haze"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "rendition": tuple(RENDITIONS),
}
# Severity 5, as is usual for the standard ones; of our own, those that leave nothing to see at 5 stop at 4.
_CORE_SEVERITY: Mapping[str, int] = {"low_light": 4, "haze": 4, "posterise": 4}
_CORRUPTIONS: Mapping[str, Corruption] = {**CORRUPTIONS, **RENDITIONS, **LIGHT}
STANDARD = tuple(CORRUPTIONS)  # the names of CIFAR-10-C, in its order

SUITE: Mapping[str, Shift] = {
    name: Shift(name, family, _CORRUPTIONS[name], _CORE_SEVERITY.get(name, 5))
    for family, names in _FAMILIES.items()
    for name in names
}


SEVERITIES = (1, 2, 3, 4, 5)
# Every shift at every severity, as in "fog@3".
AT_SEVERITIES: Mapping[str, Shift] = {
    f"{name}@{severity}": replace(shift, name=f"{name}@{severity}", core_severity=severity)
    for name, shift in SUITE.items()
    for severity in SEVERITIES
}


def find_shift(name: str) -> Shift:
    """Return the shift of this name, at its core severity or, as in "fog@3", at another.

    Raises:
        ValueError: there is none.
    """
    found = SUITE.get(name) or AT_SEVERITIES.get(name)
    if found is None:
        raise ValueError(f"expected a shift of {list(SUITE)}, perhaps with @1 to @5, got {name!r}")
    return found
