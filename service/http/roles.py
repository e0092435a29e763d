"""Who may ask for what, once there are API keys: the table of every route and the role that it needs."""

from collections.abc import Mapping
from typing import Final, Literal

from starlette.routing import compile_path

from service.store.keys import ROLES, Role

Needed = Role | Literal["open"]  # open: without a key

_READ: Final[Mapping[str, Needed]] = {"GET": "predict"}
_ASK: Final[Mapping[str, Needed]] = {"POST": "predict"}
_FOLLOW: Final[Mapping[str, Needed]] = {"GET": "adapt"}
_OPEN: Final[Mapping[str, Needed]] = {"GET": "open"}
_MODEL, _VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"

# `POST /adapt?promote=always` needs admin as well; its endpoint sees to that.
NEEDS: Final[Mapping[str, Mapping[str, Needed]]] = {
    "/": _OPEN,
    "/docs": _OPEN,
    "/openapi.json": _OPEN,
    "/schema.json": _OPEN,
    "/ui": _OPEN,  # the page's files; what it shows comes from the other routes
    "/ui/{file}": _OPEN,
    "/livez": _OPEN,
    "/healthz": _OPEN,
    "/readyz": _OPEN,
    "/v2/health/live": _OPEN,
    "/v2/health/ready": _OPEN,
    "/metrics": _READ,  # open over loopback: see `Access`
    "/predict": _ASK,
    "/deployments/{name}/soups/{version}/predict": _ASK,
    "/whoami": _READ,
    "/bases": _READ,
    "/deployments": _READ,
    "/deployments/{name}": {"GET": "predict", "PUT": "admin", "DELETE": "admin"},
    "/deployments/{name}/soups": _READ,
    "/v2": _READ,
    **{path: _READ for model in (_MODEL, _VERSION) for path in (model, f"{model}/ready")},
    **{f"{model}/infer": _ASK for model in (_MODEL, _VERSION)},
    "/adapt": {"POST": "adapt"},
    "/jobs/{id}": {"GET": "adapt", "DELETE": "adapt"},
    "/jobs/{id}/events": _FOLLOW,
    "/jobs/{id}/landscape": _FOLLOW,
    "/deployments/{name}/jobs": _FOLLOW,
    "/deployments/{name}/events": _FOLLOW,
    "/deployments/{name}/samples": {"GET": "adapt", "DELETE": "admin"},
    "/deployments/{name}/soup": {"PUT": "admin"},
    "/deployments/{name}/reservoir": {"PUT": "admin", "DELETE": "admin"},
    "/deployments/{name}/watch": {"PUT": "admin", "DELETE": "admin"},
}
_PATTERNS = [(compile_path(path)[0], path) for path in NEEDS if "{" in path]


def route(path: str) -> str | None:
    """Return the path with names for what is variable in it, as the table has it; None for one that is not ours."""
    return path if path in NEEDS else next((found for pattern, found in _PATTERNS if pattern.match(path)), None)


def needed(method: str, path: str) -> Needed:
    """Return the role that a request needs.

    A path that the table lacks needs the highest: a route that somebody forgot must not be open. A method that its
    path lacks is refused in any case, but not to strangers.
    """
    if (found := route(path)) is None:
        return "admin"
    return NEEDS[found].get("GET" if method == "HEAD" else method, "predict")


def suffices(role: Role, wanted: Role) -> bool:
    """Return whether a key of `role` may do what `wanted` may."""
    return ROLES.index(role) >= ROLES.index(wanted)
