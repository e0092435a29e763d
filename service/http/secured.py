"""API keys in the OpenAPI document: which role each operation needs, and how it is refused."""

from typing import Any, Final

from service.http.problems import MEDIA_TYPE, error_media_type
from service.http.roles import needed

Json = dict[str, Any]

SCHEMES: Final[Json] = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, where the operator asks for keys. Operations list the role that they need, of "
        "predict, adapt and admin; each role may also do what those before it may.",
    }
}


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
