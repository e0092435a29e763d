"""The serving bundle on disk: `bundle.json`, the graph without weights, flat rows. Imports no torch and no ONNX."""

import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from adapt.documents.soup import BnMode
from training.documents import Frozen, Signed, check_file, read_document
from training.manifest import InputSpec, Manifest, check_coefficients

FORMAT_VERSION = 1
BUNDLE_NAME = "bundle.json"
SKELETON_NAME = "skeleton.onnx"
WEIGHTS_LOCATION = "weights.bin"  # the external-data file the skeleton names; it exists in memory only
PROBE_IMAGES_NAME = "probe_images.bin"
PROBE_LOGITS_NAME = "probe_logits.bin"
INPUT_NAME, OUTPUT_NAME = "images", "logits"
ALIGNMENT = 64  # bytes; every tensor starts on a cache line, as ONNX Runtime's kernels like it
FLOAT_BYTES = 4
STAGING_NAME = r"\.[0-9a-zA-Z_]{1,12}-[0-9a-f]{8}"  # of a folder that `find_bundle` never returns

MODES: tuple[BnMode, ...] = ("folded", "raw")

_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BundleError(ValueError):
    """A bundle that cannot be used: corrupt, incomplete, edited, of another base set or format. One line."""


class TensorSlot(Frozen):
    """Where one tensor of the network lies in every row."""

    name: str = Field(description="key in the state dict of the timm network, and name in the graph")
    offset: int = Field(ge=0, multiple_of=ALIGNMENT, description="bytes from the start of the row")
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    is_variance: bool = Field(default=False, description="a BatchNorm running variance, which must not be negative")

    @property
    def num_floats(self) -> int:
        """Number of float32 elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def floats(self) -> slice:
        """The tensor's elements in a flat float32 row."""
        start = self.offset // FLOAT_BYTES
        return slice(start, start + self.num_floats)


class BundleInfo(Signed):
    """`bundle.json`: what the bundle serves, how its rows are laid out, and the SHA-256 of every other file."""

    format_version: Literal[1] = 1
    base_set: str = Field(description="name of the base set")
    base_digest: _Sha256 = Field(description="digest of the base set's manifest")
    input: InputSpec
    class_names: tuple[str, ...] = Field(min_length=2)
    ingredient_names: tuple[str, ...] = Field(min_length=2)
    default_coefficients: dict[str, float]
    default_temperature: float = Field(gt=0)
    tensors: tuple[TensorSlot, ...] = Field(min_length=1)
    row_floats: int = Field(ge=1, description="float32 elements of a row, padding included")
    rows: dict[BnMode, _FileName] = Field(description="file of the (M, row_floats) matrix of each BatchNorm mode")
    num_probe_images: int = Field(ge=1)
    files: dict[_FileName, _Sha256] = Field(description="SHA-256 of every file but this one")
    versions: dict[str, str] = Field(description="libraries that wrote the bundle")

    @model_validator(mode="after")
    def _check(self) -> "BundleInfo":
        check_coefficients(self.default_coefficients, self.ingredient_names)
        if set(self.rows) != set(MODES):
            raise ValueError(f"rows: expected the modes {list(MODES)}, got {sorted(self.rows)}")
        needed = {SKELETON_NAME, PROBE_IMAGES_NAME, PROBE_LOGITS_NAME, *self.rows.values()}
        if set(self.files) != needed:
            raise ValueError(f"files: expected {sorted(needed)}, got {sorted(self.files)}")
        end = 0
        for slot in self.tensors:
            if slot.offset < end:
                raise ValueError(f"tensors: {slot.name!r} overlaps the tensor before it")
            end = slot.offset + slot.num_floats * FLOAT_BYTES
        if end > self.row_floats * FLOAT_BYTES:
            raise ValueError(f"tensors: they end at byte {end}, after the row's {self.row_floats * FLOAT_BYTES}")
        return self

    @property
    def distinct_rows(self) -> tuple[str, ...]:
        """The rows files, each once: a network without BatchNorm has the same rows in both modes."""
        return tuple(dict.fromkeys(self.rows[mode] for mode in MODES))

    @property
    def reference_soups(self) -> tuple[dict[str, float], ...]:
        """The soups whose probe logits are stored: each ingredient alone, then the default soup."""
        names = self.ingredient_names
        alone = tuple({name: float(name == chosen) for name in names} for chosen in names)
        return (*alone, self.default_coefficients)

    def sizes(self) -> dict[str, int]:
        """Bytes that each file of known size must have."""
        num_soups = len(self.ingredient_names) + 1
        probe = self.num_probe_images
        return {
            **{name: len(self.ingredient_names) * self.row_floats * FLOAT_BYTES for name in self.distinct_rows},
            PROBE_IMAGES_NAME: probe * self.input.height * self.input.width * 3,
            PROBE_LOGITS_NAME: len(MODES) * num_soups * probe * len(self.class_names) * FLOAT_BYTES,
        }


def read_info(folder: Path, *, verify: bool = True) -> BundleInfo:
    """Read and check `bundle.json` and the files it names.

    Args:
        folder: the bundle.
        verify: compare every file's SHA-256 as well as its size.

    Raises:
        BundleError: missing, malformed, edited or corrupt; one line that names the file and what was expected.
    """
    path = folder / BUNDLE_NAME
    info = read_document(
        path,
        BundleInfo,
        version=FORMAT_VERSION,
        what="the description of a serving bundle",
        error=BundleError,
        hint=": build the bundle again",
    )
    info.check_digest(path, BundleError)
    _check_files(folder, info, verify=verify)
    return info


def _check_files(folder: Path, info: BundleInfo, *, verify: bool) -> None:
    sizes = info.sizes()
    for name, expected in info.files.items():
        path = folder / name
        if path.is_file() and (size := path.stat().st_size) != sizes.get(name, size):
            raise BundleError(f"{path}: expected {sizes[name]} bytes, got {size}: the file is corrupt")
        if verify or not path.is_file():
            check_file(path, expected, BundleError)


def find_bundle(base_folder: Path, manifest: Manifest, home: Path | None) -> Path | None:
    """Return the folder of the serving bundle of a base set, or None if there is none yet; opens nothing.

    Looks in `<home>/bundles/<digest>` first, then in `<base folder>/bundle/<digest>`, where `deploy bundle` puts it.

    Args:
        base_folder: the base set.
        manifest: its manifest, which has the digest.
        home: Saucier's home folder, where bundles are built; None looks beside the base set only.
    """
    roots = ([home / "bundles"] if home is not None else []) + [base_folder / "bundle"]
    for root in roots:
        if (root / manifest.digest / BUNDLE_NAME).is_file():
            return root / manifest.digest
    return None


def staging_folder(final: Path) -> Path:
    """Return a new name beside a bundle's for one that is being written or thrown away; see `STAGING_NAME`."""
    return final.with_name(f".{final.name[:12]}-{uuid.uuid4().hex[:8]}")


def discard_bundle(folder: Path) -> None:
    """Remove a bundle: at once for who looks for it, while processes that have it open keep reading the old files.

    Raises:
        OSError: it cannot be removed.
    """
    aside = staging_folder(folder)
    with suppress(FileNotFoundError):  # another process was faster
        folder.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)
