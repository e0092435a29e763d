"""Virtual environments that borrow the packages of this one, so that nothing is downloaded."""

import re
import site
import venv
from collections.abc import Collection, Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PACKAGES = Path(site.getsitepackages()[0])


def make_environment(folder: Path, *, only: Collection[str] | None = None) -> Path:
    """Make one in a folder and return its interpreter.

    Args:
        folder: where it is made.
        only: the packages it has; by default all there are, except Saucier.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    every = {path.name for path in PACKAGES.iterdir() if "saucier" not in path.name}
    for name in every if only is None else every & entries(only):
        (packages / name).symlink_to(PACKAGES / name)
    return folder / "bin" / "python"


def entries(packages: Iterable[str]) -> set[str]:
    """Return the files and folders that these packages have directly in the environment."""
    return {file.parts[0] for name in packages for file in distribution(name).files or ()}


def num_bytes(packages: Iterable[str]) -> int:
    """Return the size of all files of these packages."""
    files = [Path(str(file.locate())) for name in packages for file in distribution(name).files or ()]
    return sum(file.stat().st_size for file in files if file.is_file())


def closure(requirements: Iterable[str]) -> set[str]:
    """Return the packages that these requirements lead to here, by their normalised names."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()

    def follow(lines: Iterable[str], extras: Iterable[str]) -> None:
        for one in map(Requirement, lines):
            if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            name = re.sub(r"[-_.]+", "-", one.name).lower()
            if (name, frozenset(one.extras)) in seen:
                continue
            seen.add((name, frozenset(one.extras)))
            try:
                installed = distribution(name)
            except PackageNotFoundError:  # one that only another platform or Python needs
                continue
            found.add(name)
            follow(installed.requires or (), one.extras)

    follow(requirements, ())
    return found
