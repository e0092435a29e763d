"""Starting the service from any folder: `saucier serve`, which becomes `bentoml serve`."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import ClassVar, NoReturn

from pydantic import Field

from service.settings import PACKAGE_ROOT, PREFIX, Settings
from training.cli import Command

TARGET = "service.app:Saucier"  # what `bentoml serve` is to serve
PACKAGES = ("service", "deploy", "adapt", "training")


class ServeCommand(Command):
    """Serve the base sets over HTTP until interrupted; every option is a setting, too (SAUCIER_HOST and so on).

    Base sets are those of `bases/` in the working directory, then those that come with Saucier.

    Example: saucier serve --base-set mine --port 8080
    """

    name: ClassVar[str] = "serve"
    unused: ClassVar[tuple[str, ...]] = ("print_json", "seed")
    host: str | None = Field(default=None, description="address to bind; default: SAUCIER_HOST, or 127.0.0.1")
    port: int | None = Field(default=None, ge=1, le=65535, description="port to bind; default: SAUCIER_PORT, or 3000")
    workers: int | None = Field(default=None, ge=1, description="worker processes; default: SAUCIER_WORKERS, or 2")
    bases: Path | None = Field(default=None, description="folder of base sets, or one base set; default: SAUCIER_BASES")
    base_set: str | None = Field(
        default=None, description="base set that `default` is to serve; default: SAUCIER_BASE_SET, or what it serves"
    )
    home: Path | None = Field(
        default=None, description="folder of all that is stored; default: SAUCIER_HOME, or ~/.saucier"
    )

    def execute(self) -> NoReturn:
        """Serve."""
        start(
            host=self.host,
            port=self.port,
            workers=self.workers,
            bases=self.bases,
            base_set=self.base_set,
            home=self.home,
        )


def start(**settings: str | int | Path | None) -> NoReturn:
    """Become `bentoml serve` with these settings, in the working directory; signals reach it as they are.

    Args:
        settings: by the names of the fields of `Settings`; each stands before its environment variable. None leaves
            that as it is.

    Raises:
        SettingsError: a setting cannot be used; one line that names its variable.
        ValueError: the working directory has Python code that would be loaded in the place of Saucier's.
    """
    given = {f"{PREFIX}{name.upper()}": str(value) for name, value in settings.items() if value is not None}
    os.environ.update(given)  # this process is the service from now on
    Settings.load()
    check_working_directory(Path.cwd())
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", TARGET])


def check_working_directory(folder: Path) -> None:
    """Check that the processes of the service find its code: each looks for modules in the working directory first.

    Raises:
        ValueError: a module or package of the folder has the name of one of ours.
    """
    for name in PACKAGES:
        found = PathFinder.find_spec(name, [str(folder)])
        if found is None or found.origin is None:  # a folder without code does not count
            continue
        if not Path(found.origin).resolve().is_relative_to(PACKAGE_ROOT / name):
            expected = f"expected a working directory without a module named {name!r}"
            raise ValueError(f"{expected}, which Python would load in the place of Saucier's: {found.origin}")
