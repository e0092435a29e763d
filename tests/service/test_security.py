"""The gate: foreign hosts, other sites, one shape for every error."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from service.http.problems import Problem
from service.http.security import Gate, host_name

refused: list[Problem] = []


async def answer(request: Request) -> Response:
    status = int(request.query_params.get("status", "200"))
    return JSONResponse({"error": "Too many requests"}, status)


inner = Starlette(
    routes=[
        Route(path, answer, methods=["GET", "POST", "PUT", "DELETE"])
        for path in ("/predict", "/v2/{rest:path}", "/adapt", "/deployments/x", "/livez", "/metrics")
    ]
)
gate = Gate(inner, allowed_hosts=frozenset({"model.example"}), on_refusal=refused.append)


def call(method: str, path: str, gate: Gate = gate, **headers: str) -> httpx.Response:
    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://127.0.0.1:3000") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "name"),
    [("A.example:80", "a.example"), ("[::1]:3000", "::1"), ("localhost", "localhost"), ("x.:1", "x"), ("", "")],
)
def test_host_name_is_read_from_the_header(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize("host", ["127.0.0.1:3000", "localhost", "LOCALHOST:1", "[::1]:9", "model.example:443"])
def test_own_names_are_let_in(host: str) -> None:
    assert call("POST", "/adapt", host=host).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:3000", "model"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/adapt"), ("PUT", "/deployments/x"), ("GET", "/deployments/x")])
def test_foreign_host_is_refused(host: str, method: str, path: str) -> None:
    refused.clear()
    response = call(method, path, host=host)
    assert response.status_code == 403
    assert response.headers["content-type"] == "application/problem+json"
    assert [problem.reason for problem in refused] == ["host"]
    assert f"Host says {host!r}" in refused[0].detail
    assert "SAUCIER_ALLOWED_HOSTS" in refused[0].detail


@pytest.mark.parametrize("path", ["/livez", "/metrics"])
def test_probes_are_answered_whatever_they_call_us(path: str) -> None:
    assert call("GET", path, host="10.1.2.3:3000").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8080"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/adapt"),
        ("PUT", "/deployments/x"),
        ("DELETE", "/deployments/x"),
        ("POST", "/predict"),
        ("POST", "/v2/models/x/infer"),
        ("POST", "/v2/models/x/versions/1/infer"),
        ("POST", "/deployments/x/soups/1/predict"),
    ],
)
def test_other_sites_may_not_change_anything(headers: dict[str, str], method: str, path: str) -> None:
    refused.clear()
    assert call(method, path, **headers).status_code == 403
    [(header, value)] = headers.items()
    assert f"the header {header.title()} says {value!r}" in refused[0].detail


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://127.0.0.1:3000"}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {}],
)
def test_own_pages_and_command_lines_may(headers: dict[str, str]) -> None:
    assert call("PUT", "/deployments/x", **headers).status_code == 200


@pytest.mark.parametrize("path", ["/predict", "/v2/models/x/infer", "/v2/models/x/versions/1/infer"])
def test_other_sites_may_send_images_where_a_setting_lets_them_but_not_read(path: str) -> None:
    evil = {"origin": "https://site.example", "sec-fetch-site": "cross-site"}
    assert "SAUCIER_ALLOW_CROSS_SITE_PREDICT" in call("POST", path, **evil).text
    lenient = Gate(inner, allowed_hosts=frozenset(), on_refusal=refused.append, allow_cross_site_predict=True)
    response = call("POST", path, gate=lenient, **evil)
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers
    assert call("POST", "/adapt", gate=lenient, **evil).status_code == 403


@pytest.mark.parametrize("status", [404, 429, 503, 504])
def test_errors_from_below_become_problem_details(status: int) -> None:
    response = call("GET", f"/predict?status={status}")
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code == status
    assert set(body) == {"type", "title", "status", "detail", "errors"}
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_method_not_allowed_keeps_its_allow_header() -> None:
    response = call("PATCH", "/predict")
    assert response.status_code == 405
    assert "POST" in response.headers["allow"]


def test_websockets_are_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(gate({"type": "websocket", "path": "/"}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_star_lets_any_host_in() -> None:
    async def plain(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def run() -> int:
        anyone = Gate(Starlette(routes=[Route("/", plain)]), allowed_hosts=frozenset({"*"}), on_refusal=refused.append)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(anyone), base_url="http://any.example") as client:
            return (await client.get("/")).status_code

    assert asyncio.run(run()) == 200
