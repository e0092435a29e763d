"""A copy of the registry's database that can be restored, made while the service runs."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url

from training.files import replace_file

PG_DUMP = "pg_dump"


def back_up(url: str, out: Path) -> None:
    """Write a consistent copy of a database to a new file: an SQLite database, or an archive for pg_restore.

    Args:
        url: the registry's.
        out: the file; written beside itself first, so that it is whole or not there.

    Raises:
        ValueError: the file is there already, or the copy failed; one line.
    """
    if out.exists():
        raise ValueError(f"{out}: expected a file that does not exist yet")
    parsed = make_url(url)
    copy = _copy_sqlite if parsed.get_backend_name() == "sqlite" else _dump_postgresql
    replace_file(out, lambda partial: copy(parsed, partial), mode=0o600)


def _copy_sqlite(url: URL, out: Path) -> None:
    """Copy with SQLite's online backup, which sees one moment however many write meanwhile, and check the copy."""
    try:
        with closing(sqlite3.connect(url.database or "")) as source, closing(sqlite3.connect(out)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, with no log beside it
            verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        raise ValueError(f"{url.database}: the registry cannot be copied: {error}") from None
    if verdict != "ok":
        raise ValueError(f"{url.database}: expected a database without damage, got {' '.join(verdict.split())}")


def _connection_options(url: URL) -> dict[str, Any]:
    """Return what libpq is told by a URL of SQLAlchemy."""
    dialect = url.set(drivername="postgresql+psycopg").get_dialect()()
    _, options = dialect.create_connect_args(url)
    return {name: value for name, value in options.items() if isinstance(value, str | int)}


def _dump_postgresql(url: URL, out: Path) -> None:
    """Let `pg_dump` write an archive; the password goes through the environment, which no list of processes shows.

    All other parts of the URL, of its head and its query, are passed as the driver would get them.
    """
    program = shutil.which(PG_DUMP)
    if program is None:
        raise ValueError(f"expected the program {PG_DUMP} to back PostgreSQL up: install a PostgreSQL client")
    from psycopg.conninfo import make_conninfo  # which who keeps the registry on SQLite does not need

    options = _connection_options(url)
    environment = dict(os.environ)
    if (password := options.pop("password", None)) is not None:
        environment["PGPASSWORD"] = password
    if "sslpassword" in options:
        raise ValueError(f"expected a client key without a passphrase (sslpassword) for {PG_DUMP}: others would see it")
    command = [program, "--format=custom", f"--file={out}", f"--dbname={make_conninfo(**options)}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"{PG_DUMP} failed: {' '.join(done.stderr.split())}")
