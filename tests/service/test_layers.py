"""Which of BentoML's layers stay around our app: those that an operator's configuration asks for."""

import pytest


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # BentoML's own, on its import
def test_only_layers_that_do_nothing_are_left_out() -> None:
    from _bentoml_impl.server.app import ContextMiddleware
    from bentoml._internal.server.http.access import AccessLogMiddleware
    from bentoml._internal.server.http.traffic import MaxConcurrencyMiddleware
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.util.http import ExcludeList, parse_excluded_urls
    from starlette.middleware import Middleware

    from service.app import is_idle

    assert is_idle(Middleware(ContextMiddleware, context=None))
    assert is_idle(Middleware(OpenTelemetryMiddleware, excluded_urls=parse_excluded_urls(".*")))
    assert not is_idle(Middleware(OpenTelemetryMiddleware, excluded_urls=parse_excluded_urls("livez,readyz")))
    assert not is_idle(Middleware(OpenTelemetryMiddleware, excluded_urls=ExcludeList([])))
    assert not is_idle(Middleware(AccessLogMiddleware))
    assert not is_idle(Middleware(MaxConcurrencyMiddleware, max_concurrency=4))
