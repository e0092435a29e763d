"""The registry's database: one engine, short read and write transactions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from service.store.tables import Deployment, SoupVersion, Table

# Columns that came after their tables; all may be null. A registry made without them gets them at the next start.
ADDED = (
    (SoupVersion.__tablename__, SoupVersion.__table__.c.patch),
    (Deployment.__tablename__, Deployment.__table__.c.reservoir),
)
BUSY_SECONDS = 10  # how long a writer waits for another one's transaction (SQLite)


class Database:
    """Transactions on a SQLAlchemy URL. Safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)

    def create(self) -> None:
        """Make the tables and columns that are missing; whatever is there stays as it is."""
        with self.write() as session:
            connection = session.connection()
            Table.metadata.create_all(connection)
            _add_columns(connection)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a transaction that only reads; rows stay usable after it."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self, *, is_durable: bool = True) -> Iterator[Session]:
        """Open a transaction that commits at the end of the block, or not at all.

        Args:
            is_durable: survive a power cut, not only the death of the process (SQLite; others decide themselves).
        """
        engine = self._engine.execution_options(is_write=True, is_durable=is_durable)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session


def _add_columns(connection: Connection) -> None:
    """Bring a registry of an earlier version up to date."""
    for table, column in ADDED:
        if column.name not in {known["name"] for known in inspect(connection).get_columns(table)}:
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {column.name} {kind}")


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin below, not where the driver guesses
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: reading first and upgrading later can fail half-way with "database is locked".
    options = connection.get_execution_options()
    if options.get("is_write", False):
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options['is_durable'] else 'NORMAL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("BEGIN")
