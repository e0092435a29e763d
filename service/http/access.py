"""API keys at the gate: who asks, whether that is enough, and how often."""

import ipaddress
import math
import time
from collections.abc import Callable
from functools import partial

from starlette.types import Scope

from service.http.problems import Problem
from service.http.roles import needed, suffices
from service.settings import MetricsKey
from service.store.keys import Key, KeyRing

_CHALLENGE = 'Bearer realm="saucier"'


class Access:
    """The keys of one process, and the requests that they allow.

    Args:
        keys: the keys.
        requests_per_second: most requests per second of one key; None for any number.
        metrics_key: whether `/metrics` needs a key; "auto": unless it is asked for over loopback.
    """

    def __init__(self, keys: KeyRing, *, requests_per_second: float | None, metrics_key: MetricsKey) -> None:
        self._keys = keys
        self._limit = None if requests_per_second is None else RateLimit(requests_per_second)
        self._metrics_key = metrics_key

    def refuse(self, scope: Scope) -> Problem | None:
        """Return why a request is refused, or note in its state who asks, as what, and if that still counts."""
        wanted = needed(scope["method"], scope["path"])
        if wanted == "open" or (scope["path"] == "/metrics" and self._are_metrics_open(scope)):
            return None
        key = self._find(scope)
        if isinstance(key, Problem):
            return key
        if self._limit is not None and (wait := self._limit.wait(key.name)) > 0:
            return _too_often(wait)
        if not suffices(key.role, wanted):
            return forbidden(key.role, wanted)
        counts = partial(self._keys.has, key)
        scope.setdefault("state", {}).update(caller=key.name, role=key.role, key_counts=counts)
        return None

    def _find(self, scope: Scope) -> Key | Problem:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if not values:
            return _unknown("expected an API key: Authorization: Bearer ...", _CHALLENGE)
        kind, _, secret = values[0].decode("latin-1").partition(" ")
        key = self._keys.find(secret.strip(" ")) if kind.lower() == "bearer" and len(values) == 1 else None
        if key is None:
            return _unknown("this API key is not known here", f'{_CHALLENGE}, error="invalid_token"')
        return key

    def _are_metrics_open(self, scope: Scope) -> bool:
        if self._metrics_key == "auto":
            server = scope.get("server")
            return server is not None and is_loopback(server[0])
        return self._metrics_key == "never"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def forbidden(role: str, wanted: str, what: str = "this") -> Problem:
    """Return the 403 of a key whose role is too low."""
    detail = f"{what} needs a key of the role {wanted}, this one has the role {role}"
    challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="{wanted}"'
    return Problem(403, detail, headers={"WWW-Authenticate": challenge}, reason="role")


def _unknown(detail: str, challenge: str) -> Problem:
    return Problem(401, detail, headers={"WWW-Authenticate": challenge}, reason="key")


def _too_often(wait: float) -> Problem:
    headers = {"Retry-After": str(math.ceil(wait))}
    return Problem(429, "too many requests with this API key", headers=headers, reason="rate")


class RateLimit:
    """A token bucket for each name: unused tokens are lost after a second, but one request is always possible.

    Args:
        per_second: requests per second, on average.
        clock: seconds that never go back.
    """

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._size = per_second, max(1.0, per_second)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when there were so many

    def wait(self, name: str) -> float:
        """Take a token and return 0, or return how many seconds there will be none."""
        now = self._clock()
        tokens, since = self._buckets.get(name, (self._size, now))
        tokens = min(self._size, tokens + (now - since) * self._rate)
        self._buckets[name] = (tokens - 1 if tokens >= 1 else tokens, now)
        return 0.0 if tokens >= 1 else (1 - tokens) / self._rate
