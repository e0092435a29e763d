"""Who may ask: the outermost layer refuses foreign hosts, cross-site requests, and unknown keys where keys are needed.

It also keeps every error one shape, and tells browsers what not to do with an answer.

A service on loopback has no keys, but every web page the user visits can send it requests, and a page whose name is
re-bound to 127.0.0.1 can even read the answers. So requests must be addressed to a name of ours, and requests that
change something must not come from another site. Those that classify images count for the watch and the reservoir, so
they must not either, unless a setting lets them. No answer carries CORS headers: other sites never read it.
"""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.access import Access
from service.http.problems import Problem, error_media_type, render
from service.http.request_ids import HEADER, request_id
from service.logs import REQUEST_ID

Header = tuple[bytes, bytes]
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# Orchestrators and scrapers call by address.
PROBES = frozenset({"/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """ASGI middleware around everything that BentoML serves.

    Args:
        app: what it guards.
        allowed_hosts: names, besides loopback, that requests may be addressed to.
        on_refusal: told of every request that goes no further.
        access: the API keys; None if there are none.
        allow_cross_site_predict: pages of other sites may send images to be classified.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: frozenset[str],
        on_refusal: Callable[[Problem], None],
        access: Access | None = None,
        allow_cross_site_predict: bool = False,
    ) -> None:
        self._app = app
        self._allow_cross_site_predict = allow_cross_site_predict
        self._access = access
        self._on_refusal = on_refusal
        self._allowed_hosts = allowed_hosts | LOOPBACK

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check an HTTP request and pass it on."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        name = request_id(scope)
        REQUEST_ID.set(name)
        send = _OneShape(scope, receive, send, name.encode())
        if problem := self._refuse(scope):
            self._on_refusal(problem)
            return await render(problem, scope["path"])(scope, receive, send)
        return await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> Problem | None:
        problem = self._refuse_origin(scope)
        return self._access.refuse(scope) if problem is None and self._access is not None else problem

    def _refuse_origin(self, scope: Scope) -> Problem | None:
        path: str = scope["path"]
        if path in PROBES:
            return None
        headers = {key: value.decode("latin-1") for key, value in scope["headers"] if key in _WATCHED}
        host = headers.get(b"host", "")
        if "*" not in self._allowed_hosts and host_name(host) not in self._allowed_hosts:
            found = f"the header Host says {host[:100]!r}, a name that this service does not answer to"
            advice = "add the name to SAUCIER_ALLOWED_HOSTS, or let the proxy send one that is there"
            return Problem(403, f"{found}: {advice}", reason="host")
        if scope["method"] in SAFE_METHODS or (self._allow_cross_site_predict and _classifies(path)):
            return None
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site", "none")
        if site not in ("none", "same-origin"):
            return _other_site(path, f"the header Sec-Fetch-Site says {site[:100]!r}")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            found = f"the header Origin says {origin[:100]!r}, and Host {host[:100]!r}"
            return _other_site(path, f"{found}; a proxy must pass on the Host that the browser sent")
        return None


def _classifies(path: str) -> bool:
    """Say if a path takes images and answers with their classes."""
    return path == "/predict" or (path.startswith("/v2/") and path.endswith("/infer"))


def _other_site(path: str, found: str) -> Problem:
    advice = "; SAUCIER_ALLOW_CROSS_SITE_PREDICT lets them classify images" if _classifies(path) else ""
    return Problem(403, f"pages of other sites may not send requests here: {found}{advice}", reason="cross_site")


_WATCHED = frozenset({b"host", b"origin", b"sec-fetch-site"})
# Defaults for every answer: its content is not a page, belongs to this site alone, and must not be stored.
_HARDENING = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)


def _hardened(headers: list[Header]) -> list[Header]:
    """Return headers with those that make browsers careful."""
    present = {name for name, _ in headers}
    return headers + [header for header in _HARDENING if header[0] not in present]


def host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets, in lower case."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return name.removesuffix(".")


class _OneShape:
    """Turns error responses of BentoML and Starlette (404, 429, 503, 504, ...) into the form that the path has.

    Adds the request's id to every answer, and what makes browsers careful.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, name: bytes) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._name = name
        self._is_replaced = False

    async def __call__(self, message: Message) -> None:
        if self._is_replaced:
            return
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and (problem := self._replacement(message)) is not None:
                await render(problem, self._scope["path"])(self._scope, self._receive, self)
                self._is_replaced = True
                return
            message["headers"] = _hardened([*message["headers"], (HEADER, self._name)])
        await self._send(message)

    def _replacement(self, message: Message) -> Problem | None:
        """Return what an error response says in our form; None if it is in that form."""
        headers = dict(message["headers"])
        if headers.get(b"content-type", b"") == error_media_type(self._scope["path"]).encode():
            return None
        kept = {"Allow": headers[b"allow"].decode()} if b"allow" in headers else {}
        return Problem(message["status"], _DETAILS.get(message["status"], "the request failed"), headers=kept)


_DETAILS = {
    404: "there is no such page",
    405: "the method is not allowed here",
    429: "too many requests at once",
    503: "the service is not ready",
    504: "the request took too long",
}
