"""The registry's database: one engine, short read and write transactions."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

BUSY_SECONDS = 10  # how long a writer waits for another one's transaction (SQLite), or for a connection (PostgreSQL)
SILENT_MILLISECONDS = 5_000  # after which PostgreSQL counts as gone if the network acknowledges nothing
MAX_INTEGER = 2**31 - 1  # what a column of whole numbers holds


class SchemaError(ValueError):
    """The database's tables are not those that this version works with, and cannot become them. One line."""


class Database:
    """Transactions on a SQLAlchemy URL of SQLite or PostgreSQL. Safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)

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


def is_text(value: str) -> bool:
    """Say if a database can look for this text: PostgreSQL refuses one with a NUL, where SQLite finds nothing."""
    return "\0" not in value


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        # A connection that a restart of the server has broken is noticed, and replaced, when it is taken.
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": BUSY_SECONDS,
                "tcp_user_timeout": SILENT_MILLISECONDS,
                "options": f"-c lock_timeout={BUSY_SECONDS}s",
            },
        )
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin below, not where the driver guesses
    cursor = connection.cursor()
    _log_ahead(cursor)
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _log_ahead(cursor: Any) -> None:
    """Have a file keep a write-ahead log; SQLite does not wait for another process that does the same to a new file."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: reading first and upgrading later can fail half-way with "database is locked".
    options = connection.get_execution_options()
    if options.get("is_write", False):
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options['is_durable'] else 'NORMAL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("BEGIN")
