"""A real Prometheus on a free loopback port, from Debian's package: `make prometheus` installs it."""

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
START_SECONDS = 60
MISSING = "Prometheus is not installed; `make prometheus` does that"


def is_installed() -> bool:
    """Say if Prometheus and its tool are there."""
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


class Prometheus:
    """One server with the example's configuration and rules, which looks at one service every second."""

    def __init__(self, folder: Path, target: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(FOLDER / name) for name in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=20)

    def get(self, path: str, **query: str) -> Any:
        """Return the `data` of an answer of its API."""
        answer = self._client.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def values(self, expression: str) -> list[float]:
        """Return what an expression is worth now."""
        return [float(one["value"][1]) for one in self.get("/query", query=expression)["result"]]

    def wait_for(self, expression: str, expected: list[float]) -> None:
        """Wait until an expression has these values."""
        found: object = None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()
            try:
                if (found := self.values(expression)) == expected:
                    return
            except httpx.TransportError as error:
                found = error
            time.sleep(0.2)
        raise AssertionError(f"{expression} is {found}, not {expected}: {self._log.read_text()[-2000:]}")

    def wait_for_any(self, expression: str, what: str) -> None:
        """Wait until an expression is worth something: rates need two looks at a series."""
        deadline = time.monotonic() + START_SECONDS
        while not self.values(expression):
            assert time.monotonic() < deadline, f"{what}: {expression} has no values"
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop it."""
        self._client.close()
        self._process.terminate()
        self._process.wait(30)
