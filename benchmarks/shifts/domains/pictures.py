"""The pictures of domains, decoded once and kept on disk beside the results, with what soups say about them."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adapt.networks.prepared import PreparedBase
from benchmarks.shifts.domains.study import CORRUPTIONS
from benchmarks.shifts.sets import load_folder_set
from benchmarks.shifts.suite import STANDARD, SUITE
from benchmarks.shifts.table import Soups, Table, read_table, tabulate, write_table
from training.data import ImageSet, find_files
from training.evaluate import load_images
from training.manifest import Manifest

logger = logging.getLogger(__name__)

CLEAN = "clean"


class Domain(NamedTuple):
    """A set of pictures."""

    name: str
    folder: Path | None  # of <class>/<file>; None: a corruption of the base set's own held-out pictures


def find_domains(
    words: Sequence[str], folders: Path | None, class_names: Sequence[str], *, own: Path | None
) -> tuple[Domain, ...]:
    """Return the domains that these words name.

    Args:
        words: "corruptions" for all 15, the name of one, a folder of <class>/<file>, or a folder of such folders.
        folders: what folders are relative to; None for the working directory.
        class_names: the base set's; a domain may lack some.
        own: folder of the base set's own pictures, which is passed over in a folder of folders.

    Raises:
        ValueError: no such folder, other classes, a name that occurs twice.
    """
    found: list[Domain] = []
    for word in words:
        if word == CORRUPTIONS or word in STANDARD:
            found += [Domain(name, None) for name in STANDARD if word in (name, CORRUPTIONS)]
            continue
        folder = Path(word) if folders is None else folders / word
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: expected a folder of pictures, {CORRUPTIONS!r}, or one of {', '.join(STANDARD)}; "
                "found no such folder"
            )
        inside = [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and _is_domain(sub, class_names)]
        if _is_domain(folder, class_names) or not inside:
            inside = [folder]  # if it is none, loading says why
        found += [Domain(sub.resolve().name, sub) for sub in inside if own is None or sub.resolve() != own.resolve()]
    names = [domain.name for domain in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"domains: expected different names, got {twice[0]!r} twice")
    if clash := [domain.name for domain in found if domain.folder and domain.name in (*STANDARD, CORRUPTIONS, CLEAN)]:
        raise ValueError(f"domains: a folder cannot be called {clash[0]!r}, as a corruption is; rename it")
    return tuple(found)


def _is_domain(folder: Path, class_names: Sequence[str]) -> bool:
    inside = {sub.name for sub in folder.iterdir() if sub.is_dir() and not sub.name.startswith(".")}
    return bool(inside) and inside <= set(class_names)


class Store:
    """Pictures of a fixed size, labels and logits in a folder; several processes may read them at a time."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, or begin one when something is kept."""
        self._folder = folder

    def digest(self, name: str) -> str | None:
        """Return what was kept with a set to tell whether it is still the same; None if there is none."""
        file = self._folder / f"{name}.json"
        return str(json.loads(file.read_text(encoding="utf-8"))["digest"]) if file.exists() else None

    def keep(self, name: str, data: ImageSet, digest: str) -> None:
        """Keep a set; the logits of an earlier one go."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._table(name).unlink(missing_ok=True)
        np.save(self._folder / f"{name}.npy", data.images)
        about = {
            "digest": digest,
            "classes": data.class_names,
            "labels": data.labels.tolist(),
            "hashes": data.hashes,
        }
        (self._folder / f"{name}.json").write_text(json.dumps(about), encoding="utf-8")  # last: now all is there

    def load(self, name: str) -> ImageSet:
        """Return a set. Its images lie on disk until they are read; do not write to them."""
        about = json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))
        images = np.load(self._folder / f"{name}.npy", mmap_mode="r")
        labels = np.asarray(about["labels"], dtype=np.int64)
        return ImageSet(images, labels, tuple(about["classes"]), tuple(about["hashes"]))

    def has(self, name: str) -> bool:
        """Say whether there is such a set."""
        return self.digest(name) is not None

    def has_table(self, name: str) -> bool:
        """Say whether it is kept what soups say about a set."""
        return self._table(name).exists()

    def table(self, name: str, prepared: PreparedBase, data: ImageSet) -> Table:
        """Return what every ingredient and their uniform soup say about a set, and the nominal one's features.

        Made if there is none: some minutes for photographs.
        """
        soups = _soups(len(prepared.manifest.ingredients))
        if not self.has_table(name):
            write_table(self._table(name), tabulate(prepared, soups, data, with_features=True))
        return read_table(self._table(name), soups, data)

    def _table(self, name: str) -> Path:
        return self._folder / f"{name}.npz"


def _soups(num_ingredients: int) -> Soups:
    """Return the ingredients alone, and all in equal parts; no grid: photographs take too long for one."""
    alone = np.eye(num_ingredients)
    uniform = np.full((1, num_ingredients), 1 / num_ingredients)
    return Soups(np.concatenate([alone, uniform]), 0)


def keep_pictures(
    store: Store, domains: Sequence[Domain], manifest: Manifest, data: Path | None, *, seed: int, needs_clean: bool
) -> dict[str, str]:
    """Decode and corrupt what the store lacks; return the digest of each domain, and of the clean pictures if used.

    Args:
        store: for the pictures.
        domains: wanted.
        manifest: of the base set, for classes, input size and its own held-out pictures.
        data: folder of the base set's own pictures; None for where its recipe says.
        seed: of the corruptions.
        needs_clean: whether clean pictures are wanted for their own sake; it does without them where there are none.

    Raises:
        ValueError: no such data, or other classes.
    """
    digests: dict[str, str] = {}
    computed = [domain for domain in domains if domain.folder is None]
    if computed or needs_clean:
        clean = _clean(manifest, data, must_be=bool(computed))
        if clean is not None:
            digests[CLEAN] = clean.digest
            if store.digest(CLEAN) != clean.digest:
                store.keep(CLEAN, clean, clean.digest)
            for domain in computed:
                digests[domain.name] = f"{clean.digest} {seed}"
                if store.digest(domain.name) != digests[domain.name]:
                    logger.info("%s: corrupting %d pictures", domain.name, len(clean))
                    store.keep(domain.name, SUITE[domain.name].of(clean, seed=seed), digests[domain.name])
    for domain in domains:
        if domain.folder is not None:
            files = find_files(domain.folder, manifest.input, manifest.class_names)
            digests[domain.name] = files.digest
            if store.digest(domain.name) != files.digest:
                logger.info("%s: decoding %d pictures", domain.name, len(files))
                store.keep(
                    domain.name, load_folder_set(domain.folder, manifest.input, manifest.class_names), files.digest
                )
    return digests


def _clean(manifest: Manifest, data: Path | None, *, must_be: bool) -> ImageSet | None:
    try:
        return load_images(manifest, data)
    except ValueError:
        if must_be or data is not None:
            raise
        logger.info("%s: none of its own pictures are at hand; eata does without its penalty", manifest.name)
        return None


def own_folder(manifest: Manifest, data: Path | None) -> Path | None:
    """Return the folder of a base set's own pictures: `data`, or where its recipe says, if it is there."""
    recipe = manifest.provenance.recipe.get("data")
    path = recipe.get("path") if isinstance(recipe, dict) else None
    found = data or (Path(path) if isinstance(path, str) else None)
    return found if found is not None and found.is_dir() else None
