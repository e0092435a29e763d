"""Spans of requests for OpenTelemetry, where its standard variables ask for them; off otherwise.

Follows the environment variables of the OpenTelemetry specification: `OTEL_TRACES_EXPORTER=otlp`, or an endpoint alone,
switches traces on; `OTEL_SDK_DISABLED`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`,
`OTEL_EXPORTER_OTLP_*` and `OTEL_BSP_*` are read by its own SDK. A span continues the trace that the header
`traceparent` names (W3C Trace Context).
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp

from service.http.roles import route
from service.settings import SettingsError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
PROBES = "livez,readyz,healthz,metrics"
SERVICE = "saucier"


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Say if traces are asked for.

    Raises:
        SettingsError: for an exporter or protocol that there is not.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    has_endpoint = any(environment.get(name) for name in ENDPOINTS)
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp" if has_endpoint else "none")
    if exporter not in ("otlp", "none"):
        raise SettingsError(f"OTEL_TRACES_EXPORTER: expected otlp or none, got {exporter!r}")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), PROTOCOL)
    if exporter == "otlp" and protocol != PROTOCOL:
        raise SettingsError(f"OTEL_EXPORTER_OTLP_PROTOCOL: expected {PROTOCOL}, got {protocol!r}")
    return exporter == "otlp"


def check_tracing() -> None:
    """Check that traces can be exported if they are wanted.

    Raises:
        SettingsError: the packages are missing; or see `is_wanted`.
    """
    if is_wanted(os.environ) and importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        expected = "expected the packages that export traces: pip install 'saucier[otel]'"
        raise SettingsError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {expected}")


def traced(app: ASGIApp) -> ASGIApp:
    """Return the app with a span for each request, named after its route; as it is where no traces are wanted.

    Each process that serves calls it once; `check_tracing` has been called before.
    """
    if not is_wanted(os.environ):
        return app
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", SERVICE)
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    traced_app: ASGIApp = OpenTelemetryMiddleware(
        app,
        excluded_urls=PROBES,
        default_span_details=_details,
        tracer_provider=provider,
        exclude_spans=["receive", "send"],  # one for each part of a body
    )
    return traced_app


def _details(scope: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    template = route(scope["path"])
    if template is None:
        return str(scope["method"]), {}
    return f"{scope['method']} {template}", {"http.route": template}
