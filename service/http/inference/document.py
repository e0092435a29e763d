"""The routes below `/v2` in the OpenAPI document."""

from typing import Any

from service.http.inference.tensors import HEADER_LENGTH
from service.http.problems import PROTOCOL_MEDIA_TYPE
from service.http.queries import VERSION

Json = dict[str, Any]

_NAME: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "name of the deployment",
    "schema": {"type": "string"},
}
_VERSION: Json = {
    "name": "version",
    "in": "path",
    "required": True,
    "description": "soup version; without it, the current one",
    "schema": {"type": "string", "pattern": VERSION},
}


def paths() -> Json:
    """Return the paths of the protocol."""
    found = {
        "/v2": {"get": _get("Open Inference Protocol: the server", _json("ServerMetadata", "this server"))},
        "/v2/health/live": {"get": _get("Is the process alive?", _flag("live"))},
        "/v2/health/ready": {"get": _get("Do all predictors serve the current soup?", _flag("ready"), 503)},
    }
    for path, parameters in (
        ("/v2/models/{name}", [_NAME]),
        ("/v2/models/{name}/versions/{version}", [_NAME, _VERSION]),
    ):
        metadata = _json("ModelMetadata", "the deployment, its versions, and one of them")
        found |= {
            path: {"get": _get("Describe a model", metadata, 404, 409, 503, parameters=parameters)},
            f"{path}/ready": {
                "get": _get("Can it be asked?", _flag("ready", "name"), 404, 409, 503, parameters=parameters)
            },
            f"{path}/infer": {"post": _infer(parameters)},
        }
    return found


def _infer(parameters: list[Json]) -> Json:
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "required": False,
        "description": "bytes of the JSON object, where tensors come as bytes after it",
        "schema": {"type": "integer", "minimum": 0},
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    request, answer = (_json(name, "")["content"] for name in ("InferenceRequest", "InferenceResponse"))
    return {
        "summary": "Compute logits, not divided by the temperature",
        "parameters": [*parameters, length],
        "requestBody": {"required": True, "content": {**request, "application/octet-stream": binary}},
        "responses": {
            "200": {
                "description": "logits in request order; as bytes after the JSON object where that was asked for",
                "content": {**answer, "application/octet-stream": binary},
            },
            **_errors(400, 403, 404, 408, 409, 413, 415, 503),
        },
    }


def _get(summary: str, answer: Json, *errors: int, parameters: list[Json] | None = None) -> Json:
    return {"summary": summary, "parameters": parameters or [], "responses": {"200": answer, **_errors(*errors)}}


def _json(name: str, description: str) -> Json:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _flag(name: str, *others: str) -> Json:
    properties = {name: {"const": True}, **{other: {"type": "string"} for other in others}}
    schema = {"type": "object", "required": [*properties], "properties": properties}
    return {"description": "it is", "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: int) -> Json:
    schema = {"$ref": "#/components/schemas/ProtocolError"}
    answer = {"description": "an error of the protocol", "content": {PROTOCOL_MEDIA_TYPE: {"schema": schema}}}
    return {str(status): answer for status in statuses}
