"""Who may ask for what once there are API keys: the table of roles, the gate, the limit on requests."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.http.access import Access, RateLimit, is_loopback
from service.http.api import create_app
from service.http.context import caller
from service.http.openapi import openapi_document
from service.http.roles import NEEDS, needed, suffices
from service.http.security import Gate
from service.store.keys import ROLES, KeyRing, Role, add_key

BENTOML_ROUTES = {"/livez", "/healthz", "/readyz"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def served() -> set[tuple[str, str]]:
    ours = {
        (route.path, method)
        for route in create_app().routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    return ours | {(path, "GET") for path in BENTOML_ROUTES}


def test_every_route_is_in_the_table_of_roles() -> None:
    assert served() <= {(path, method) for path, needs in NEEDS.items() for method in needs}


def test_requests_find_the_row_of_their_route() -> None:
    for path, needs in NEEDS.items():
        for method, role in needs.items():
            assert needed(method, re.sub(r"{\w+}", "x-1", path)) == role
    assert needed("HEAD", "/deployments/x") == "predict"
    assert needed("POST", "/deployments/x") == "predict"  # a 405
    for path in ("/nowhere", "/deployments/x/y", "/deployments/x/soup/", "/deployments/", "/predict/"):
        assert needed("GET", path) == "admin"


def test_roles_only_add_rights() -> None:
    for low in range(len(ROLES)):
        for high in range(len(ROLES)):
            assert suffices(ROLES[high], ROLES[low]) == (high >= low)


def test_document_says_which_role_each_operation_needs() -> None:
    for path, operations in openapi_document()["paths"].items():
        for method, operation in operations.items():
            role = needed(method.upper(), path)
            if role == "open":
                assert "security" not in operation
            else:
                assert operation["security"] == [{}, {"key": [role]}]
                assert {"401", "403", "429"} <= operation["responses"].keys()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_told_from_the_rest(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_bucket_lets_its_rate_through() -> None:
    now = 100.0
    limit = RateLimit(4, clock=lambda: now)
    assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 0]
    assert limit.wait("a") == pytest.approx(0.25)
    assert limit.wait("b") == 0
    let_in = 0
    for _ in range(1000):
        now += 0.01
        let_in += limit.wait("a") == 0
    assert let_in == pytest.approx(40, abs=1)
    now += 3600
    assert sum(limit.wait("a") == 0 for _ in range(10)) == 4


def test_slow_rates_let_one_request_through() -> None:
    limit = RateLimit(0.1, clock=lambda: 0.0)
    assert limit.wait("a") == 0
    assert limit.wait("a") == pytest.approx(10)


class Guarded:
    """The gate before routes that answer who asked."""

    def __init__(self, path: Path, address: str = "203.0.113.5", **options: Any) -> None:
        self.secrets: dict[str, str] = {role: add_key(path, f"the-{role}", role) for role in ROLES}
        options = {"requests_per_second": None, "metrics_key": "auto", **options}
        routes = [Route(path, who, methods=[*needs]) for path, needs in NEEDS.items()]
        gate = Gate(
            Starlette(routes=routes),
            allowed_hosts=frozenset(),
            on_refusal=lambda problem: self.reasons.append(problem.reason),
            access=Access(KeyRing(path), **options),
        )
        self.reasons: list[str] = []

        async def asked(scope: Any, receive: Any, send: Any) -> None:
            await gate({**scope, "server": (address, 3000)}, receive, send)

        self._transport = httpx.ASGITransport(asked)

    def call(self, method: str, path: str, key: str | None = None, **headers: str) -> httpx.Response:
        if key is not None:
            headers["authorization"] = f"Bearer {self.secrets.get(key, key)}"

        async def run() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://127.0.0.1:3000") as client:
                return await client.request(method, path, headers=headers)

        return asyncio.run(run())


async def who(request: Request) -> Response:
    return JSONResponse({"who": caller(request)})


@pytest.fixture
def guarded(path: Path) -> Guarded:
    return Guarded(path)


def test_each_role_may_what_the_table_says_and_no_more(guarded: Guarded) -> None:
    for path, needs in NEEDS.items():
        for method, wanted in needs.items():
            for role in (None, *ROLES):
                answer = guarded.call(method, re.sub(r"{\w+}", "x", path), role)
                if wanted == "open":
                    assert answer.json() == {"who": None}
                elif role is None:
                    assert answer.status_code == 401
                elif suffices(role, wanted):
                    assert answer.json() == {"who": f"the-{role}"}
                else:
                    assert answer.status_code == 403


@pytest.mark.parametrize(("route", "form"), [("/deployments", "detail"), ("/v2/models/default", "error")])
def test_refusals_have_the_form_of_their_path(guarded: Guarded, route: str, form: str) -> None:
    stranger, unknown = guarded.call("GET", route), guarded.call("GET", route, "saucier_wrong")
    for answer, status in ((stranger, 401), (unknown, 401)):
        assert answer.status_code == status
        assert isinstance(answer.json()[form], str)
        assert answer.headers["www-authenticate"].startswith("Bearer ")
        assert "wrong" not in answer.text
    assert 'error="invalid_token"' in unknown.headers["www-authenticate"]
    assert guarded.reasons == ["key", "key"]


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic {}", "{}", "Bearer {} {}", "Token {}"])
def test_headers_that_hold_no_key_are_refused(guarded: Guarded, value: str) -> None:
    header = value.format(guarded.secrets["admin"], "x")
    assert guarded.call("GET", "/deployments", authorization=header).status_code == 401


def test_scheme_is_read_in_any_case(guarded: Guarded) -> None:
    assert guarded.call("GET", "/bases", authorization=f"bearer  {guarded.secrets['predict']}").status_code == 200


def test_key_in_the_query_is_none(guarded: Guarded) -> None:
    assert guarded.call("GET", f"/bases?key={guarded.secrets['admin']}").status_code == 401


def test_keys_do_not_let_other_sites_in(guarded: Guarded) -> None:
    assert guarded.call("PUT", "/deployments/x", "admin", origin="https://evil.example").status_code == 403
    assert guarded.call("GET", "/bases", "admin", host="evil.example").status_code == 403


@pytest.mark.parametrize(
    ("setting", "address", "status"),
    [
        ("auto", "203.0.113.5", 401),
        ("auto", "127.0.0.1", 200),
        ("always", "127.0.0.1", 401),
        ("never", "203.0.113.5", 200),
    ],
)
def test_metrics_are_open_where_the_setting_says(path: Path, setting: str, address: str, status: int) -> None:
    guarded = Guarded(path, address, metrics_key=setting)
    assert guarded.call("GET", "/metrics").status_code == status
    assert guarded.call("GET", "/metrics", "predict").status_code == 200
    assert guarded.call("GET", "/deployments").status_code == 401


def test_too_many_requests_wait(path: Path) -> None:
    guarded = Guarded(path, requests_per_second=0.5)
    for method, address, form in (("GET", "/bases", "detail"), ("POST", "/v2/models/x/infer", "error")):
        role: Role = "predict" if form == "detail" else "adapt"
        assert guarded.call(method, address, role).status_code == 200
        answer = guarded.call(method, address, role)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 2
        assert form in answer.json()
    assert guarded.call("GET", "/livez", "predict").status_code == 200
    assert guarded.reasons == ["rate", "rate"]
