"""Which files and folders of a dataset are data, and which class a folder's name means (no torch)."""

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

# Left behind by archivers, file browsers, network drives and file systems; in lower case. Hidden ones go anyway.
IGNORED = {
    *("thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin"),
    *("lost+found", "system volume information"),
}


def is_ignored(name: str) -> bool:
    """Say whether a file or folder does not belong to the data.

    Args:
        name: its path below the dataset's folder, with forward slashes.
    """
    return any(part.startswith(".") or part.lower() in IGNORED for part in name.split("/"))


def composed(name: str) -> str:
    """Return the name with its accents composed (Unicode NFC): macOS stores a letter and its accent apart."""
    return unicodedata.normalize("NFC", name)


def indices_by_name(class_names: Iterable[str]) -> dict[str, int]:
    """Return the index of each class by its `composed` name."""
    return {composed(name): index for index, name in enumerate(class_names)}


def class_folders(root: Path) -> list[Path]:
    """Return the folders in `root` that hold files, sorted by name; ignored and empty ones are passed over."""
    folders = (path for path in root.iterdir() if not is_ignored(path.name) and path.is_dir())
    return sorted((folder for folder in folders if any(_files(folder))), key=lambda folder: composed(folder.name))


def files_in(folder: Path) -> list[Path]:
    """Return the files anywhere below a folder, sorted; ignored ones are passed over."""
    return sorted(_files(folder))


def _files(folder: Path) -> Iterator[Path]:
    found = (path for path in folder.rglob("*") if not is_ignored(path.relative_to(folder).as_posix()))
    return (path for path in found if path.is_file())
