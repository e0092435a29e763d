"""PostgreSQL without endless waits: on the network, for a lock, or for a statement. Needs psycopg.

TCP keepalives notice a machine that is gone. They do not notice a proxy or a firewall that keeps a connection and
passes nothing on, so each answer also has a time limit of its own, on this side.
"""

import time
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from sqlalchemy import URL, Connection, Engine, create_engine, event, text

CONNECT_SECONDS = 10
LOCK_SECONDS = 10
STATEMENT_SECONDS = 15  # longer than a wait for a lock
IDLE_SECONDS = 60  # a transaction in which nothing is asked for so long is rolled back, and its locks are free
ANSWER_SECONDS = 18.0  # longer than the server gives a statement: then the connection is dead
PING_SECONDS = 3.0  # for the first answer of a connection that was not used for a while
_KEEPALIVES = {"idle": 5, "interval": 2, "count": 3}  # seconds, seconds, probes
_USER_TIMEOUT_MS = 10_000  # how long sent data may stay unacknowledged


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed once the server has been silent for `patience` seconds while it should answer."""

    patience = PING_SECONDS

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Wait for an answer.

        Raises:
            OperationalError: there was none in time, or the server said why not.
        """
        try:
            return super().wait(_within(gen, self.patience), *args, **kwargs)
        except _Silence:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server did not answer for {self.patience:g} s") from None


class _Silence(Exception):
    """The time limit has passed."""


def _within(answer: PQGen[RV], seconds: float) -> Generator[Any, Any, RV]:
    """Pass on what psycopg waits for, until nothing has come for a number of seconds; it looks every 0.1 s."""
    deadline = time.monotonic() + seconds
    try:
        wanted = next(answer)
        while True:
            if is_ready := (yield wanted):
                deadline = time.monotonic() + seconds
            elif time.monotonic() > deadline:
                raise _Silence
            wanted = answer.send(is_ready)
    except StopIteration as end:
        found: RV = end.value
        return found


def postgres_engine(url: URL, *, connections: int) -> Engine:
    """Return an engine whose every wait ends.

    Args:
        url: of the database.
        connections: most connections at a time; who needs one more waits for it.
    """
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=CONNECT_SECONDS,
        # A connection that broke, or fell silent, is noticed and replaced when it is taken.
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "keepalives": 1,
            **{f"keepalives_{name}": value for name, value in _KEEPALIVES.items()},
            "tcp_user_timeout": _USER_TIMEOUT_MS,
            "options": " ".join(f"-c {name}={value}" for name, value in _server_limits().items()),
        },
    )
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "checkout", _expect_answers)  # after the ping
    event.listen(engine, "checkin", _expect_ping)
    return engine


def _server_limits() -> dict[str, str | int]:
    """Return what the server keeps to: it must let go of the locks of a client that is gone."""
    return {
        "lock_timeout": f"{LOCK_SECONDS}s",
        "statement_timeout": f"{STATEMENT_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
        **{f"tcp_keepalives_{name}": value for name, value in _KEEPALIVES.items()},
        "tcp_user_timeout": _USER_TIMEOUT_MS,
    }


def lift_limits(connection: Connection) -> None:
    """Let the statements of the transaction at hand take as long as they need: a migration's may."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, BoundedConnection)
    driver.patience = float("inf")


def _connect(_: object, __: object, arguments: list[Any], named: dict[str, Any]) -> BoundedConnection:
    return BoundedConnection.connect(*arguments, **named)


def _expect_answers(connection: BoundedConnection, *_: object) -> None:
    connection.patience = ANSWER_SECONDS


def _expect_ping(connection: BoundedConnection | None, _: object) -> None:
    if connection is not None:  # it was not broken
        connection.patience = PING_SECONDS
