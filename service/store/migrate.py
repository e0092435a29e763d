"""The registry's schema: brought up to date, and compared with what the code expects.

Versions of the code that follow each other share a registry while a service is upgraded one process at a time. So a
revision only adds tables and columns that the code of the revision before does not need. A later revision removes
those that this code still uses. The registry stores the oldest revision whose code works with its schema; older code
refuses it.

Alembic is imported here and nowhere else, by the process that starts the others and by `saucier db`.
"""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select, text, update

from service.store.database import Database, SchemaError
from service.store.tables import Deployment, Identity, Table

FOLDER = Path(__file__).parent / "migrations"
LOCK = 0x5A0C1E4  # of PostgreSQL's advisory locks: two machines that start at once migrate one after the other


def head() -> str:
    """Return the revision that this version of the code works with."""
    return str(_scripts().get_current_head())


def upgrade(database: Database) -> str | None:
    """Bring the schema up to date in one transaction; make it in an empty database. One that is newer stays as it is.

    Returns:
        The revision it had, None if there was none.

    Raises:
        SchemaError: it is too new for this version, or from before there were migrations; nothing was changed.
    """
    with database.write() as session:
        connection = session.connection()
        if connection.dialect.name == "postgresql":
            from service.store.postgres import lift_limits

            lift_limits(connection)
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        found = usable_revision(connection)
        if found != head() and not is_newer(found):
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.execute(update(Identity).values(works_from=_before_head()))
        return found


def usable_revision(connection: Connection) -> str | None:
    """Return the revision of the schema, None for an empty database.

    Raises:
        SchemaError: this version of the code can neither work with it nor bring it up to date.
    """
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None and inspect(connection).has_table(Deployment.__tablename__):
        raise SchemaError(
            "expected a registry with a schema revision, found one of a version before 0.1: move it away to start "
            "with an empty one"
        )
    if is_newer(found) and _works_from(connection) != head():
        raise SchemaError(
            f"expected a schema revision up to {head()}, found {found}: a version of Saucier newer than the next one "
            "made it; use that version, or restore a backup"
        )
    return found


def is_newer(revision: str | None) -> bool:
    """Say if a revision was made by a newer version than this one."""
    return revision is not None and revision not in _known()


def _known() -> set[str]:
    return {script.revision for script in _scripts().walk_revisions()}


def _before_head() -> str:
    """Return the revision before the newest: the oldest whose code works with the newest schema."""
    scripts = _scripts()
    return str(scripts.get_revision(head()).down_revision)


def _works_from(connection: Connection) -> str | None:
    """Return the oldest revision whose code works with the schema; None where that is not stored."""
    if not inspect(connection).has_table(Identity.__tablename__):
        return None
    return connection.scalar(select(Identity.works_from))


def differences(connection: Connection) -> list[str]:
    """Return what differs between the database's tables and those of the code, a line each."""
    context = MigrationContext.configure(connection)
    return [_describe(difference) for difference in compare_metadata(context, Table.metadata)]


def _describe(difference: Any) -> str:
    """Return one of Alembic's tuples, `(action, ..., subject)`, in words."""
    if isinstance(difference, list):  # of one column, each
        return "; ".join(map(_describe, difference))
    action, *details = difference
    named = [getattr(detail, "name", None) or detail for detail in details if detail is not None]
    return " ".join([action.replace("_", " "), *(name for name in named if isinstance(name, str))])


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
