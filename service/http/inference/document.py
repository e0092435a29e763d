"""What the OpenAPI document says of the routes below `/v2`."""

from typing import Any

from deploy.layout import INPUT_NAME, OUTPUT_NAME
from service.http.inference.tensors import DATATYPE, HEADER_LENGTH
from service.http.problems import PROTOCOL_MEDIA_TYPE
from service.http.queries import VERSION

Json = dict[str, Any]

_PARAMETERS: Json = {
    "type": ["object", "null"],
    "description": "those of extensions that are not known here are passed over",
}
_SIZES: Json = {"type": "array", "items": {"type": "integer"}}
_IMAGES_SHAPE: Json = {
    "type": "array",
    "prefixItems": [{"type": "integer", "minimum": 1}, {"const": 3}, *[{"type": "integer", "minimum": 1}] * 2],
    "items": False,
    "minItems": 4,
    "description": "B, 3, H, W: how many images, and the size that the model says",
}
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


def _tensor(name: str, shape: Json, **properties: Json) -> Json:
    return {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {"name": {"const": name}, "datatype": {"const": DATATYPE}, "shape": shape, **properties},
    }


_BINARY: Json = {"type": ["object", "null"], "properties": {"binary_data_size": {"type": "integer", "minimum": 1}}}


def schemas() -> Json:
    """Return the schemas of the protocol's objects."""
    return {
        "ProtocolError": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
        "ServerMetadata": {
            "type": "object",
            "required": ["name", "version", "extensions"],
            "properties": {
                "name": {"type": "string"},
                "version": {"type": "string"},
                "extensions": {"type": "array", "items": {"type": "string"}},
            },
        },
        "ModelMetadata": {
            "type": "object",
            "required": ["name", "versions", "platform", "inputs", "outputs", "parameters"],
            "properties": {
                "name": {"type": "string"},
                "versions": {"type": "array", "items": {"type": "string"}},
                "platform": {"type": "string"},
                "inputs": {"type": "array", "items": _tensor(INPUT_NAME, {**_SIZES, "description": "-1, 3, H, W"})},
                "outputs": {"type": "array", "items": _tensor(OUTPUT_NAME, {**_SIZES, "description": "-1, K"})},
                "parameters": {
                    "type": "object",
                    "required": ["version", "temperature", "class_names", "base_set", "coefficients"],
                    "properties": {
                        "version": {"type": "string", "description": "the one that this describes"},
                        "temperature": {
                            "type": "number",
                            "description": "softmax(logits / temperature) are the confidences that `/predict` gives",
                        },
                        "class_names": {"type": "array", "items": {"type": "string"}},
                        "base_set": {"type": "string"},
                        "coefficients": {"type": "object", "additionalProperties": {"type": "number"}},
                    },
                },
            },
        },
        "InferenceRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": ["string", "null"], "description": "comes back with the answer"},
                "parameters": {**_PARAMETERS, "properties": {"binary_data_output": {"type": "boolean"}}},
                "inputs": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 1,
                    "items": _tensor(
                        INPUT_NAME,
                        _IMAGES_SHAPE,
                        data={"type": "array", "description": "B * 3 * H * W numbers within [0, 1], flat or nested"},
                        parameters=_BINARY,
                    ),
                },
                "outputs": {
                    "type": ["array", "null"],
                    "maxItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {
                            "name": {"const": OUTPUT_NAME},
                            "parameters": {**_PARAMETERS, "properties": {"binary_data": {"type": "boolean"}}},
                        },
                    },
                },
            },
        },
        "InferenceResponse": {
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "id": {"type": "string"},
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "outputs": {
                    "type": "array",
                    "items": _tensor(
                        OUTPUT_NAME,
                        {**_SIZES, "description": "B, K"},
                        data={"type": "array", "items": {"type": "number"}},
                        parameters=_BINARY,
                    ),
                },
            },
        },
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
