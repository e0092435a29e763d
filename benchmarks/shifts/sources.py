"""The pictures that methods are compared on: shifts computed from clean ones, and real sets in folders."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shifts.sets import FOLDER_SETS, clean_images, find_folder_sets, load_folder_set
from benchmarks.shifts.suite import SUITE, Family, find_shift
from training.data import ImageSet
from training.manifest import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Pictures in memory.

    Attributes:
        clean: what shifts are computed from.
        folders: real sets by name.
    """

    clean: ImageSet
    folders: Mapping[str, ImageSet]

    @property
    def names(self) -> tuple[str, ...]:
        """The shifts and sets there are."""
        return (*SUITE, *self.folders)

    def load(self, name: str, *, seed: int) -> ImageSet:
        """Return the pictures of a shift or set. All shifts have the hashes of the same clean ones."""
        return self.folders[name] if name in self.folders else find_shift(name).of(self.clean, seed=seed)

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        """Return what tells whether these pictures are still the same."""
        return {"clean": self.clean.digest} | {
            name: self.folders[name].digest for name in names if name in self.folders
        }


def find_sources(data: Path, folders: Path | None, manifest: Manifest, *, size: int, seed: int) -> Sources:
    """Load `size` clean pictures, and as many of each real set; sets with fewer are left out.

    Args:
        data: CIFAR-10, or `test/<class>/<file>`, with the base set's classes.
        folders: of the real sets, see `sets.FOLDER_SETS`; None for none.
        manifest: of the base set, for classes and input size.
        size: labelled and unseen pictures together.
        seed: of the choice among more pictures.

    Raises:
        ValueError: no such data, other classes, too few clean pictures.
    """
    clean = clean_images(data, manifest.input, n=size, seed=seed)
    if clean.class_names != manifest.class_names:
        classes, found = list(manifest.class_names), list(clean.class_names)
        raise ValueError(f"{data}: expected the classes of the base set, {classes}, got {found}")
    if len(clean) < size:
        raise ValueError(f"{data}: expected {size} pictures, the most of --n and --n-test, got {len(clean)}")
    return Sources(clean, {} if folders is None else _load_folders(folders, manifest, size=size, seed=seed))


def family_of(name: str) -> Family:
    """Return the family of a shift or set."""
    return FOLDER_SETS[name].family if name in FOLDER_SETS else find_shift(name).family


def _load_folders(root: Path, manifest: Manifest, *, size: int, seed: int) -> dict[str, ImageSet]:
    known = find_folder_sets(root, manifest.class_names)
    if not known:
        raise ValueError(f"{root}: expected one of the folders {[found.folder for found in FOLDER_SETS.values()]}")
    loaded = {}
    for found in known:
        pictures = load_folder_set(root / found.folder, manifest.input, manifest.class_names)
        times = Counter(pictures.hashes)
        once = [index for index, digest in enumerate(pictures.hashes) if times[digest] == 1]
        if len(once) < size:
            logger.warning("%s: left out, it has %d pictures without a repeat, not %d", found.name, len(once), size)
        else:
            loaded[found.name] = pictures.subset(once).balanced(size, seed=seed)
    return loaded
