"""The base-set manifest: what a folder of ingredients says about itself. Imports no torch: predictors read it too."""

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, ValidationError, model_validator

from training.documents import Frozen, Signed, check_file, first_error, read_document

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
COEFFICIENT_SUM_TOLERANCE = 1e-6

Norm = Literal["Linf", "L2", "L1"]
NORMS: tuple[Norm, ...] = ("Linf", "L2", "L1")


def _free_name(name: str) -> str:
    if re.fullmatch(_MOMENTS, name, re.IGNORECASE):
        raise ValueError(f"the file {name}.safetensors of a base set is for its moments: choose another name")
    return name


def _free_file(file: str) -> str:
    _free_name(file.removesuffix(".safetensors"))
    return file


_MOMENTS = r"moments(-[0-9a-f]{8})?"  # name of a file that every base set may have, besides those of its ingredients
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"), AfterValidator(_free_name)]
BaseSetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class BaseSetError(ValueError):
    """A base set that is corrupt, incomplete, edited, or of another format. The message names the file."""


def _fraction(value: object) -> object:
    """Accept "8/255" where a float is wanted."""
    if isinstance(value, str):
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f'expected a number or a fraction such as "8/255", got {value!r}') from None
    return value


def _known_norm(value: object) -> object:
    if value in NORMS:
        return value
    spelled = {norm.lower(): norm for norm in NORMS} | {"inf": "Linf", "l_inf": "Linf", "2": "L2", "1": "L1"}
    meant = spelled.get(str(value).lower())
    hint = f" (did you mean {meant}?)" if meant else ""
    raise ValueError(f"expected one of {', '.join(NORMS)}, got {value!r}{hint}")


class ThreatModel(Frozen):
    """A norm and a radius: the perturbations an attacker may use."""

    norm: Annotated[Norm, BeforeValidator(_known_norm)] = Field(description="norm of the perturbation")
    eps: Annotated[float, BeforeValidator(_fraction)] = Field(
        description='radius in input space on the [0, 1] pixel scale; a fraction such as "8/255" is accepted'
    )

    @model_validator(mode="after")
    def _check_eps(self) -> "ThreatModel":
        if self.norm == "Linf" and not 0 < self.eps <= 1:
            hint = f" (did you mean {self.eps:g}/255?)" if 1 < self.eps <= 255 else ""
            raise ValueError(f"expected 0 < eps <= 1 on the [0, 1] pixel scale for Linf, got {self.eps:g}{hint}")
        if self.eps <= 0:
            raise ValueError(f"expected eps > 0 for {self.norm}, got {self.eps:g}")
        return self


def parse_threat(text: str) -> ThreatModel:
    """Return the threat model written as "Linf:8/255".

    Raises:
        ValueError: not a norm, a colon and a radius, or a radius out of range.
    """
    norm, colon, eps = text.partition(":")
    if not (norm and colon and eps):
        raise ValueError(f"expected NORM:EPS such as Linf:8/255, L2:0.5 or L1:12, got {text!r}")
    try:
        return ThreatModel.model_validate({"norm": norm, "eps": eps})
    except ValidationError as error:
        raise ValueError(f"{text}: {first_error(error).removeprefix('top level: ')}") from None


class InputSpec(Frozen):
    """How an image becomes the network's input."""

    height: int = Field(ge=1, le=4096, description="rows, in pixels")
    width: int = Field(ge=1, le=4096, description="columns, in pixels")
    mean: tuple[float, float, float] = Field(description="per-channel mean of RGB on the [0, 1] scale")
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = Field(
        description="per-channel standard deviation of RGB on the [0, 1] scale"
    )
    resize: Literal["stretch", "crop"] = Field(
        default="stretch",
        description="stretch: bicubic straight to height x width; crop: scale the image to cover height/0.875 x "
        "width/0.875 (bicubic), then cut out the centre",
    )


class Architecture(Frozen):
    """A network by its name in timm's registry. No import path is ever taken from a manifest."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[A-Za-z0-9_]+)?$")] = Field(
        description="name in timm's registry"
    )
    kwargs: dict[str, JsonValue] = Field(default_factory=dict, description="keyword arguments of timm.create_model")

    @model_validator(mode="after")
    def _check_kwargs(self) -> "Architecture":
        # These make timm read files or the network, or fight with what the manifest already fixes.
        banned = {
            "pretrained",
            "checkpoint_path",
            "pretrained_cfg",
            "pretrained_cfg_overlay",
            "cache_dir",
            "num_classes",
        }
        if found := sorted(banned & self.kwargs.keys()):
            raise ValueError(f"architecture.kwargs must not contain {found}")
        return self


class Metric(Frozen):
    """A measured accuracy, with what it was measured by."""

    value: float = Field(ge=0, le=1, description="accuracy, a fraction")
    n: int = Field(ge=1, description="number of images")
    threat_model: ThreatModel | None = Field(default=None, description="null for clean accuracy")
    attack: str | None = Field(default=None, description="attack, loss and steps; null for clean accuracy")


class Storage(Frozen):
    """How an ingredient's file holds its weights, where that is not float32: see training/storage.py."""

    kind: Literal["half", "delta"] = Field(
        description="half: float16; delta: the difference to another ingredient in int8"
    )
    parent: Name | None = Field(
        default=None, description="delta: the ingredient it is added to, which is not stored as a difference itself"
    )
    original_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="of the file in float32; `metrics` are of its weights unless they were measured again"
    )
    before: Metric = Field(description="clean accuracy of the weights before they were rounded")
    after: Metric = Field(description="the same images, the weights as stored")

    @model_validator(mode="after")
    def _check_parent(self) -> "Storage":
        if (self.kind == "delta") != (self.parent is not None):
            wanted = "the name of an ingredient" if self.kind == "delta" else "no parent"
            raise ValueError(f"storage: {self.kind} expects {wanted}, got parent {self.parent!r}")
        return self


class Ingredient(Frozen):
    """One trained classifier of the set."""

    name: Name
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\.safetensors$"), AfterValidator(_free_file)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    threat_model: ThreatModel | None = Field(
        description="what it was trained against; null for nominal training, and for several at once (see the recipe)"
    )
    objective: str
    parent: str | None = Field(description="ingredient it was fine-tuned from")
    metrics: dict[str, Metric] = Field(default_factory=dict)
    storage: Storage | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # base sets in float32 keep the digest they have
        description="null: the file holds the weights in float32",
    )

    @property
    def delta_parent(self) -> str | None:
        """The ingredient that the file's content is added to; None where the file holds the weights themselves."""
        return None if self.storage is None else self.storage.parent


class MomentsFile(Frozen):
    """Where the means and variances of the ingredients' channels are: see training/moments.py."""

    file: Annotated[str, Field(pattern=rf"^{_MOMENTS}\.safetensors$")] = "moments.safetensors"
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    n: int = Field(ge=1, description="images they were measured on, not shifted")
    data_hash: str = Field(description="digest of these images")


class Provenance(Frozen):
    """Where a base set comes from."""

    recipe: dict[str, JsonValue]
    seed: int
    git_commit: str | None
    git_dirty: bool | None
    versions: dict[str, str]
    hardware: str
    data_hash: str
    seconds: float = Field(ge=0, description="wall-clock training time")


class Manifest(Signed):
    """`manifest.json` of a base set: one architecture, one input rule, M ingredients with digests."""

    format_version: Literal[1] = 1
    name: BaseSetName
    architecture: Architecture
    input: InputSpec
    class_names: tuple[str, ...] = Field(min_length=2)
    ingredients: tuple[Ingredient, ...] = Field(
        min_length=1, max_length=64, description="one is enough to train others from, two to mix"
    )
    default_coefficients: dict[str, float]
    default_temperature: float = Field(default=1.0, gt=0, description="divides the logits of the default soup")
    provenance: Provenance
    moments: MomentsFile | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # base sets without it keep the digest they have
        description="of the channels of networks without BatchNorm; without it these cannot be recalibrated",
    )

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        files = tuple(ingredient.file for ingredient in self.ingredients)
        if self.moments is not None:
            files = (*files, self.moments.file)
        unique = {"class_names": self.class_names, "ingredients": self.ingredient_names, "files": files}
        for what, names in unique.items():
            if repeats := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what}: {repeats} appear more than once")
        if any(not name.strip() for name in self.class_names):
            raise ValueError("class_names: a name is empty")
        check_coefficients(self.default_coefficients, self.ingredient_names)
        self._check_deltas()
        return self

    def _check_deltas(self) -> None:
        parents = {ingredient.name: ingredient.delta_parent for ingredient in self.ingredients}
        for name, parent in parents.items():
            if parent is not None and parent not in parents:
                raise ValueError(f"ingredients: {name} is stored as the difference to {parent!r}, which is not here")
            if parent is not None and parents[parent] is not None:
                raise ValueError(
                    f"ingredients: {name} is stored as the difference to {parent!r}: expected one that is stored in "
                    "float32 or half precision"
                )

    @property
    def ingredient_names(self) -> tuple[str, ...]:
        """Names in the order of every coefficient vector of this base set."""
        return tuple(ingredient.name for ingredient in self.ingredients)

    def vector(self, coefficients: dict[str, float]) -> list[float]:
        """Return the coefficients in ingredient order."""
        return [coefficients[name] for name in self.ingredient_names]


def check_mixable(manifest: Manifest) -> None:
    """Raise BaseSetError unless there are ingredients to mix: an imported base set has a single one at first."""
    if len(manifest.ingredients) < 2:
        raise BaseSetError(
            f"base set {manifest.name!r}: expected at least 2 ingredients to mix, it has only "
            f"{manifest.ingredient_names[0]!r}; train others with `saucier train RECIPE --from DIR`"
        )


def check_coefficients(coefficients: dict[str, float], names: tuple[str, ...]) -> None:
    """Raise ValueError unless there is one finite coefficient per ingredient and they sum to 1 within 1e-6."""
    if set(coefficients) != set(names):
        raise ValueError(f"expected one coefficient for each of {list(names)}, got {sorted(coefficients)}")
    if bad := [name for name, value in coefficients.items() if not math.isfinite(value)]:
        raise ValueError(f"expected finite coefficients, got {coefficients[bad[0]]} for {bad[0]!r}")
    total = math.fsum(coefficients.values())
    if abs(total - 1) > COEFFICIENT_SUM_TOLERANCE:
        raise ValueError(
            f"expected coefficients that sum to 1 within {COEFFICIENT_SUM_TOLERANCE:g}, got a sum of {total:.9g}"
        )


def read_manifest(folder: Path, *, check_files: bool = True) -> Manifest:
    """Read and verify the manifest of a base set.

    Args:
        folder: the base set, `bases/<name>/`.
        check_files: also compare the SHA-256 of every file it names.

    Raises:
        BaseSetError: missing, malformed, edited or corrupt; one line that names the file and what was expected.
    """
    path = folder / MANIFEST_NAME
    manifest = read_document(
        path, Manifest, version=FORMAT_VERSION, what="the manifest of a base set", error=BaseSetError
    )
    manifest.check_digest(path, BaseSetError)
    if check_files:
        for ingredient in manifest.ingredients:
            check_file(folder / ingredient.file, ingredient.sha256, BaseSetError, what="an ingredient")
        if manifest.moments is not None:
            check_file(folder / manifest.moments.file, manifest.moments.sha256, BaseSetError, what="the moments")
    return manifest
