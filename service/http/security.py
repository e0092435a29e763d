"""Who may ask: the outermost layer refuses foreign hosts and cross-site requests, and keeps every error one shape.

A service on loopback has no keys, but every web page the user visits can send it requests, and a page whose name is
re-bound to 127.0.0.1 can even read the answers. So requests must be addressed to a name of ours, and requests that
change something must not come from another site. `/predict` changes nothing and its answers carry no CORS headers, so
other sites may send to it but not read from it.
"""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import Problem, error_media_type, render

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# Orchestrators and scrapers call by address.
PROBES = frozenset({"/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """ASGI middleware around everything that BentoML serves."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: frozenset[str], on_refusal: Callable[[Problem], None]) -> None:
        self._app = app
        self._on_refusal = on_refusal
        self._allowed_hosts = allowed_hosts | LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check an HTTP request and pass it on."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        if problem := self._refuse(scope):
            self._on_refusal(problem)
            return await render(problem, scope["path"])(scope, receive, send)
        return await self._app(scope, receive, _OneShape(scope, receive, send))

    def _refuse(self, scope: Scope) -> Problem | None:
        path: str = scope["path"]
        if path in PROBES:
            return None
        headers = {key: value.decode("latin-1") for key, value in scope["headers"] if key in _WATCHED}
        host = headers.get(b"host", "")
        if "*" not in self._allowed_hosts and host_name(host) not in self._allowed_hosts:
            detail = "this service is not addressed by that Host; SAUCIER_ALLOWED_HOSTS names more"
            return Problem(403, detail, reason="host")
        if scope["method"] in SAFE_METHODS or path == "/predict":
            return None
        origin = headers.get(b"origin")
        if headers.get(b"sec-fetch-site", "none") not in ("none", "same-origin") or (
            origin is not None and origin.partition("://")[2].lower() != host.lower()
        ):
            return Problem(403, "requests from other sites may not change anything here", reason="cross_site")
        return None


_WATCHED = frozenset({b"host", b"origin", b"sec-fetch-site"})


def host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets, in lower case."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return name.removesuffix(".")


class _OneShape:
    """Turns error responses of BentoML and Starlette (404, 429, 503, 504, ...) into the form that the path has."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._is_replaced = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            headers = dict(message["headers"])
            if headers.get(b"content-type", b"") != error_media_type(self._scope["path"]).encode():
                self._is_replaced = True
                kept = {"Allow": headers[b"allow"].decode()} if b"allow" in headers else {}
                problem = Problem(
                    message["status"], _DETAILS.get(message["status"], "the request failed"), headers=kept
                )
                await render(problem, self._scope["path"])(self._scope, self._receive, self._send)
        if not self._is_replaced:
            await self._send(message)


_DETAILS = {
    404: "there is no such page",
    405: "the method is not allowed here",
    429: "too many requests at once",
    503: "the service is not ready",
    504: "the request took too long",
}
