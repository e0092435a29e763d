"""The support set: the few labelled images an adaptation may see, checked before anything is computed. No torch."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from adapt.images.archive import ArchiveError, Limits, read_archive
from training.folders import composed, files_in, indices_by_name, is_ignored
from training.images import MAX_PIXELS, ImageError, Loaded, Pixels, load_image
from training.manifest import Manifest
from training.nearest import meant

DEFAULT_LIMITS = Limits()
MAX_NAMED_CLASSES = 20  # listed in an error message

Field = Literal["images", "labels", "archive"]
Kind = Literal["empty", "count", "label", "conflict", "undecodable", "too_large", "unreadable", "unsafe", "layout"]


class SupportError(ValueError):
    """Labelled images that cannot be used.

    Attributes:
        field: the part of the request at fault.
        kind: why; "too_large" is a limit (413), anything else is unusable content (422).
        index: position of the item in `field`, where it has one.
        item: its name in a folder or archive, where it has one.
    """

    def __init__(
        self, message: str, *, field: Field, kind: Kind, index: int | None = None, item: str | None = None
    ) -> None:
        super().__init__(message)
        self.field, self.kind, self.index, self.item = field, kind, index, item


class SupportLeak(ValueError):
    """Support images that are also in the test set. `indices` are their positions in the support set."""

    def __init__(self, message: str, indices: tuple[int, ...]) -> None:
        super().__init__(message)
        self.indices = indices


@dataclass(frozen=True)
class Support:
    """Checked labelled images at the network's input size, exact repeats left out.

    `images` uint8 (N, H, W, 3) RGB; `labels` int64 (N,), indices into `class_names`; `hashes` tell the
    pictures apart (`training.images.Loaded.hash`); `duplicates` how many repeats were left out.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    hashes: tuple[str, ...]
    class_names: tuple[str, ...]
    duplicates: int = 0

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.labels)

    @property
    def per_class(self) -> dict[str, int]:
        """Number of images by class name, in class order; classes without images are left out."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True) if count}

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "Support":
        """Return the images at these positions, in this order."""
        index = np.asarray(indices, dtype=np.int64)
        hashes = tuple(self.hashes[position] for position in index)
        return Support(self.images[index], self.labels[index], hashes, self.class_names, self.duplicates)

    def folds(self, num_folds: int = 5, *, seed: int, by_class: bool = True) -> npt.NDArray[np.int64]:
        """Return the fold of each image, (N,): sizes differ by at most one, and so does each class from fold to fold.

        Images are shuffled within their class and dealt out one class after the other. A class with fewer images than
        folds is absent from some folds, which costs the others nothing.

        Args:
            num_folds: at least 2; no more folds than images are made.
            seed: of the shuffling.
            by_class: deal classes out evenly. False where folds judge class frequencies: dealt out evenly, a fold has
                those of the other folds by construction, however far chance has led all of them astray.

        Raises:
            ValueError: fewer than two folds or images.
        """
        if num_folds < 2 or len(self) < 2:
            raise ValueError(f"expected at least 2 folds and 2 images, got {num_folds} and {len(self)}")
        order = np.random.default_rng(seed).permutation(len(self))
        if by_class:
            order = order[np.argsort(self.labels[order], kind="stable")]
        folds = np.empty(len(self), dtype=np.int64)
        folds[order] = np.arange(len(self)) % min(num_folds, len(self))
        return folds


@dataclass(frozen=True)
class _Item:
    """One image on its way in."""

    pixels: Pixels  # at the network's size
    hash: str
    label: int
    where: str  # what an error message calls it
    index: int | None
    name: str | None


@dataclass(frozen=True)
class Reference:
    """Trusted labelled images, and the accuracy that a promoted soup must have on them, a fraction."""

    images: Support
    floor: float


def from_images(
    images: Sequence[Pixels | bytes],
    labels: Sequence[object],
    manifest: Manifest,
    *,
    max_pixels: int = MAX_PIXELS,
    on_image: Callable[[int], None] | None = None,
) -> Support:
    """Return the support set of a request: images and their labels in the same order.

    Args:
        images: decoded uint8 RGB (H, W, 3), or the bytes of image files.
        labels: class names (text; accents composed or not) or indices into them (whole numbers); anything else is
            refused.
        manifest: of the base set, for the classes and the input size.
        max_pixels: most pixels of one image (given as bytes).
        on_image: told the pixels (height times width) of each image once it is decoded; ends it all by raising.

    Raises:
        SupportError: no images, another number of labels, an image that cannot be decoded or is too large, a label
            that is unknown or neither text nor a whole number, one image with two labels. Names the index.
    """
    if len(images) == 0:
        raise SupportError("expected at least one image, got none", field="images", kind="empty")
    if len(images) != len(labels):
        raise SupportError(
            f"expected one label for each of {len(images)} images, got {len(labels)}", field="labels", kind="count"
        )
    indices = indices_by_name(manifest.class_names)
    classes = [_class_index(label, manifest.class_names, indices, index) for index, label in enumerate(labels)]
    items = []
    for index, (image, label) in enumerate(zip(images, classes, strict=True)):
        where = f"images[{index}]"
        loaded = _load(image, where, manifest, max_pixels, on_image, field="images", index=index)
        items.append(_Item(loaded.pixels, loaded.hash, label, where, index, None))
    return _collect(items, manifest, "images")


def _class_index(label: object, names: tuple[str, ...], indices: Mapping[str, int], index: int) -> int:
    if isinstance(label, str) and (found := indices.get(composed(label))) is not None:
        return found
    if isinstance(label, int | np.integer) and not isinstance(label, bool) and 0 <= label < len(names):
        return int(label)
    expected = f"expected {_known(names)} or an index from 0 to {len(names) - 1}"
    raise SupportError(
        f"labels[{index}]: {expected}, got {label!r}{meant(label, names)}",
        field="labels",
        kind="label",
        index=index,
    )


def _known(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_NAMED_CLASSES} more" if len(names) > MAX_NAMED_CLASSES else ""
    return f"one of the classes {list(names[:MAX_NAMED_CLASSES])}{more}"


def from_folder(root: Path, manifest: Manifest, *, max_pixels: int = MAX_PIXELS) -> Support:
    """Return the support set in a folder with one folder per class, possibly below one common folder.

    Hidden files and what file browsers leave behind are passed over; every other file must be an image of a known
    class.

    Raises:
        SupportError: names the file.
    """
    if not root.is_dir():
        raise SupportError(f"{root}: expected a folder with one folder per class", field="archive", kind="layout")
    files = ((path.relative_to(root).as_posix(), path.read_bytes()) for path in files_in(root))
    return _from_files(files, manifest, max_pixels)


def from_archive(
    source: bytes | Path,
    manifest: Manifest,
    *,
    limits: Limits = DEFAULT_LIMITS,
    max_pixels: int = MAX_PIXELS,
    on_image: Callable[[int], None] | None = None,
) -> Support:
    """Return the support set in a .zip, .tar or .tar.gz with one folder per class, possibly below one common folder.

    Nothing is written to disk; links, absolute names and names that climb out with ".." are refused, and so are
    archives that unpack to more than `limits` allows.

    Args:
        source: the archive's bytes, or its path.
        manifest: of the base set, for the classes and the input size.
        limits: number of members and unpacked size.
        max_pixels: most pixels of one image.
        on_image: told the pixels (height times width) of each image once it is decoded; ends it all by raising.

    Raises:
        SupportError: names the member.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        return _from_files(read_archive(data, limits, ignored=is_ignored), manifest, max_pixels, on_image)
    except ArchiveError as error:
        raise SupportError(str(error), field="archive", kind=error.kind, item=error.item) from None


def load(path: Path, manifest: Manifest) -> Support:
    """Return the support set in a folder or an archive. Raises SupportError."""
    return from_archive(path, manifest) if path.is_file() else from_folder(path, manifest)


def load_unlabelled(
    folder: Path, manifest: Manifest, *, known: Collection[str] = (), max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Return the different images anywhere below a folder, uint8 (m, H, W, 3) at the network's input size.

    Args:
        folder: of image files.
        manifest: of the base set, for the input size.
        known: pixel hashes of images to leave out, the labelled ones.
        max_pixels: most pixels of one image.

    Raises:
        SupportError: no folder, no image in it, or a file that is none, which is named.
    """
    if not folder.is_dir():
        raise SupportError(f"{folder}: expected a folder of images", field="images", kind="empty")
    seen, kept = set(known), []
    for path in files_in(folder):
        name = path.relative_to(folder).as_posix()
        loaded = _load(path.read_bytes(), name, manifest, max_pixels, field="images", item=name)
        if (digest := loaded.hash) not in seen:
            seen.add(digest)
            kept.append(loaded.pixels)
    if not kept:
        raise SupportError(
            f"{folder}: expected images that are not among the labelled ones", field="images", kind="empty"
        )
    return np.stack(kept)


def _from_files(
    files: Iterable[tuple[str, bytes]],
    manifest: Manifest,
    max_pixels: int,
    on_image: Callable[[int], None] | None = None,
) -> Support:
    """Decode files one by one (only the resized pixels are kept), then read the classes off their names."""
    decoded: dict[str, tuple[Pixels, str]] = {}
    for name, data in files:
        loaded = _load(data, name, manifest, max_pixels, on_image, field="archive", item=name)
        decoded[name] = (loaded.pixels, loaded.hash)
    if not decoded:
        raise SupportError("expected one folder of images per class, found no file", field="archive", kind="empty")
    items = []
    for name, label in zip(sorted(decoded), _labels(sorted(decoded), manifest.class_names), strict=True):
        items.append(_Item(*decoded[name], label, name, None, name))
    return _collect(items, manifest, "archive")


def _labels(names: list[str], classes: tuple[str, ...]) -> list[int]:
    """Return the class of each file, by its first folder, or the second where all files share a first one."""
    indices = indices_by_name(classes)
    parts = [composed(name).split("/") for name in names]
    depth = 0
    if len({path[0] for path in parts}) == 1 and min(map(len, parts)) > 2 and parts[0][0] not in indices:
        depth = 1
    for name, path in zip(names, parts, strict=True):
        if len(path) < depth + 2:
            raise SupportError(
                f"{name}: expected every image in a folder named after its class",
                field="archive",
                kind="layout",
                item=name,
            )
        if path[depth] not in indices:
            raise SupportError(
                f"{name}: expected a folder named {_known(classes)}, got {path[depth]!r}{meant(path[depth], classes)}",
                field="archive",
                kind="label",
                item=name,
            )
    return [indices[path[depth]] for path in parts]


def _load(
    source: bytes | Pixels,
    where: str,
    manifest: Manifest,
    max_pixels: int,
    on_image: Callable[[int], None] | None = None,
    *,
    field: Field,
    index: int | None = None,
    item: str | None = None,
) -> Loaded:
    try:
        loaded = load_image(source, manifest.input, max_pixels=max_pixels)
    except ImageError as error:
        raise SupportError(f"{where}: {error}", field=field, kind=error.kind, index=index, item=item) from None
    if on_image is not None:
        on_image(loaded.num_pixels)
    return loaded


def _collect(items: list[_Item], manifest: Manifest, field: Field) -> Support:
    """Leave out exact repeats; refuse one picture with two labels."""
    kept: dict[str, _Item] = {}
    for item in items:
        first = kept.setdefault(item.hash, item)
        if first.label != item.label:
            ours, theirs = manifest.class_names[first.label], manifest.class_names[item.label]
            raise SupportError(
                f"{first.where} and {item.where} are the same picture, labelled {ours!r} and {theirs!r}",
                field=field,
                kind="conflict",
                index=item.index,
                item=item.name,
            )
    return Support(
        images=np.stack([item.pixels for item in kept.values()]),
        labels=np.asarray([item.label for item in kept.values()], dtype=np.int64),
        hashes=tuple(kept),
        class_names=manifest.class_names,
        duplicates=len(items) - len(kept),
    )


def check_disjoint(support: Support, hashes: Collection[str]) -> None:
    """Raise SupportLeak if a support image is among the test images.

    Args:
        support: the images a search will choose on.
        hashes: hashes of the test images (`ImageSet.hashes`).
    """
    known = set(hashes)
    if leaked := tuple(index for index, digest in enumerate(support.hashes) if digest in known):
        raise SupportLeak(
            f"{len(leaked)} of {len(support)} support images are also in the test set, the first at position "
            f"{leaked[0]}: accuracy there would be no evidence",
            leaked,
        )
