"""Spans of requests: off by default, exported over OTLP where the standard variables ask for them."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from service import tracing
from service.settings import SettingsError
from service.tracing import check_tracing, is_wanted, traced
from tests.service.conftest import Labelled, Server

ENDPOINT = "http://127.0.0.1:4318"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ENDPOINT}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),  # nothing is exported
    ],
)
def test_standard_variables_switch_traces_on(environment: dict[str, str], expected: bool) -> None:
    assert is_wanted(environment) is expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: expected otlp or none, got 'zipkin'"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, got 'grpc'",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        is_wanted(environment)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracing()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    check_tracing()
    monkeypatch.setattr(tracing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'saucier\[otel\]'"):
        check_tracing()


def test_nothing_is_wrapped_by_default() -> None:
    async def app(*_: object) -> None: ...

    assert traced(app) is app


@pytest.fixture
def collected() -> Iterator[tuple[str, list[ResourceSpans]]]:
    """The address of a collector, and what it was sent."""
    found: list[ResourceSpans] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                found.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", found
        server.shutdown()
        thread.join()


def test_spans_continue_the_trace_of_the_client(
    tmp_path: Path,
    prebuilt_bases: Path,
    labelled: Labelled,
    collected: tuple[str, list[ResourceSpans]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint, found = collected
    for name, value in {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_RESOURCE_ATTRIBUTES": "site=harbour",
    }.items():
        monkeypatch.setenv(name, value)
    server = Server(tmp_path / "home", prebuilt_bases, BASE_SET="tiny").start()
    try:
        files = [("images", ("one.png", labelled.files[0]))]
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert server.client.post("/predict", files=files, headers=headers).status_code == 200
        assert server.client.get("/jobs/nothing").status_code == 404
        deadline = time.monotonic() + 30
        spans, wanted = {}, {"POST /predict", "GET /jobs/{id}"}
        while not wanted <= spans.keys() and time.monotonic() < deadline:
            time.sleep(0.1)
            spans = {
                span.name: (span, {pair.key: pair.value.string_value for pair in resource.resource.attributes})
                for resource in found
                for scope in resource.scope_spans
                for span in scope.spans
            }
    finally:
        server.stop()
    # The fixture looks at the deployment; there is no probe, and nothing for each part of a body.
    assert spans.keys() == {*wanted, "GET /deployments/{name}"}
    span, resource = spans["POST /predict"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert (resource["service.name"], resource["site"]) == ("saucier", "harbour")
    assert {pair.key: pair.value.string_value for pair in span.attributes}["http.route"] == "/predict"
    assert spans["GET /jobs/{id}"][0].trace_id.hex() != TRACE
