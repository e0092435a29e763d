"""The soup: coefficients by ingredient name, the base set they belong to, and the evidence. Imports no torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from adapt.documents.patch import Patch, PatchSummary
from training.documents import Frozen, one_line, read_document
from training.manifest import Manifest, check_coefficients

FORMAT_VERSION = 1

BnMode = Literal["folded", "raw"]
Promote = Literal["auto", "always", "never"]
Strategy = Literal["auto", "grid", "surrogate"]
Rung = Literal["statistics", "head", "early"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
Fraction = Annotated[float, Field(ge=0, le=1)]
Gain = Annotated[float, Field(ge=-1, le=1)]


class SoupError(ValueError):
    """A soup that is malformed or belongs to another base set. One line that says what was expected."""


class SupportSummary(Frozen):
    """The labelled images a search was given."""

    n: int = Field(ge=0, description="number of labelled images, exact repeats counted once")
    unlabelled: int = Field(default=0, ge=0, description="number of images without a label, for recalibration only")
    per_class: dict[str, int] = Field(description="number of images by class name; classes without images left out")


class AccuracySummary(Frozen):
    """Cross-fitted accuracy: every image was held out from the choice it is scored on."""

    current: Fraction = Field(description="accuracy of the current soup on the support images")
    candidate: Fraction = Field(description="cross-fitted accuracy of what the search finds")
    interval: tuple[Gain, Gain] = Field(description="95 % interval of the paired gain, candidate minus current")
    p_value: Fraction = Field(
        description="one-sided paired test of `candidate no better than current`, on right answers and log-losses"
    )
    labels_needed: int | None = Field(
        default=None,
        ge=1,
        description="about how many labelled images would prove the gain seen; null if proven, or too small to say",
    )


class SearchSummary(Frozen):
    """What the search did and what it cost."""

    strategy: str = Field(description='"grid", "surrogate", or "recalibrate" where there were no labels')
    candidates: int = Field(ge=1, description="number of soups evaluated")
    image_forwards: int = Field(ge=0, description="images through the network, all evaluations included")
    seconds: float = Field(ge=0, description="wall-clock time, preparation of the base set included")
    grid: str = Field(default="", description='which candidates, e.g. "affine step 0.25 in [-0.25, 1.25]"')


class FloorCheck(Frozen):
    """Accuracy of the candidate on trusted reference images, and the least it must be to be promoted."""

    n: int = Field(ge=1, description="reference images")
    accuracy: Fraction
    floor: Fraction


class Outcome(Frozen):
    """What an adaptation found and what its evidence says; the service's registry has the last word on promotion."""

    state: Literal["promoted", "kept"]
    reason: str = Field(description="one sentence: why it was promoted or kept")
    coefficients: dict[str, float] = Field(description="the candidate, by ingredient name")
    temperature: float = Field(gt=0, description="divides the candidate's logits; chosen on the support images")
    bn_mode: BnMode
    patch: PatchSummary | None = Field(default=None, description="what the candidate replaces after mixing")
    support: SupportSummary
    accuracy: AccuracySummary | None = Field(description="null where there are too few images to hold any out")
    search: SearchSummary
    ingredients: dict[str, Fraction] = Field(description="accuracy of each ingredient alone on the support images")
    reference: FloorCheck | None = Field(default=None, description="null where there are no reference images")


class Soup(Frozen):
    """`soup.json`: what to serve. A handful of numbers on top of one base set, and perhaps a small patch.

    The served logits are those of the network with weights `sum_m c_m * theta_m`, then with the tensors of the patch
    put in the place of the mixed ones, divided by `temperature`.
    """

    format_version: Literal[1] = 1
    base_set: str = Field(description="name of the base set")
    base_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="digest of its manifest")
    coefficients: dict[str, float] = Field(min_length=1, description="by ingredient name; they sum to 1")
    bn_mode: BnMode = Field(
        default="folded", description="mix BatchNorm folded into each ingredient's weights, or raw with its statistics"
    )
    temperature: float = Field(default=1.0, gt=0, description="divides the logits, so that confidences are calibrated")
    patch: Patch | None = Field(default=None, description="tensors that replace mixed ones; `patch.safetensors`")
    evidence: Outcome | None = Field(default=None, description="the search that found it; null for the default soup")

    @model_validator(mode="after")
    def _check(self) -> "Soup":
        check_coefficients(self.coefficients, tuple(self.coefficients))
        if self.patch is not None and self.patch.recalibrated and self.bn_mode != "raw":
            raise ValueError(f"patch: recalibrated statistics belong to bn_mode raw, got {self.bn_mode}")
        return self

    def vector(self, manifest: Manifest) -> list[float]:
        """Return the coefficients in the ingredient order of `manifest`."""
        return manifest.vector(self.coefficients)


def make_soup(
    manifest: Manifest,
    coefficients: Mapping[str, float],
    *,
    bn_mode: BnMode = "folded",
    temperature: float = 1.0,
    patch: Patch | None = None,
    evidence: Outcome | None = None,
) -> Soup:
    """Return a soup over the ingredients of `manifest`.

    Raises:
        ValueError: coefficients missing, not finite or not summing to 1; temperature not positive.
    """
    check_coefficients(dict(coefficients), manifest.ingredient_names)
    return Soup(
        base_set=manifest.name,
        base_digest=manifest.digest,
        coefficients={name: float(coefficients[name]) for name in manifest.ingredient_names},
        bn_mode=bn_mode,
        temperature=temperature,
        patch=patch,
        evidence=evidence,
    )


def default_soup(manifest: Manifest) -> Soup:
    """Return the soup a base set ships with: best on its clean validation images, BatchNorm folded."""
    return make_soup(manifest, manifest.default_coefficients, temperature=manifest.default_temperature)


def check_soup(soup: Soup, manifest: Manifest) -> None:
    """Raise SoupError unless the soup was made for this very base set."""
    if soup.base_digest != manifest.digest:
        raise SoupError(
            f"the soup was made for base set {soup.base_set!r} with digest {soup.base_digest[:12]}, "
            f"expected {manifest.name!r} with digest {manifest.digest[:12]}"
        )
    try:
        check_coefficients(soup.coefficients, manifest.ingredient_names)
    except ValueError as error:
        raise SoupError(f"coefficients: {error}") from None


def soup_from_parts(document: Any, patch_data: bytes | None) -> Soup:
    """Return the soup of a JSON document and the bytes of its patch, which stand beside it.

    Raises:
        ValidationError: malformed, or the bytes are not those the document names.
    """
    if isinstance(document, dict) and isinstance(patch := document.get("patch"), dict):
        document = document | {"patch": patch | {"data": patch_data}}
    return Soup.model_validate(document)


def patch_path(path: Path) -> Path:
    """Return where the patch of the soup in this file lies: `patch.safetensors` beside `soup.json`."""
    return path.with_name("patch.safetensors" if path.stem == "soup" else f"{path.stem}.patch.safetensors")


def read_soup(path: Path) -> Soup:
    """Read a soup and its patch.

    Raises:
        SoupError: missing or malformed, in one line that names the file.
    """

    def build(document: Any) -> Soup:
        patch = document.get("patch")
        return soup_from_parts(document, None if patch is None else _read_patch(patch_path(path)))

    return read_document(path, Soup, version=FORMAT_VERSION, what="a soup", error=SoupError, build=build)


def _read_patch(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SoupError(f"{path}: expected the patch of the soup beside it, {one_line(error)}") from None


def write_soup(path: Path, soup: Soup) -> None:
    """Write a soup and its patch; older files stay intact until the new ones are whole on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if soup.patch is not None:
        _replace(patch_path(path), soup.patch.data)
    _replace(path, (soup.model_dump_json(indent=2) + "\n").encode())
    if soup.patch is None:
        patch_path(path).unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    partial = path.parent / f".{path.name}.{os.getpid()}"
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
