"""One clock for all processes that share the registry: the database's. Clocks of machines differ, and are set."""

from typing import Any

from sqlalchemy import ColumnElement, Float, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.sql.expression import FunctionElement


class Now(FunctionElement[float]):
    """The moment at which the database reads it, in seconds since 1970."""

    type = Float()
    name = "now"
    inherit_cache = True


@compiles(Now, "postgresql")
def _of_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"  # now() is when the transaction began


@compiles(Now, "sqlite")
def _of_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


def read_clock(session: Session) -> float:
    """Return the database's time in seconds since 1970."""
    return session.scalars(select(Now())).one()


def is_silent(heartbeat: InstrumentedAttribute[Any], seconds: float) -> ColumnElement[bool]:
    """Say if a heartbeat is older than a number of seconds.

    So is one from the future: it was written before the database's clock was set back, and who lives beats again soon.
    """
    return func.abs(Now() - heartbeat) > seconds
