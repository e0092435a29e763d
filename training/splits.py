"""The data of a recipe: where they come from, and their disjoint parts for training, validation and tests."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from training.data import (
    ImageFiles,
    Images,
    ImageSet,
    balanced_indices,
    find_files,
    find_test_folder,
    find_validation_folder,
    loaded,
)
from training.documents import Frozen, file_sha256
from training.manifest import InputSpec
from training.named_sets import at_size, load_cifar10, load_digits

# Of a folder without a test part: a fifth of every class for tests, an eighth of the rest for validation.
TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.125

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
        description="training images held out, balanced over classes, if there is no validation folder",
    )
    validation_fraction: Fraction = Field(
        default=0.0, description="the same as a share of every class's training images; instead of num_validation"
    )
    test_fraction: Fraction = Field(
        default=0.0, description="share of every class's images held out for tests, if there is no test folder"
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


def load_splits(spec: DataSpec, input_spec: InputSpec, path: Path | None = None) -> Splits:
    """Load a recipe's data: `find_splits`, decoded. A file that is no image is a ValueError too (named)."""
    train, validation, test = find_splits(spec, input_spec, path)
    return Splits(loaded(train) if spec.in_memory else train, loaded(validation), loaded(test))


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
        parts = {part: at_size(data, input_spec) for part, data in zip(("train", "test"), load_digits(), strict=True)}
    else:
        root = path or (Path(spec.path) if spec.path else None)
        if root is None:
            raise ValueError(f"data source {spec.source!r} needs a folder: give its path")
        if spec.source == "cifar10" and not (root / "train").is_dir():
            parts = {part: at_size(data, input_spec) for part, data in load_cifar10(root).items()}
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
