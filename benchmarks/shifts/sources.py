"""The pictures that methods are compared on: shifts computed from clean ones, and real sets in folders."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.shifts.sets import FOLDER_SETS, clean_images, find_folder_sets, load_folder_set, without
from benchmarks.shifts.suite import SUITE, Family, find_shift
from training.data import ImageSet
from training.manifest import Manifest

logger = logging.getLogger(__name__)

CLEAN = "clean"


@dataclass(frozen=True)
class Sources:
    """Pictures in memory.

    Attributes:
        clean: what shifts are computed from.
        folders: real sets by name.
        spare: more pictures that are none of these, for streams without labels: by name of the real set, under
            `CLEAN` those that shifts are computed from.
    """

    clean: ImageSet
    folders: Mapping[str, ImageSet]
    spare: Mapping[str, ImageSet] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The shifts and sets there are."""
        return (*SUITE, *self.folders)

    def load(self, name: str, *, seed: int) -> ImageSet:
        """Return the pictures of a shift or set. All shifts have the hashes of the same clean ones."""
        return self.folders[name] if name in self.folders else find_shift(name).of(self.clean, seed=seed)

    def load_spare(self, name: str, *, seed: int) -> ImageSet | None:
        """Return more pictures of a shift or set, none of which `load` returns; None if there are none."""
        found = self.spare.get(name if name in self.folders else CLEAN)
        if found is None or name in self.folders:
            return found
        return find_shift(name).of(found, seed=seed)

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        """Return what tells whether these pictures are still the same."""
        return {"clean": self.clean.digest} | {
            name: self.folders[name].digest for name in names if name in self.folders
        }


def find_sources(
    data: Path, folders: Path | None, manifest: Manifest, *, size: int, seed: int, spare: int = 0
) -> Sources:
    """Load `size` clean pictures, and as many of each real set; sets with fewer are left out.

    Args:
        data: CIFAR-10, or `test/<class>/<file>`, with the base set's classes.
        folders: of the real sets, see `sets.FOLDER_SETS`; None for none.
        manifest: of the base set, for classes and input size.
        size: labelled and unseen pictures together.
        seed: of the choice among more pictures.
        spare: how many more pictures of each to load beside them, for streams; fewer where there are fewer.

    Raises:
        ValueError: no such data, other classes, too few clean pictures.
    """
    clean = clean_images(data, manifest.input, n=size, seed=seed)
    if clean.class_names != manifest.class_names:
        classes, found = list(manifest.class_names), list(clean.class_names)
        raise ValueError(f"{data}: expected the classes of the base set, {classes}, got {found}")
    if len(clean) < size:
        raise ValueError(f"{data}: expected {size} pictures, the most of --n and --n-test, got {len(clean)}")
    sets = {} if folders is None else _load_folders(folders, manifest, size=size, seed=seed, spare=spare)
    if spare:
        sets[CLEAN] = clean, clean_images(data, manifest.input, n=size + spare, seed=seed)
    left = {name: without(more, found.hashes) for name, (found, more) in sets.items()}
    return Sources(
        clean,
        {name: found for name, (found, _) in sets.items() if name != CLEAN},
        {name: found for name, found in left.items() if len(found)},
    )


def family_of(name: str) -> Family:
    """Return the family of a shift or set."""
    return FOLDER_SETS[name].family if name in FOLDER_SETS else find_shift(name).family


def _load_folders(
    root: Path, manifest: Manifest, *, size: int, seed: int, spare: int
) -> dict[str, tuple[ImageSet, ImageSet]]:
    """Return `size` pictures of each real set that has so many, and the same ones with `spare` more."""
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
            whole = pictures.subset(once)
            loaded[found.name] = (
                whole.balanced(size, seed=seed),
                whole.balanced(min(len(once), size + spare), seed=seed),
            )
    return loaded
