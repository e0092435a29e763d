"""The base sets a service was started with: found, verified, named. Imports no torch."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.layout import BundleError, discard_bundle, find_bundle, read_info
from service.settings import Settings
from training.documents import one_line
from training.manifest import MANIFEST_NAME, BaseSetError, Manifest, check_mixable, read_manifest

logger = logging.getLogger(__name__)

USUAL_BASE_SET = "cifar10"


@dataclass(frozen=True)
class Base:
    """A base set and where it lies."""

    folder: Path
    manifest: Manifest

    def bundle(self, home: Path) -> Path | None:
        """Return the folder of its serving bundle, or None while there is none."""
        return find_bundle(self.folder, self.manifest, home)


def read_catalog(*folders: Path, check_files: bool) -> dict[str, Base]:
    """Return the base sets below `folders` (or a folder itself, if it is one) by name.

    Args:
        folders: `Settings.bases_folders`. Of two base sets with one name, the one in the earlier folder counts.
        check_files: compare the SHA-256 of every weight file as well.

    Raises:
        BaseSetError: none has ingredients to mix, two in one folder have one name, or one is corrupt; one line that
            names the file.
    """
    catalog: dict[str, Base] = {}
    for folder in folders:
        for name, base in _read_folder(folder, check_files=check_files).items():
            if name not in catalog:
                catalog[name] = base
            elif check_files:  # once, not by every process
                logger.info("%s: passed over: %s has the name %s, too", base.folder, catalog[name].folder, name)
    if not catalog:
        places = " or ".join(map(str, folders))
        expected = f"{places}: expected at least one base set with ingredients to mix"
        raise BaseSetError(f"{expected}, found none with a {MANIFEST_NAME} (SAUCIER_BASES)")
    return catalog


def _read_folder(folder: Path, *, check_files: bool) -> dict[str, Base]:
    paths = [folder] if _is_base_set(folder) else sorted(path for path in folder.glob("*") if _is_base_set(path))
    catalog: dict[str, Base] = {}
    for path in paths:
        manifest = read_manifest(path, check_files=check_files)
        try:
            check_mixable(manifest)
        except BaseSetError as error:  # imported, and nothing trained from it yet
            if len(paths) == 1:
                raise
            logger.warning("%s: passed over: %s", path, error)
            continue
        if manifest.name in catalog:
            other = catalog[manifest.name].folder
            raise BaseSetError(f"{path / MANIFEST_NAME}: {other} has a base set named {manifest.name!r}, too")
        catalog[manifest.name] = Base(path, manifest)
    return catalog


def _is_base_set(folder: Path) -> bool:
    """Say if the folder is meant to be a base set; one that lost its manifest is, too, and must not go unnoticed."""
    return (folder / MANIFEST_NAME).is_file() or any(folder.glob("*.safetensors"))


def choose_default(catalog: Mapping[str, Base], settings: Settings) -> Base:
    """Return the base set that the deployment `default` is made with.

    Raises:
        BaseSetError: it is not there, or it is not clear which one is meant.
    """
    places = " or ".join(map(str, settings.bases_folders))
    if settings.base_set is not None:
        if settings.base_set not in catalog:
            wanted = f"expected a base set named {settings.base_set!r} (SAUCIER_BASE_SET)"
            raise BaseSetError(f"{places}: {wanted}, found {sorted(catalog)}")
        return catalog[settings.base_set]
    first = next(iter(catalog.values())).folder.parent  # one's own before those that come with Saucier
    own = [base for base in catalog.values() if base.folder.parent == first]
    if len(own) == 1:
        return own[0]
    if USUAL_BASE_SET in catalog and catalog[USUAL_BASE_SET] in own:
        return catalog[USUAL_BASE_SET]
    found = sorted(base.manifest.name for base in own)
    raise BaseSetError(
        f"{first}: expected one base set or one named {USUAL_BASE_SET!r}, found {found}: set SAUCIER_BASE_SET"
    )


def check_bundles(catalog: Mapping[str, Base], home: Path) -> None:
    """Verify every file of the serving bundles that exist; a corrupt one in the home is removed, to be built again.

    Raises:
        BundleError: one beside its base set is corrupt, or one in the home cannot be removed; one line that names the
            file.
    """
    for base in catalog.values():
        while (folder := base.bundle(home)) is not None:
            try:
                _check_bundle(folder, base.manifest)
                break
            except BundleError as error:
                if folder.parent != home / "bundles":
                    advice = f"run `saucier bundle {base.folder}`, or remove the folder"
                    raise BundleError(f"{error}; {advice}") from None
                logger.warning("the serving bundle of %s is built again: %s", base.manifest.name, error)
                _discard(folder)


def _check_bundle(folder: Path, manifest: Manifest) -> None:
    info = read_info(folder)
    if info.base_digest != manifest.digest:
        raise BundleError(f"{folder}: expected the bundle of {manifest.digest[:12]}, got {info.base_digest[:12]}")


def _discard(folder: Path) -> None:
    try:
        discard_bundle(folder)
    except OSError as error:
        raise BundleError(f"{folder}: expected to replace this corrupt bundle, {one_line(error)}") from None
