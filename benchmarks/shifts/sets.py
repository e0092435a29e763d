"""Natural and style sets: image folders whose classes are some of a base set's, and disjoint draws from any set."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adapt.images.support import Support, check_disjoint
from benchmarks.shifts.suite import Family
from training.data import TEST_FOLDERS, ImageFiles, ImageSet, balanced_indices, find_files
from training.folders import class_folders, composed, indices_by_name
from training.manifest import InputSpec
from training.splits import DataSpec, load_splits


@dataclass(frozen=True)
class FolderSet:
    """Real pictures in `<class>/<file>`.

    Attributes:
        name: how tables call it.
        folder: relative to the folder of all data.
        family: of the shift, as in the suite.
    """

    name: str
    folder: str
    family: Family


# Drawn and painted pictures are renditions, as in ImageNet-R; PACS is Li et al. 2017 (arXiv:1710.03077), CINIC-10 is
# Darlow et al. 2018 (arXiv:1810.03505).
FOLDER_SETS: Mapping[str, FolderSet] = {
    folder_set.name: folder_set
    for folder_set in (
        FolderSet("natural4", "natural4/test", "natural"),
        FolderSet("cinic10_imagenet", "cinic10_imagenet_a/test", "natural"),
        FolderSet("tinyimagenet7", "tinyimagenet7/test", "natural"),
        FolderSet("pacs_photo", "pacs_dog_horse/photo", "natural"),
        FolderSet("pacs_art", "pacs_dog_horse/art_painting", "rendition"),
        FolderSet("pacs_cartoon", "pacs_dog_horse/cartoon", "rendition"),
        FolderSet("mnist", "digits_mnist_mnistm/mnist_test", "natural"),
        FolderSet("mnist_m", "digits_mnist_mnistm/mnist_m_test", "natural"),
    )
}


class Draw(NamedTuple):
    """Disjoint parts of one set: `support` for an adaptation to choose on, `test` to report."""

    support: Support
    test: ImageSet


def find_folder_sets(root: Path, class_names: Sequence[str]) -> list[FolderSet]:
    """Return those of the known sets that are unpacked below `root` and have only classes of these."""
    return [
        folder_set
        for folder_set in FOLDER_SETS.values()
        if (root / folder_set.folder).is_dir()
        and {composed(folder.name) for folder in class_folders(root / folder_set.folder)}
        <= indices_by_name(class_names).keys()
    ]


def load_folder_set(
    folder: Path, input_spec: InputSpec, class_names: Sequence[str], *, aliases: Mapping[str, str] | None = None
) -> ImageSet:
    """Load `folder/<class>/<file>` with labels that index `class_names`; the folder may lack classes.

    Args:
        folder: one folder per class.
        input_spec: size and resize rule the pictures are brought to.
        class_names: the base set's classes.
        aliases: other names of class folders, and the base set's name for each.

    Raises:
        ValueError: no such folder, a class that is neither the base set's nor an alias of one, a file that is no image.
    """
    files = find_files(folder, input_spec)
    known = [(aliases or {}).get(name, name) for name in files.class_names]
    if unknown := [name for name, ours in zip(files.class_names, known, strict=True) if ours not in class_names]:
        raise ValueError(f"{folder}: expected class folders of {list(class_names)}, got {unknown}")
    labels = np.asarray([list(class_names).index(name) for name in known], dtype=np.int64)[files.labels]
    return ImageFiles(files.files, labels, tuple(class_names), input_spec).load()


class Positions(NamedTuple):
    """Where the pictures of a draw stand in their set, int64, sorted."""

    support: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


def draw(data: ImageSet, *, n_support: int, n_test: int, seed: int) -> Draw:
    """Return a support and a test set that share no picture. See `draw_positions`.

    All shifts of one set can share a draw: shift the whole set, then draw.
    """
    positions = draw_positions(data.labels, data.hashes, n_support=n_support, n_test=n_test, seed=seed)
    support, test = as_support(data.subset(positions.support)), data.subset(positions.test)
    check_disjoint(support, test.hashes)
    return Draw(support, test)


def draw_positions(
    labels: npt.NDArray[np.int64], hashes: Sequence[str], *, n_support: int, n_test: int, seed: int
) -> Positions:
    """Choose a support and a test part that share no picture, each evenly over the classes.

    Pictures are ordered by a hash of their pixels and the seed, so that neither names nor order of files matter.
    Repeats are left out, and so are pictures that occur under two labels.

    Args:
        labels: (N,).
        hashes: N pixel hashes of the originals.
        n_support: labelled pictures to adapt on.
        n_test: other pictures; fewer are chosen where there are fewer.
        seed: of the draw.

    Raises:
        ValueError: not more than `n_support` different pictures.
    """
    order = np.asarray(sorted(distinct(labels, hashes), key=lambda index: _place(hashes[index], seed)), dtype=np.int64)
    if n_support < 1 or n_test < 1 or len(order) <= n_support:
        raise ValueError(
            f"expected n_support and n_test from 1, and more different pictures than n_support, got {n_support}, "
            f"{n_test} and {len(order)} pictures"
        )
    support = order[balanced_indices(labels[order], n_support, seed=seed)]
    others = order[~np.isin(order, support)]
    return Positions(np.sort(support), np.sort(others[balanced_indices(labels[others], n_test, seed=seed)]))


def draw_stratified(labels: npt.NDArray[np.int64], hashes: Sequence[str], *, n_test: int, seed: int) -> Positions:
    """Choose a test part in which classes are as frequent as in the whole set; all other pictures may be labelled.

    For sets with rare classes: a test part even over the classes, drawn after an even support, would lack them. Order,
    repeats and pictures under two labels: see `draw_positions`.

    Args:
        labels: (N,).
        hashes: N pixel hashes of the originals.
        n_test: pictures of the test part, fewer than there are different ones.
        seed: of the draw.
    """
    order = sorted(distinct(labels, hashes), key=lambda index: (labels[index], _place(hashes[index], seed)))
    steps = (np.arange(n_test) + 0.5) * len(order) / n_test  # even steps through pictures sorted by class
    test = np.asarray(order, dtype=np.int64)[steps.astype(np.int64)]
    return Positions(np.setdiff1d(order, test).astype(np.int64), np.sort(test))


def others(
    pool: npt.NDArray[np.int64], labelled: npt.NDArray[np.int64], *, most: int, seed: int
) -> npt.NDArray[np.int64]:
    """Return up to `most` of the pool that are not labelled, in random order; none where all are.

    The first of them are the same whatever `most` is.
    """
    return np.random.default_rng(seed).permutation(np.setdiff1d(pool, labelled))[:most]


def as_support(data: ImageSet) -> Support:
    """Return the set as an adaptation takes it."""
    return Support(data.images, data.labels, data.hashes, data.class_names)


def without(data: ImageSet, hashes: Collection[str]) -> ImageSet:
    """Return the set less the pictures with these hashes, such as those a base set was trained on."""
    gone = set(hashes)
    return data.subset([index for index, digest in enumerate(data.hashes) if digest not in gone])


def distinct(labels: npt.NDArray[np.int64], hashes: Sequence[str]) -> list[int]:
    """Return the positions of pictures with one label, each once."""
    seen: dict[str, list[int]] = {}
    for index, digest in enumerate(hashes):
        seen.setdefault(digest, []).append(index)
    return [same[0] for same in seen.values() if len(set(labels[same])) == 1]


def _place(digest: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {digest}".encode()).hexdigest()


def clean_images(root: Path, input_spec: InputSpec, *, n: int | None = None, seed: int = 0) -> ImageSet:
    """Load n test pictures of `root/test/<class>/<file>` (or val/), or of torchvision's CIFAR-10; all if n is None.

    Raises:
        ValueError: no such data.
    """
    for part in TEST_FOLDERS:
        if (root / part).is_dir():
            files = find_files(root / part, input_spec)
            return files.subset(balanced_indices(files.labels, n or len(files), seed=seed)).load()
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder with test/<class>/<file>, found no such folder")
    test = load_splits(DataSpec(source="cifar10", num_validation=10, in_memory=False), input_spec, root).test
    return test.balanced(n or len(test), seed=seed)
