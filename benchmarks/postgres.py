"""A real PostgreSQL on a free loopback port, from Debian's packages: `make postgres` installs them."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

ACCOUNT = "postgres"  # the server refuses to run as root: then it runs as the account that Debian's package makes
START_SECONDS = 30


def binaries() -> Path | None:
    """The folder of the newest server that is installed, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class Postgres:
    """One server with an empty data folder of its own."""

    def __init__(self) -> None:
        folder = binaries()
        assert folder is not None
        self._bin = folder
        self._account = ACCOUNT if os.getuid() == 0 else None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder = Path(tempfile.mkdtemp(prefix="saucier-postgres-"))  # pytest's folders are closed to the account
        if self._account is not None:
            shutil.chown(self._folder, self._account)
        self._process: subprocess.Popen[bytes] | None = None
        self._made: set[str] = set()
        subprocess.run(
            [
                self._bin / "initdb",
                "--pgdata",
                self._folder / "data",
                "--username=saucier",
                "--auth=trust",
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            cwd=self._folder,
            **self._as_account(),
        )

    def _as_account(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account, "group": self._account, "extra_groups": []}

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [str(self._bin / "postgres"), "-D", str(self._folder / "data"), "-h", "127.0.0.1"]
        command += ["-p", str(self.port), "-k", "", "-c", "fsync=off", "-c", "max_connections=100"]
        with (self._folder / "log").open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._folder, **self._as_account()
            )
        self._process = process
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                assert process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server: every connection is broken at once, as by a restart."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(20)

    def remove(self) -> None:
        """Stop the server and delete its data."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)  # nothing has to be written any more
        self._process.wait(20)
        shutil.rmtree(self._folder)

    def url(self, database: str) -> str:
        """The URL of a database."""
        return f"postgresql://saucier@127.0.0.1:{self.port}/{database}"

    def empty(self, name: str) -> str:
        """Make a database, or take everything out of it if it is there; return its URL."""
        if name not in self._made:
            with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            self._made.add(name)
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return self.url(name)
