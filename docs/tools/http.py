"""The reference page of the HTTP routes, from the OpenAPI document and the table of roles."""

from collections.abc import Iterator, Mapping
from typing import Any

from docs.tools.tables import filled, paragraphs, table
from service.http.openapi import openapi_document
from service.http.roles import NEEDS
from service.store.keys import ROLES

Json = Mapping[str, Any]


def http_page() -> str:
    """Return the page of all routes and objects."""
    document = openapi_document()
    return filled(
        "http.md",
        roles=_roles(),
        routes=paragraphs(_routes(document["paths"])),
        objects=paragraphs(_objects(document["components"]["schemas"])),
    )


def _roles() -> str:
    rows = []
    for role in ("open", *ROLES):
        routes = [f"`{method} {path}`" for path, needs in NEEDS.items() for method in needs if needs[method] == role]
        rows.append(("no key" if role == "open" else f"`{role}`", ", ".join(routes)))
    return table(("role", "routes"), rows)


def _routes(paths: Json) -> Iterator[str]:
    for path, operations in paths.items():
        for method, operation in operations.items():
            yield f"### `{method.upper()} {path}`"
            yield f"{operation['summary']}."
            parameters = operation.get("parameters", [])
            if parameters:
                yield table(("parameter", "in", "values", "meaning"), map(_parameter, parameters))
            if "requestBody" in operation:
                yield f"Body: {_contents(operation['requestBody']['content'])}."
            answers = operation["responses"].items()
            rows = [
                (status, _contents(found.get("content", {})), found["description"])
                for status, found in answers
                if status < "4"
            ]
            yield table(("status", "answer", "meaning"), rows)
            if refusals := sorted(status for status, _ in answers if status >= "4"):
                yield f"[Errors](#errors): {', '.join(refusals)}."


def _parameter(parameter: Json) -> tuple[str, str, str, str]:
    return f"`{parameter['name']}`", parameter["in"], _kind(parameter["schema"]), parameter.get("description", "")


def _contents(content: Json) -> str:
    return "; ".join(f"`{kind}`: {_kind(found['schema'])}" for kind, found in content.items())


def _objects(schemas: Json) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        yield f"### {name}"
        if description := schema.get("description"):
            yield " ".join(description.split())
        if properties := schema.get("properties"):
            required = schema.get("required", ())
            rows = [
                (f"`{field}`", _kind(found), "yes" if field in required else "", found.get("description", ""))
                for field, found in properties.items()
            ]
            yield table(("field", "values", "required", "meaning"), rows)


def _kind(schema: Json) -> str:
    """Say in a few words what a schema allows."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(map(_kind, schema[choice])))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"]) + _default(schema)
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_kind(schema.get('items') or {})}"
    if kind == "object" and schema.get("properties"):
        return "form of " + ", ".join(f"`{field}`" for field in schema["properties"])
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])} by name"
    return f"{kind}{_range(schema)}{_default(schema)}"


def _range(schema: Json) -> str:
    signs = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    bounds = [f"{sign} {schema[key]}" for key, sign in signs if key in schema]
    return f" {', '.join(bounds)}" if bounds else ""


def _default(schema: Json) -> str:
    default = schema.get("default")
    return "" if default is None else f" (default `{default}`)"
