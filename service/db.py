"""The commands of `saucier db`: the registry's schema, its soundness, its backup."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from sqlalchemy import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from adapt.documents.soup import check_soup, default_soup
from deploy.runtime import Bundle
from service.prediction.catalog import Base, read_catalog
from service.prediction.predictor import DEFAULT
from service.settings import Settings
from service.store.backup import back_up
from service.store.database import Database
from service.store.identity import become_copy, become_original
from service.store.migrate import differences, head, is_newer, upgrade, usable_revision
from service.store.rebasing import MAX_NAMED, change_base_set
from service.store.registry import Registry
from service.store.tables import COMMAND_LINE, Deployment
from service.store.transactions import UnknownDeployment, UnknownVersion
from service.weights import rebase_all, told
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result
from training.documents import one_line
from training.nearest import meant
from training.parameters import Arg, Positional


class UpgradeCommand(Command):
    """Bring the schema of the registry up to date, or make it; a start of the service does the same.

    Example: SAUCIER_DATABASE_URL=postgresql://saucier@localhost/saucier saucier db upgrade
    """

    name: ClassVar[str] = "upgrade"
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    def execute(self) -> Result:
        """Upgrade it."""
        settings = Settings.load()
        if settings.database_url is None:
            settings.home.mkdir(parents=True, exist_ok=True)
        with opened(settings) as database:
            before = upgrade(database)
        after = before if is_newer(before) else head()
        text = f"at revision {after}" + ("" if before == after else f", was {before or 'empty'}")
        return Result({"revision": after, "previous_revision": before}, text)


class CheckCommand(Command):
    """Check that the registry is sound and that the current soup of every deployment loads; exit code 1 if not.

    Example: saucier db check --json
    """

    name: ClassVar[str] = "check"
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    def execute(self) -> Result:
        """Check it."""
        settings = Settings.load()
        catalog = read_catalog(*settings.bases_folders, check_files=False)
        with opened(settings, must_exist=True) as database:
            with database.read() as session:
                connection = session.connection()
                revision, problems = usable_revision(connection), []
                if revision == head():
                    problems = differences(connection)
                is_usable = revision == head() or is_newer(revision)
                if is_usable:
                    problems += _damage(connection)
            deployments: Sequence[Deployment] = []
            if not is_usable:
                problems = [_behind(revision)]
            elif not problems:
                registry = Registry(database)
                deployments = registry.deployments()
                problems = _unusable(settings, registry, catalog, deployments)
        data = {"revision": revision, "head": head(), "deployments": len(deployments), "problems": problems}
        text = "\n".join(problems) or f"sound, at revision {revision}; {len(deployments)} deployments load"
        return Result(data, text, EXIT_CLAIM_FAILED if problems else EXIT_DONE)


class RebaseCommand(Command):
    """Move deployments to the new weights of their base set, where it was trained or signed again under its name.

    With --base-set: move one deployment to another base set. Each gets a new version, the default soup. Refused while
    a worker is alive that could not serve it.

    Example: saucier db rebase --base-set mine --deployment default
    """

    name: ClassVar[str] = "rebase"
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    base_set: Annotated[str | None, Arg(metavar="NAME")] = Field(
        default=None, description="the other base set; by default each deployment keeps its own"
    )
    deployment: Annotated[str, Arg(metavar="NAME")] = Field(
        default=DEFAULT, description="the one that is moved to --base-set"
    )

    def execute(self) -> Result:
        """Move them."""
        settings = Settings.load()
        if self.base_set is None and self.deployment != DEFAULT:
            raise ValueError("--deployment: expected --base-set with it; without, every deployment is moved")
        if self.base_set is not None:
            return self._change(settings, self.base_set)
        catalog = read_catalog(*settings.bases_folders, check_files=False)
        with opened(settings, must_exist=True) as database:
            _check_schema(database)
            moves = rebase_all(database, catalog, settings)
        data = {"moved": [moved._asdict() for moved in moves]}
        return Result(data, "\n".join(map(told, moves)) or "every deployment has the weights in SAUCIER_BASES")

    def _change(self, settings: Settings, base_set: str) -> Result:
        catalog = read_catalog(*settings.bases_folders, check_files=False)
        if base_set not in catalog:
            raise ValueError(
                f"--base-set: expected one of {sorted(catalog)}, got {base_set!r}{meant(base_set, catalog)}"
            )
        wanted = default_soup(catalog[base_set].manifest)
        with opened(settings, must_exist=True) as database:
            _check_schema(database)
            try:
                moved = change_base_set(
                    database, self.deployment, wanted, stale_seconds=settings.stale_seconds, who=COMMAND_LINE
                )
            except UnknownDeployment:
                known = [found.name for found in Registry(database).deployments(limit=MAX_NAMED)]
                hint = meant(self.deployment, known)
                raise ValueError(f"--deployment: expected one of {known}, got {self.deployment!r}{hint}") from None
        if moved is None:
            return Result({"moved": []}, f"{self.deployment} has the base set {base_set} already")
        text = f"{moved.deployment}: version {moved.from_version} -> {moved.to_version}, default soup of {base_set}"
        return Result({"moved": [moved._asdict()]}, text)


class IdentityCommand(Command):
    """Say whether the database of a registry was copied or moved, which decides what it may delete from the store.

    A copy, for staging say, gets an id of its own and deletes nothing that its original wrote. One that was moved, or
    restored in the place of the original, goes on as before. Stop the services that use it first.

    Example: SAUCIER_DATABASE_URL=postgresql://saucier@localhost/staging saucier db identity copy
    """

    name: ClassVar[str] = "identity"
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    what: Annotated[Literal["copy", "moved"], Positional] = Field(description="what it is")

    def execute(self) -> Result:
        """Say it."""
        settings = Settings.load()
        with opened(settings, must_exist=True) as database:
            _check_schema(database)
            found = become_copy(database) if self.what == "copy" else become_original(database)
        return Result({"id": found}, f"the registry has the id {found}")


class BackupCommand(Command):
    """Write a consistent copy of the registry to a new file, while the service runs.

    SQLite: a database file, put back in the registry's place. PostgreSQL: an archive of pg_dump, for pg_restore.

    Example: saucier db backup registry-backup.db
    """

    name: ClassVar[str] = "backup"
    unused: ClassVar[tuple[str, ...]] = ("seed",)

    out: Annotated[Path, Positional] = Field(description="the file to write")

    def execute(self) -> Result:
        """Write it."""
        settings = Settings.load()
        with opened(settings, must_exist=True) as database, database.read() as session:
            revision = usable_revision(session.connection())
        back_up(settings.registry_url, self.out)
        size = self.out.stat().st_size
        return Result({"out": str(self.out), "bytes": size, "revision": revision}, f"{self.out}: {size:,} bytes")


@contextmanager
def opened(settings: Settings, *, must_exist: bool = False) -> Iterator[Database]:
    """Open the registry; what goes wrong with it becomes one line."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells each step
    url = make_url(settings.registry_url)
    if must_exist and url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise ValueError(f"{url.database}: expected the registry, found no such file")
    try:
        database = Database(settings.registry_url)
        try:
            yield database
        finally:
            database.close()
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise ValueError(f"the registry cannot be used: {one_line(cause)}") from None


def _check_schema(database: Database) -> None:
    with database.read() as session:
        revision = usable_revision(session.connection())
    if revision != head() and not is_newer(revision):
        raise ValueError(_behind(revision))


def _behind(revision: str | None) -> str:
    return f"expected revision {head()}, found {revision}: run `saucier db upgrade`"


def _damage(connection: Connection) -> list[str]:
    """Return what SQLite finds wrong with its file; PostgreSQL checks such things as it goes."""
    if connection.dialect.name != "sqlite":
        return []
    found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check") if row[0] != "ok"]
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return found + [f"{row[0]}: row {row[1]} refers to a row of {row[2]} that is not there" for row in broken]


def _unusable(
    settings: Settings, registry: Registry, catalog: Mapping[str, Base], deployments: Sequence[Deployment]
) -> list[str]:
    """Return a line for every deployment whose current soup cannot be served."""
    problems = []
    bundles: dict[str, Bundle | None] = {}
    for found in deployments:
        try:
            base = catalog.get(found.base_set)
            if base is None:
                raise ValueError(f"expected the base set {found.base_set!r}, found {sorted(catalog)}")
            if found.base_set not in bundles:
                bundles[found.base_set] = _open_bundle(base, settings)
            _load(registry, found, base, bundles[found.base_set])
        except UnknownVersion:
            problems.append(f"{found.name}: points at version {found.version}, which is not there")
        except (ValueError, OSError, KeyError) as error:
            problems.append(f"{found.name}: version {found.version} does not load: {one_line(error)}")
    return problems


def _open_bundle(base: Base, settings: Settings) -> Bundle | None:
    folder = base.bundle(settings.home)
    return None if folder is None else Bundle.open(folder, base_digest=base.manifest.digest)


def _load(registry: Registry, found: Deployment, base: Base, bundle: Bundle | None) -> None:
    """Read the current soup of a deployment and, if its bundle is built already, make the session that serves it."""
    soup = registry.soup(found.name, found.version, held_out=True)
    check_soup(soup, base.manifest)
    if soup.held_out is not None:
        soup.held_out.answers()
    if bundle is not None:
        patch = None if soup.patch is None else soup.patch.tensors()
        bundle.session(soup.coefficients, bn_mode=soup.bn_mode, patch=patch, device="cpu")
