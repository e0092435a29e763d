"""The commands of `saucier reference`: labelled images that somebody vouches for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from adapt.images import support as supports
from service.db import opened
from service.prediction.catalog import read_catalog
from service.settings import Settings
from service.store.objects import ObjectStore
from service.store.rebasing import MAX_NAMED
from service.store.references import ReferenceInfo, References
from service.store.registry import Registry
from service.store.tables import COMMAND_LINE
from service.store.transactions import UnknownDeployment
from training.cli import Command, Result
from training.nearest import meant
from training.parameters import Positional

DeploymentArgument = Annotated[str, Positional]


class AddCommand(Command):
    """Give a deployment reference images: what is promoted must keep a floor of accuracy on them.

    They replace those it has. Take images that nobody can upload to it, of what the deployment is usually asked.

    Example: saucier reference add default trusted/ --floor 0.7
    """

    name: ClassVar[str] = "add"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    deployment: DeploymentArgument = Field(description="its name")
    folder: Annotated[Path, Positional] = Field(
        description="labelled images: a folder or archive with one folder per class"
    )
    floor: float = Field(gt=0, le=1, description="least accuracy, a fraction")

    def execute(self) -> Result:
        """Check and store them."""
        settings = Settings.load()
        catalog = read_catalog(*settings.bases_folders, check_files=False)
        with _references(settings) as (registry, references):
            base_set = registry.deployment(self.deployment).base_set
            if base_set not in catalog:
                raise ValueError(f"expected the base set {base_set!r}, found {sorted(catalog)}")
            images = supports.load(self.folder, catalog[base_set].manifest)
            info = references.put(self.deployment, images, self.floor, who=COMMAND_LINE)
        return Result(_data(self.deployment, info), _text(self.deployment, info))


class ShowCommand(Command):
    """Show what reference images a deployment has.

    Example: saucier reference show default --json
    """

    name: ClassVar[str] = "show"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    deployment: DeploymentArgument = Field(description="its name")

    def execute(self) -> Result:
        """Look."""
        with _references(Settings.load()) as (_, references):
            info = references.info(self.deployment)
        return Result(_data(self.deployment, info), _text(self.deployment, info))


class RemoveCommand(Command):
    """Delete the reference images of a deployment, and the floor with them.

    Example: saucier reference remove default
    """

    name: ClassVar[str] = "remove"
    unused: ClassVar[tuple[str, ...]] = ("seed",)
    deployment: DeploymentArgument = Field(description="its name")

    def execute(self) -> Result:
        """Delete them."""
        with _references(Settings.load()) as (_, references):
            removed = references.remove(self.deployment, who=COMMAND_LINE)
        text = "removed" if removed else "there were none"
        return Result({"deployment": self.deployment, "removed": removed}, f"{self.deployment}: {text}")


@contextmanager
def _references(settings: Settings) -> Iterator[tuple[Registry, References]]:
    with opened(settings, must_exist=True) as database:
        try:
            yield (registry := Registry(database)), References(database, ObjectStore(settings.samples_url))
        except UnknownDeployment as error:
            known = [found.name for found in registry.deployments(limit=MAX_NAMED)]
            hint = meant(error.args[0], known)
            raise ValueError(f"there is no deployment {error.args[0]!r}, only {known}{hint}") from None


def _data(deployment: str, info: ReferenceInfo | None) -> dict[str, Any]:
    found = None if info is None else {"n": info.n, "per_class": info.per_class, "floor": info.floor}
    return {"deployment": deployment, "reference": found}


def _text(deployment: str, info: ReferenceInfo | None) -> str:
    if info is None:
        return f"{deployment}: no reference images"
    counts = ", ".join(f"{name} {count}" for name, count in info.per_class.items())
    return f"{deployment}: floor {info.floor:g} on {info.n} reference images ({counts})"
