"""The document says what the routes do, and the page that shows it asks nobody else for anything."""

import re
from typing import Any

from starlette.routing import Route

from service.http.api import create_app
from service.http.docs_page import docs_page
from service.http.openapi import openapi_document

PROBES = {"/livez", "/readyz"}  # BentoML's
UNLISTED = {"/", "/docs", "/openapi.json", "/ui", "/ui/{file}"}


def test_document_lists_every_route_and_no_other() -> None:
    listed = {
        (path, method.upper()) for path, operations in openapi_document()["paths"].items() for method in operations
    }
    served = {
        (route.path, method)
        for route in create_app().routes
        if isinstance(route, Route) and route.path not in UNLISTED
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert listed == served | {(path, "GET") for path in PROBES}


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        found = [value["$ref"]] if "$ref" in value else []
        return found + [name for item in value.values() for name in references(item)]
    return [name for item in value for name in references(item)] if isinstance(value, list) else []


def test_every_reference_resolves() -> None:
    document = openapi_document()
    for reference in references(document):
        part: Any = document
        for key in reference.removeprefix("#/").split("/"):
            part = part[key]


def test_path_parameters_are_declared() -> None:
    for path, operations in openapi_document()["paths"].items():
        for operation in operations.values():
            declared = {item["name"] for item in operation.get("parameters", []) if item["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))


def test_page_loads_nothing_from_elsewhere() -> None:
    page = docs_page(openapi_document())
    assert "/predict" in page
    assert not re.search(r"<script|src=|@import|url\(|https?://", page)
