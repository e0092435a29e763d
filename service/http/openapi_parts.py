"""Parts of the paths of the OpenAPI document: answers, parameters, bodies, the roles that they need."""

from typing import Any, Final

from pydantic import BaseModel

from service.http.problems import MEDIA_TYPE, error_media_type
from service.http.roles import needed
from service.http.schemas import PAGES, JobView

Json = dict[str, Any]

SCHEMES: Final[Json] = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, where the operator asks for keys. Operations list the role that they need, of "
        "predict, adapt and admin; each role may also do what those before it may.",
    }
}


def reference(model: type[BaseModel]) -> Json:
    """Return a reference to the component of a model."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def json_answer(schema: Json, description: str) -> Json:
    """Return an answer in JSON."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def text_answer(media_type: str, description: str) -> Json:
    """Return an answer in text."""
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}


def event_answer(description: str) -> Json:
    """Return an answer in server-sent events; the schema is that of each."""
    job = {"type": "string", "contentMediaType": "application/json", "contentSchema": reference(JobView)}
    event = {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"enum": ["progress", "done"]}, "data": job},
    }
    return {"description": description, "content": {"text/event-stream": {"schema": event}}}


def form(parts: Json, *required: str) -> Json:
    """Return the schema of a multipart body; a part of another name refuses the request."""
    return {"type": "object", "required": [*required], "additionalProperties": False, "properties": parts}


def problems(*statuses: int) -> Json:
    """Return the answers with these statuses, all of them problem details."""
    answer = {
        "description": "problem details",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
    }
    return {str(status): answer for status in statuses}


def query(name: str, description: str, schema: Json) -> Json:
    """Return an optional parameter of the query."""
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def path(name: str, description: str, schema: Json | None = None) -> Json:
    """Return a parameter of the path, by default a string."""
    schema = schema or {"type": "string"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def page(items: str, schema: Json) -> list[Json]:
    """Return the parameters of a list that comes in pages.

    Args:
        items: key of `PAGES`.
        schema: of `before`.
    """
    default, most = PAGES[items]
    size = {"type": "integer", "minimum": 1, "default": default}
    return [
        query("limit", f"most {items}; a number above {most} is clipped", size),
        query("before", "where the page before ended: the `next` of its answer", schema),
    ]


def get(summary: str, answer: Json, *more: int, parameters: list[Json] | None = None) -> Json:
    """Return a GET with its answer, and the statuses of its problem details."""
    return {"summary": summary, "parameters": parameters or [], "responses": {"200": answer, **problems(*more)}}


def body(model: type[BaseModel]) -> Json:
    """Return a JSON body that must be sent."""
    return {"required": True, "content": {"application/json": {"schema": reference(model)}}}


def secured(paths: Json) -> Json:
    """Return the paths with the role that each operation needs once there are keys, and how it is refused then."""
    for path, operations in paths.items():
        schema = "ProblemDetails" if error_media_type(path) == MEDIA_TYPE else "ProtocolError"
        content = {error_media_type(path): {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
        refusals = {
            "401": {"description": "without a known API key", "content": content},
            "403": {
                "description": "the role of the API key is too low, or the request is another site's",
                "content": content,
            },
            "429": {"description": "too many requests", "content": content},
        }
        for method, operation in operations.items():
            if (role := needed(method.upper(), path)) != "open":
                operation["security"] = [{}, {"key": [role]}]
                operation["responses"] = operation["responses"] | refusals
    return paths
