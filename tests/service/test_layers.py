"""Which of BentoML's layers stay around our app: those that an operator's configuration asks for."""

import asyncio
from typing import Any

import pytest


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's own, on its import
def test_only_layers_that_do_nothing_are_left_out() -> None:
    from _bentoml_impl.server.app import ContextMiddleware
    from bentoml._internal.server.http.access import AccessLogMiddleware
    from bentoml._internal.server.http.traffic import MaxConcurrencyMiddleware
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.util.http import ExcludeList, parse_excluded_urls
    from starlette.middleware import Middleware

    from service.layers import is_idle

    assert is_idle(Middleware(ContextMiddleware, context=None))
    assert is_idle(Middleware(OpenTelemetryMiddleware, excluded_urls=parse_excluded_urls(".*")))
    assert not is_idle(Middleware(OpenTelemetryMiddleware, excluded_urls=parse_excluded_urls("livez,readyz")))
    assert not is_idle(Middleware(OpenTelemetryMiddleware, excluded_urls=ExcludeList([])))
    assert not is_idle(Middleware(AccessLogMiddleware))
    assert not is_idle(Middleware(MaxConcurrencyMiddleware, max_concurrency=4))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("has_layer", [True, False])
def test_requests_pass_bentos_app_by_unless_it_has_layers(has_layer: bool) -> None:
    from bentoml._internal.server.http.access import AccessLogMiddleware
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.types import Receive, Scope, Send

    from service.layers import Direct

    passed: list[str] = []

    class Bentos(Starlette):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            passed.append("bento")

    async def ours(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append("ours")

    app = Direct(Bentos(middleware=[Middleware(AccessLogMiddleware)] if has_layer else []), ours)
    for scope in ({"type": "lifespan"}, {"type": "http", "path": "/readyz"}, {"type": "http", "path": "/predict"}):
        asyncio.run(app(scope, nothing, nothing))
    assert passed == ["bento", "bento", "bento" if has_layer else "ours"]


async def nothing(*_: object) -> Any:
    """Receive or send nothing."""
