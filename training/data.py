"""Labelled images as arrays or as files: how they are found in folders, and how some of them are drawn."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.folders import class_folders, composed, files_in, indices_by_name
from training.images import Pixels, load_image, pixel_hash
from training.manifest import InputSpec
from training.nearest import meant

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
TEST_FOLDERS = ("test", "val")


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


def loaded(data: Images) -> ImageSet:
    """Return the images decoded."""
    return data.load() if isinstance(data, ImageFiles) else data


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
            raise ValueError(
                f"{folder}: expected a class folder named one of {list(names)}{meant(folder.name, names)}{hint}"
            )
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


def from_arrays(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], class_names: Sequence[str]) -> ImageSet:
    """Make an ImageSet of uint8 images (N, H, W, 3) that already have the input size, and labels (N,)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != len(labels):
        raise ValueError(
            f"expected uint8 images (N, H, W, 3) and N labels, got {images.dtype} {images.shape} and {len(labels)}"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise ValueError(f"expected labels from 0 to {len(class_names) - 1}, got {labels.min()} to {labels.max()}")
    return ImageSet(images, labels.astype(np.int64), tuple(class_names), tuple(pixel_hash(image) for image in images))
