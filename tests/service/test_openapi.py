"""The document says what the routes do, and the page that shows it asks nobody else for anything."""

import re
from typing import Any

import jsonschema_rs
import pytest
from starlette.routing import Route

from service.http.api import create_app
from service.http.docs_page import docs_page
from service.http.openapi import openapi_document

PROBES = {"/livez", "/readyz"}  # BentoML's
UNLISTED = {"/", "/docs", "/openapi.json", "/schema.json", "/ui", "/ui/{file}"}


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


def test_page_links_work_behind_a_path_prefix() -> None:
    """A proxy may serve it all below a path, so no link begins at the root."""
    links = re.findall(r'href="([^"]*)"', docs_page(openapi_document()))
    assert links == ["openapi.json"]


def fits(schema: Any, value: Any) -> bool:
    """Say if the document allows a value."""
    whole = {**schema, "components": openapi_document()["components"]}
    return bool(jsonschema_rs.Draft202012Validator(whole).is_valid(value))


def form_schema(path: str) -> Any:
    return openapi_document()["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]


@pytest.mark.parametrize(
    ("parts", "is_allowed"),
    [
        ({"images": ["x"], "labels": "[0]"}, True),
        ({"images": ["x"], "labels": "[0]", "unlabelled": ["x"]}, True),
        ({"archive": "x"}, True),
        ({"archive": "x", "unlabelled": ["x"]}, True),
        ({"unlabelled": ["x"]}, True),
        ({"images": ["x"]}, False),
        ({"unlabelled": []}, False),
        ({"archive": "x", "labels": "[0]"}, False),
        ({"archive": "x", "pictures": "x"}, False),
    ],
)
def test_parts_of_an_adaptation_are_those_that_it_takes(parts: Any, is_allowed: bool) -> None:
    assert fits(form_schema("/adapt"), parts) == is_allowed


def test_parts_of_a_prediction_are_images() -> None:
    for path in ("/predict", "/deployments/{name}/soups/{version}/predict"):
        assert fits(form_schema(path), {"images": ["x"]})
        assert not fits(form_schema(path), {"images": ["x"], "labels": "[0]"})


@pytest.mark.parametrize(
    ("body", "is_allowed"),
    [
        ({"version": 1}, True),
        ({"version": 1, "coefficients": None, "expected_version": 2}, True),
        ({"coefficients": {"linf": 1.0}}, True),
        ({}, False),
        ({"version": None}, False),
        ({"expected_version": 1}, False),
        ({"version": 1, "coefficients": {"linf": 1.0}}, False),
    ],
)
def test_soup_is_set_by_its_version_or_by_coefficients(body: Any, is_allowed: bool) -> None:
    assert fits({"$ref": "#/components/schemas/NewSoup"}, body) == is_allowed


@pytest.mark.parametrize(
    ("shape", "is_allowed"),
    [([1, 3, 16, 16], True), ([0, 3, 16, 16], False), ([-1, 3, 16, 16], False), ([1, 1, 16, 16], False), ([3], False)],
)
def test_shape_of_a_tensor_is_that_of_images(shape: list[int], is_allowed: bool) -> None:
    request = {"inputs": [{"name": "images", "datatype": "FP32", "shape": shape, "data": []}]}
    assert fits({"$ref": "#/components/schemas/InferenceRequest"}, request) == is_allowed
