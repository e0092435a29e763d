"""The soup: coefficients by ingredient name, the base set they belong to, and the evidence. Imports no torch."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from adapt.documents.frequencies import ClassFrequency
from adapt.documents.held_out import HeldOut
from adapt.documents.patch import Patch, PatchSummary
from training.documents import Frozen, one_line, read_document
from training.files import replace_file
from training.manifest import Manifest, check_coefficients

FORMAT_VERSION = 1

BnMode = Literal["folded", "raw"]
Strategy = Literal["auto", "grid", "surrogate"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Gain = Annotated[float, Field(ge=-1, le=1)]


class SoupError(ValueError):
    """A soup that is malformed or belongs to another base set. One line that says what was expected."""


class SupportSummary(Frozen):
    """The labelled images a search was given."""

    n: int = Field(ge=0, description="number of labelled images, exact repeats counted once")
    unlabelled: int = Field(
        default=0, ge=0, description="number of images without a label: for channel statistics and class frequencies"
    )
    per_class: dict[str, int] = Field(description="number of images by class name; classes without images left out")


class Judged(Frozen):
    """How many labelled images the current soup could be judged by, and how. Accuracies are shares of these images."""

    fresh: int = Field(ge=0, description="images it was not fitted on")
    held_out: int = Field(ge=0, description="images it was fitted on, judged by the answer that its search held out")
    left_out: int = Field(
        default=0,
        ge=0,
        description="images it was fitted on without a held-out answer: they do not judge",
    )


class AccuracySummary(Frozen):
    """Cross-fitted accuracy: every image was held out from the choice it is scored on, for both soups."""

    current: Fraction = Field(description="accuracy of the current soup, answers held out where it was fitted")
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
    expected_gain: float | None = Field(default=None, description="posterior mean of the gain in accuracy")
    chance_of_harm: Fraction | None = Field(
        default=None, description="posterior chance of losing more accuracy than the stated harm"
    )
    judged: Judged | None = Field(default=None, description="the images of the comparison")


class SearchSummary(Frozen):
    """The search and its cost."""

    strategy: str = Field(description='"grid", "surrogate", or "recalibrate" without labels')
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
    """The candidate of an adaptation and its evidence; the service's registry has the last word on promotion."""

    state: Literal["promoted", "kept"]
    reason: str = Field(description="one sentence: why it was promoted or kept")
    coefficients: dict[str, float] = Field(description="the candidate, by ingredient name")
    temperature: float = Field(gt=0, description="divides the candidate's logits; chosen on the support images")
    bn_mode: BnMode
    patch: PatchSummary | None = Field(default=None, description="what the candidate replaces after mixing")
    support: SupportSummary
    accuracy: AccuracySummary | None = Field(description="null if there are too few images to hold any out")
    search: SearchSummary
    ingredients: dict[str, Fraction] = Field(description="accuracy of each ingredient alone on the support images")
    reference: FloorCheck | None = Field(default=None, description="null without reference images")
    attempt: int | None = Field(
        default=None, ge=1, description="number of this comparison with the same current version; null without labels"
    )
    level: Fraction | None = Field(
        default=None, description="p-value below which this attempt promotes: see docs/explanation/evidence.md"
    )
    not_tried: dict[str, str] = Field(default_factory=dict, description="rungs that were not tried, and why")
    classes: tuple[ClassFrequency, ...] | None = Field(
        default=None, description="estimated class frequencies; null where too few images tell them"
    )


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
    held_out: HeldOut | None = Field(
        default=None,
        description="the images it was made from, `held-out.safetensors`; null for none",
    )
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
    held_out: HeldOut | None = None,
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
        held_out=held_out,
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


def soup_from_parts(document: Any, patch_data: bytes | None, held_out_data: bytes | None) -> Soup:
    """Return the soup of a JSON document and of the bytes that stand beside it: of its patch, of its held-out answers.

    Raises:
        ValidationError: malformed, or the bytes are not those the document names.
    """
    if isinstance(document, dict):
        for field, data in (("patch", patch_data), ("held_out", held_out_data)):
            if isinstance(part := document.get(field), dict):
                document = document | {field: part | {"data": data}}
    return Soup.model_validate(document)


def patch_path(path: Path) -> Path:
    """Return where the patch of the soup in this file lies: `patch.safetensors` beside `soup.json`."""
    return _beside(path, "patch")


def held_out_path(path: Path) -> Path:
    """Return where the held-out answers of the soup in this file lie: `held-out.safetensors` beside `soup.json`."""
    return _beside(path, "held-out")


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{name}.safetensors" if path.stem == "soup" else f"{path.stem}.{name}.safetensors")


def read_soup(path: Path) -> Soup:
    """Read a soup, its patch and its held-out answers.

    Raises:
        SoupError: missing or malformed, in one line that names the file.
    """

    def build(document: Any) -> Soup:
        patch, held_out = (document.get(field) for field in ("patch", "held_out"))
        return soup_from_parts(
            document,
            None if patch is None else _read(patch_path(path), "the patch of the soup"),
            None if held_out is None else _read(held_out_path(path), "the held-out answers of the soup"),
        )

    return read_document(path, Soup, version=FORMAT_VERSION, what="a soup", error=SoupError, build=build)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SoupError(f"{path}: expected {what} beside it, {one_line(error)}") from None


def write_soup(path: Path, soup: Soup) -> None:
    """Write a soup and what stands beside it; older files stay intact until the new ones are whole on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = ((patch_path(path), soup.patch), (held_out_path(path), soup.held_out))
    for place, part in parts:
        if part is not None:
            replace_file(place, partial(_fill, part.data))
    replace_file(path, partial(_fill, (soup.model_dump_json(indent=2) + "\n").encode()))
    for place, part in parts:
        if part is None:
            place.unlink(missing_ok=True)


def _fill(content: bytes, path: Path) -> None:
    path.write_bytes(content)
