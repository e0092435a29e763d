"""Virtual environments with every package of this one, except Saucier and what else a test leaves out."""

import re
import site
import venv
from collections.abc import Collection
from pathlib import Path


def make_environment(folder: Path, *, without: Collection[str] = ()) -> Path:
    """Make one in a folder and return its interpreter.

    Args:
        folder: where it is made.
        without: distributions that are not to be found in it, as `torch`, with their modules of the same name.
    """
    left_out = re.compile("|".join([".*saucier", *(rf"{name}(-[\d.].*)?\Z" for name in without)]))
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for source in Path(site.getsitepackages()[0]).iterdir():
        if not left_out.match(source.name.lower()):
            (packages / source.name).symlink_to(source)
    return folder / "bin" / "python"
