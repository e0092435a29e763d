"""Counts every request, also of BentoML's routes: by route and class of status, its time, and those under way."""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.roles import route
from service.metrics import Metrics

OTHER = "other"  # paths that are not ours
CLASSIFYING = ("/predict", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")


class Measured:
    """ASGI middleware around everything else.

    Args:
        app: what answers.
        metrics: returns the metrics of the process, None if there are none (yet).
    """

    def __init__(self, app: ASGIApp, metrics: Callable[[], Metrics | None]) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count it."""
        metrics = self._metrics() if scope["type"] == "http" else None
        if metrics is None:
            return await self._app(scope, receive, send)
        status = "none"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = f"{message['status'] // 100}xx"
            await send(message)

        counted = metrics.of_route(route(scope["path"]) or OTHER)
        start = counted.begin()
        try:
            await self._app(scope, receive, noting)
        finally:
            counted.end(start, status)
