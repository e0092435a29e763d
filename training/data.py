"""Datasets as arrays: image folders, CIFAR-10, the embedded digits; deterministic splits."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from training.documents import Frozen, file_sha256
from training.folders import class_folders, composed, files_in, indices_by_name
from training.images import Pixels, load_image, pixel_hash, prepare
from training.manifest import InputSpec

logger = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEST_FOLDERS = ("test", "val")
# Of a folder without a test part: a fifth of every class for tests, an eighth of the rest for validation.
TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.125
DIGITS_SIZE = 16
DIGITS_TEST = 600


Fraction = Annotated[float, Field(ge=0, lt=1)]


class DataSpec(Frozen):
    """Where the images of a recipe come from."""

    source: Literal["folder", "cifar10", "digits"] = Field(
        description="folder: PATH/train/<class>/<file>, PATH/test/... (or val/...) and, if there is one, "
        "PATH/validation/... (or val/... beside test/...); or, with test_fraction, PATH/<class>/<file>; cifar10: the "
        "same layout, or torchvision's download into PATH; digits: scikit-learn's, embedded"
    )
    path: str | None = Field(default=None, description="folder of the images; relative to the working directory")
    num_validation: int = Field(
        default=0,
        ge=0,
        description="training images held out, balanced over classes, where there is no validation folder",
    )
    validation_fraction: Fraction = Field(
        default=0.0, description="the same as a share of every class's training images; instead of num_validation"
    )
    test_fraction: Fraction = Field(
        default=0.0, description="share of every class's images held out for tests, where there is no test folder"
    )
    split_seed: int = Field(default=0, ge=0, description="decides which images are held out; the run's seed does not")
    in_memory: bool = Field(
        default=True, description="false: decode training images when they are needed, for sets larger than memory"
    )

    @model_validator(mode="after")
    def _check_validation(self) -> "DataSpec":
        if self.num_validation and self.validation_fraction:
            raise ValueError("expected num_validation or validation_fraction, got both")
        return self


@dataclass(frozen=True)
class ImageSet:
    """Labelled images at the network's input size.

    `images` uint8 (N, H, W, 3) RGB; `labels` int64 (N,), indices into `class_names`; `hashes` tell the
    pictures apart (`training.images.Loaded.hash`).
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    hashes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "ImageSet":
        """Return the images at these positions, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        return ImageSet(self.images[index], self.labels[index], self.class_names, tuple(self.hashes[i] for i in index))

    def balanced(self, n: int, *, seed: int) -> "ImageSet":
        """Return n images drawn without replacement, as evenly over the classes as they allow; all if n is larger."""
        return self.subset(balanced_indices(self.labels, n, seed=seed))

    @property
    def digest(self) -> str:
        """SHA-256 over pixels and labels, in order."""
        digest = hashlib.sha256("\n".join(self.hashes).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageFiles:
    """Labelled image files that are decoded when they are needed; `labels` int64 (N,) index into `class_names`."""

    files: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    input_spec: InputSpec

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "ImageFiles":
        """Return the files at these positions, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        return ImageFiles(tuple(self.files[i] for i in index), self.labels[index], self.class_names, self.input_spec)

    def load(self) -> ImageSet:
        """Decode everything.

        Raises:
            ValueError: a file is no image (named).
        """
        with ThreadPoolExecutor(max_workers=4) as pool:
            decoded = list(pool.map(lambda file: _load_file(file, self.input_spec), self.files))
        images, hashes = zip(*decoded, strict=True)
        return ImageSet(np.stack(images), self.labels, self.class_names, tuple(hashes))

    @property
    def digest(self) -> str:
        """SHA-256 over names, sizes and labels, in order: reading every file would take longer than an epoch."""
        lines = [f"{file.parent.name}/{file.name} {file.stat().st_size}" for file in self.files]
        digest = hashlib.sha256("\n".join(lines).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


Images = ImageSet | ImageFiles


class Parts(NamedTuple):
    """Disjoint parts of a dataset; those in files are not decoded."""

    train: Images
    validation: Images
    test: Images


class Splits(NamedTuple):
    """Disjoint parts of a dataset, decoded except where training images stay in files."""

    train: Images
    validation: ImageSet
    test: ImageSet


def balanced_indices(labels: npt.NDArray[np.int64], n: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return sorted positions of n images, drawn at random round-robin over the classes."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # the how-many-th of its class an image is, in the drawn order
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    chosen = order[np.argsort(rank[order], kind="stable")][:n]
    return np.sort(chosen)


def load_splits(spec: DataSpec, input_spec: InputSpec, path: Path | None = None) -> Splits:
    """Load a recipe's data: `find_splits`, decoded. A file that is no image is a ValueError too (named)."""
    train, validation, test = find_splits(spec, input_spec, path)
    return Splits(loaded(train) if spec.in_memory else train, loaded(validation), loaded(test))


def loaded(data: Images) -> ImageSet:
    """Return the images decoded."""
    return data.load() if isinstance(data, ImageFiles) else data


def find_splits(spec: DataSpec, input_spec: InputSpec, path: Path | None = None) -> Parts:
    """Find a recipe's data and split it; image files are not decoded yet.

    Args:
        spec: source and validation size.
        input_spec: size and resize rule the images are brought to.
        path: overrides `spec.path`.

    Raises:
        ValueError: no such data, a class without images, class lists that differ between the parts.
    """
    parts: Mapping[str, Images]
    if spec.source == "digits":
        parts = {part: _at_size(data, input_spec) for part, data in zip(("train", "test"), load_digits(), strict=True)}
    else:
        root = path or (Path(spec.path) if spec.path else None)
        if root is None:
            raise ValueError(f"data source {spec.source!r} needs a folder: give its path")
        if spec.source == "cifar10" and not (root / "train").is_dir():
            parts = {part: _at_size(data, input_spec) for part, data in _torchvision_cifar10(root).items()}
        else:
            parts = find_parts(root, input_spec, needs_test=spec.test_fraction == 0)
    train: Images = parts["train"]
    test, validation = parts.get("test"), parts.get("validation")
    if test is None:
        train, test = _hold_out_fraction(train, spec.test_fraction, seed=spec.split_seed)
    if validation is None and spec.validation_fraction:
        train, validation = _hold_out_fraction(train, spec.validation_fraction, seed=spec.split_seed)
    elif validation is None:
        train, validation = _hold_out(train, spec.num_validation)
    return Parts(train, validation, test)


def _hold_out(train: Images, n: int) -> tuple[Images, Images]:
    if not len(train.class_names) <= n < len(train):
        raise ValueError(
            f"num_validation: expected from one image per class to fewer than the {len(train)} training images, got {n}"
        )
    held = balanced_indices(train.labels, n, seed=0)
    rest = np.setdiff1d(np.arange(len(train)), held)
    return train.subset(rest), train.subset(held)


def _hold_out_fraction(train: Images, fraction: float, *, seed: int) -> tuple[Images, Images]:
    """Hold out a share of every class, drawn by the seed. Copies of a held-out image go with it, into no other part.

    Raises:
        ValueError: a class would be left without images in one of the parts.
    """
    contents = np.asarray(_contents(train))
    generator = np.random.default_rng(seed)
    held = np.zeros(len(train), dtype=bool)
    for label, name in enumerate(train.class_names):
        members = np.flatnonzero(train.labels == label)
        held[generator.permutation(members)[: max(1, round(fraction * len(members)))]] = True
        held[members] |= np.isin(contents[members], contents[members[held[members]]])
        if held[members].all():
            raise ValueError(
                f"class {name!r}: expected enough different images to hold {fraction:g} of them out, got {len(members)}"
            )
    held |= np.isin(contents, contents[held])  # a copy under another label
    return train.subset(np.flatnonzero(~held)), train.subset(np.flatnonzero(held))


def _contents(data: Images) -> tuple[str, ...]:
    """Return a text per image that is equal for copies: the digest of pixels, or that of the file."""
    if isinstance(data, ImageSet):
        return data.hashes
    with ThreadPoolExecutor(max_workers=4) as pool:
        return tuple(pool.map(file_sha256, data.files))


def find_test_folder(root: Path) -> Path | None:
    """Return the test part of a folder that has train/ and either test/ or val/; None for any other folder."""
    if not (root / "train").is_dir():
        return None
    return next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)


def find_validation_folder(root: Path) -> Path | None:
    """Return the validation part of a folder with train/: validation/, or val/ where there is a test/ too; else None.

    A val/ without a test/ beside it is the test part: many published sets have labels for that alone.
    """
    if not (root / "train").is_dir():
        return None
    names = ("validation", "val") if (root / "test").is_dir() else ("validation",)
    return next((root / name for name in names if (root / name).is_dir()), None)


def find_parts(root: Path, input_spec: InputSpec, *, needs_test: bool) -> dict[str, ImageFiles]:
    """Return the parts that a folder has, by name: train, and test or validation where they have folders.

    Args:
        root: train/ and other parts; without `needs_test` also one folder per class, which is then `train` as a whole.
        input_spec: size and resize rule the images are brought to.
        needs_test: whether a folder without a test part is an error.

    Raises:
        ValueError: no such folder, a part is missing or has no images of a class, or classes differ between parts.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder with train/ and test/, found no such folder")
    if not needs_test and not (root / "train").is_dir():
        return {"train": find_files(root, input_spec)}
    parts: dict[str, ImageFiles] = {}
    folders = {
        "train": root / "train",
        "validation": find_validation_folder(root) or root / "validation",
        "test": find_test_folder(root) or root / "test",
    }
    for part, folder in folders.items():
        if not folder.is_dir():
            if part == "validation" or (part == "test" and not needs_test):
                continue
            raise ValueError(
                f"{root}: expected folders train/ and test/ (or val/) with one folder per class, found no {part}/; "
                "where all images lie together, set data.test_fraction"
            )
        parts[part] = find_files(folder, input_spec)
        if parts[part].class_names != parts["train"].class_names:
            ours, theirs = set(parts["train"].class_names), set(parts[part].class_names)
            raise ValueError(f"{root}: train/ and {folder.name}/ differ in the classes {sorted(ours ^ theirs)}")
    return parts


def load_folder(root: Path, input_spec: InputSpec, class_names: Sequence[str] | None = None) -> ImageSet:
    """Load `root/<class>/<file>` into memory. See `find_files`; a file that is no image is a ValueError too (named)."""
    return find_files(root, input_spec, class_names).load()


def find_files(root: Path, input_spec: InputSpec, class_names: Sequence[str] | None = None) -> ImageFiles:
    """Find `root/<class>/<file>`.

    Args:
        root: one folder per class; empty folders, hidden files, what file browsers leave behind, and files that are no
            images by their suffix are passed over.
        input_spec: size and resize rule the images are brought to.
        class_names: fixes the classes and their order; the folder may then lack some. Default: the folders, sorted.
            Names are compared, and the default's are, with their accents composed (Unicode NFC).

    Raises:
        ValueError: no such folder, no class, an unknown class, or a class with files but without images.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder with one folder per class, found no such folder")
    folders = class_folders(root)
    names = tuple(class_names if class_names is not None else dict.fromkeys(composed(path.name) for path in folders))
    indices = indices_by_name(names)
    if not folders:
        raise ValueError(f"{root}: expected one folder per class, found none")
    files: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        label = indices.get(composed(folder.name))
        if label is None:
            test = find_test_folder(root)
            hint = f": give one part of {root}, such as {test}" if test is not None else ""
            raise ValueError(f"{folder}: expected a class folder named one of {list(names)}{hint}")
        inside = [file for file in files_in(folder) if file.suffix.lower() in SUFFIXES]
        if not inside:
            raise ValueError(f"{folder}: expected images of class {folder.name!r}, found none")
        files += inside
        labels += [label] * len(inside)
    return ImageFiles(tuple(files), np.asarray(labels, dtype=np.int64), names, input_spec)


def _load_file(file: Path, input_spec: InputSpec) -> tuple[Pixels, str]:
    try:
        loaded = load_image(file.read_bytes(), input_spec)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return loaded.pixels, loaded.hash


def _torchvision_cifar10(root: Path) -> dict[str, ImageSet]:
    """Read (or download, where there is a network) CIFAR-10 in its original format."""
    import torchvision.datasets  # slow to import and needed only here

    parts = {}
    for part in ("train", "test"):
        try:
            dataset = torchvision.datasets.CIFAR10(str(root), train=part == "train", download=True)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{root}: holds no train/ and test/ folders, and CIFAR-10 cannot be downloaded: {reason}"
            ) from None
        images, labels = np.asarray(dataset.data, dtype=np.uint8), np.asarray(dataset.targets, dtype=np.int64)
        parts[part] = from_arrays(images, labels, CIFAR10_CLASSES)
    return parts


def _at_size(data: ImageSet, spec: InputSpec) -> ImageSet:
    """Return the pictures at the network's size; their hashes stay."""
    if data.images.shape[1:3] == (spec.height, spec.width):
        return data
    return replace(data, images=np.stack([prepare(image, spec) for image in data.images]))


def from_arrays(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], class_names: Sequence[str]) -> ImageSet:
    """Make an ImageSet of uint8 images (N, H, W, 3) that already have the input size, and labels (N,)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(labels):
        raise ValueError(
            f"expected uint8 images (N, H, W, 3) and N labels, got {images.dtype} {images.shape} and {len(labels)}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise ValueError(f"expected labels from 0 to {len(class_names) - 1}, got {labels.min()} to {labels.max()}")
    return ImageSet(images, labels.astype(np.int64), tuple(class_names), tuple(pixel_hash(image) for image in images))


def load_digits() -> tuple[ImageSet, ImageSet]:
    """Return scikit-learn's 1,797 handwritten digits as (train, test) with 1,197 and 600 images.

    The 8x8 scans are enlarged to 16x16 RGB, white ink on black. The split is fixed.
    """
    import sklearn.datasets  # slow to import and needed only here

    data = sklearn.datasets.load_digits()
    spec = InputSpec(height=DIGITS_SIZE, width=DIGITS_SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    grey = np.round(np.asarray(data.images) * (255 / 16)).astype(np.uint8)
    images = np.stack([prepare(np.repeat(image[:, :, None], 3, axis=2), spec) for image in grey])
    everything = from_arrays(images, np.asarray(data.target, dtype=np.int64), [str(digit) for digit in range(10)])
    test = balanced_indices(everything.labels, DIGITS_TEST, seed=0)
    rest = np.setdiff1d(np.arange(len(everything)), test)
    return everything.subset(rest), everything.subset(test)
