"""Which registry this is, and which objects of the store are its own to delete.

Registries may share a store: that of a staging system, or a copy of a database that was restored somewhere. Each has a
random id that begins the names of what it writes, and deletes nothing that another one wrote. A copy has the id of its
original; it is known by the place of its database, and deletes nothing until somebody says which of the two it is.
"""

import logging
from typing import NamedTuple

from sqlalchemy import Connection, select, text, update
from sqlalchemy.orm import Session

from service.store.database import Database
from service.store.objects import StoreError
from service.store.tables import Identity, new_id

logger = logging.getLogger(__name__)

ADVICE = (
    "run `saucier db identity copy` if the original goes on being used, or `saucier db identity "
    "moved` if this registry took its place"
)


class Owner(NamedTuple):
    """What a registry may delete."""

    id: str
    owns_unnamed: bool
    is_in_place: bool  # its database is where it was at the last start

    def owns(self, origin: str | None) -> bool:
        """Say if the registry wrote an object, given the id that begins its name; None for objects without one."""
        return self.owns_unnamed if origin is None else origin == self.id

    def check(self) -> None:
        """Raise StoreError unless objects may be deleted at all."""
        if not self.is_in_place:
            raise StoreError(f"nothing is deleted from the store, as the registry was copied or moved: {ADVICE}")


def registry_id(session: Session) -> str:
    """Return the id of the registry."""
    return session.scalars(select(Identity.id)).one()


def read_owner(database: Database) -> Owner:
    """Return what the registry may delete."""
    with database.read() as session:
        found = session.scalars(select(Identity)).one()
        is_in_place = found.place in (None, _place(session.connection()))
    return Owner(found.id, found.owns_unnamed, is_in_place)


def check_identity(database: Database, *, is_shared: bool) -> None:
    """Note at a start where the database is, or log that the registry may be a copy.

    Args:
        database: the registry's.
        is_shared: others may use the store as well. One below the home was copied or moved together with the registry.
    """
    owner = read_owner(database)
    if owner.is_in_place or not is_shared:
        _settle(database)
    else:
        logger.error(
            "the registry's database is not where it was at the last start; it deletes nothing from the store until "
            "you say why: %s",
            ADVICE,
        )


def become_copy(database: Database) -> str:
    """Give the registry an id of its own, so that it deletes nothing that its original wrote; return the id."""
    with database.write() as session:
        fresh = new_id()
        session.execute(update(Identity).values(id=fresh, owns_unnamed=False, place=_place(session.connection())))
        return fresh


def become_original(database: Database) -> str:
    """Say that the registry took the place of the one whose id it has; return the id."""
    _settle(database)
    return read_owner(database).id


def _settle(database: Database) -> None:
    with database.write() as session:
        session.execute(update(Identity).values(place=_place(session.connection())))


def _place(connection: Connection) -> str:
    """Return where the database is: its file, or its server's identity and its number there."""
    if connection.dialect.name == "sqlite":
        return next(str(row[2]) for row in connection.exec_driver_sql("PRAGMA database_list") if row[1] == "main")
    number = connection.scalar(text("SELECT oid FROM pg_database WHERE datname = current_database()"))
    server = ""
    if connection.scalar(text("SELECT has_function_privilege('pg_control_system()', 'execute')")):
        server = connection.scalar(text("SELECT system_identifier FROM pg_control_system()"))
    return f"{server}/{number}"
