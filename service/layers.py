"""What stands between a socket and our app: BentoML's own layers are passed by where they do nothing."""

from typing import Any

from _bentoml_impl.server.app import ContextMiddleware  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

BENTOML_ROUTES = frozenset({"/livez", "/healthz", "/readyz"})  # the only ones of its own that stay


def is_idle(layer: Middleware) -> bool:
    """Say if a layer of BentoML's only takes time: the context of routes of its own, tracing that excludes all URLs."""
    excluded: Any = layer.kwargs.get("excluded_urls")
    return layer.cls is ContextMiddleware or (excluded is not None and excluded.url_disabled("/predict"))


class Direct:
    """ASGI app that sends BentoML's app the probes and the lifespan, and ours everything else.

    BentoML's app is a whole Starlette around ours. Without layers of its own it adds nothing but its routing and its
    handling of errors, which ours has as well, and 3 % of the time of a small request.

    Args:
        bento: BentoML's app, ours mounted in it.
        ours: our app.
    """

    def __init__(self, bento: Starlette, ours: ASGIApp) -> None:
        self._bento = bento
        self._ours = bento if bento.user_middleware else ours  # an operator's configuration asks for a layer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        is_bentos = scope["type"] != "http" or scope["path"] in BENTOML_ROUTES
        await (self._bento if is_bentos else self._ours)(scope, receive, send)
