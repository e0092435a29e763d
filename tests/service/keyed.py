"""A real server that asks for API keys."""

import time
from pathlib import Path
from typing import Any

from service.store.keys import ROLES, add_key
from tests.service.conftest import Server


class KeyedServer(Server):
    """A server that asks for keys; its client has the highest.

    Args:
        home: its home; the file of keys lies beside it.
        bases: its base sets.
        settings: more of them.
    """

    def __init__(self, home: Path, bases: Path, **settings: str) -> None:
        self.file = home.parent / "keys.json"
        self.secrets: dict[str, str] = {role: add_key(self.file, f"the-{role}", role) for role in ROLES}
        super().__init__(home, bases, BASE_SET="tiny", API_KEYS_FILE=str(self.file), **settings)
        self.client.headers["authorization"] = f"Bearer {self.secrets['admin']}"

    def live_workers(self, deployment: str = "default") -> list[dict[str, Any]]:
        answer = self.client.get(f"/deployments/{deployment}")
        time.sleep(0.1)  # within the rate that a test may set
        workers = answer.json().get("workers", [])
        return [worker for worker in workers if worker["version"] is not None]

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers of a request by a role, or with this key."""
        return {"authorization": f"Bearer {self.secrets.get(key, key)}"}
