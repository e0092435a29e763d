"""The OpenAPI 3.1 document of the routes, and a page that shows it without asking anyone else for a script."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from adapt.documents.landscape import Landscape
from service.http.inference import document, models
from service.http.problems import MEDIA_TYPE
from service.http.schemas import (
    DEPLOYMENT_NAME,
    PAGES,
    Bases,
    DeletedSamples,
    Deployments,
    DeploymentView,
    Events,
    Jobs,
    JobView,
    NewDeployment,
    NewReservoir,
    NewSoup,
    NewWatch,
    Predictions,
    ProblemDetails,
    SamplesView,
    Soups,
)
from service.http.secured import SCHEMES, secured
from training.version import VERSION

Json = dict[str, Any]

_MODELS: tuple[type[BaseModel], ...] = (
    Bases,
    DeletedSamples,
    Deployments,
    DeploymentView,
    Events,
    Jobs,
    JobView,
    Landscape,
    NewDeployment,
    NewReservoir,
    NewSoup,
    NewWatch,
    Predictions,
    ProblemDetails,
    SamplesView,
    Soups,
    *models.MODELS,
)
_IMAGE_PARTS: Json = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
_UPLOAD_PROBLEMS = (400, 403, 404, 408, 413, 415, 422, 503)


def _reference(model: type[BaseModel]) -> Json:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _json(schema: Json, description: str) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _text(media_type: str, description: str) -> Json:
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}


def _events(description: str) -> Json:
    """Return an answer in server-sent events; the schema is that of each."""
    job = {"type": "string", "contentMediaType": "application/json", "contentSchema": _reference(JobView)}
    event = {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"enum": ["progress", "done"]}, "data": job},
    }
    return {"description": description, "content": {"text/event-stream": {"schema": event}}}


def _form(parts: Json, *required: str) -> Json:
    """Return the schema of a multipart body; a part of another name refuses the request."""
    return {"type": "object", "required": [*required], "additionalProperties": False, "properties": parts}


def _problems(*statuses: int) -> Json:
    answer = {
        "description": "problem details",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
    }
    return {str(status): answer for status in statuses}


def _query(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _path(name: str, description: str, schema: Json | None = None) -> Json:
    schema = schema or {"type": "string"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


_DEPLOYMENT = _query("deployment", "name of the deployment", {"type": "string", "default": "default"})
_NAME = _path("name", "name of the deployment", {"type": "string", "pattern": DEPLOYMENT_NAME})
_JOB = _path("id", "the job")
_VERSION = _path("version", "a soup version of the deployment", {"type": "integer", "minimum": 1})


def _page(items: str, schema: Json) -> list[Json]:
    """Return the parameters of a list that comes in pages.

    Args:
        items: key of `PAGES`.
        schema: of `before`.
    """
    default, most = PAGES[items]
    size = {"type": "integer", "minimum": 1, "default": default}
    return [
        _query("limit", f"most {items}; a number above {most} is clipped", size),
        _query("before", "where the page before ended: the `next` of its answer", schema),
    ]


_NUMBER: Json = {"type": "integer", "minimum": 1}
_TOP_K = _query(
    "top_k", "classes per image; larger than their number is clipped", {"type": "integer", "minimum": 1, "default": 3}
)


def _predict(summary: str, parameters: list[Json], *problems: int) -> Json:
    return {
        "summary": summary,
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _form({"images": _IMAGE_PARTS}, "images")},
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["images"],
                        "additionalProperties": False,
                        "properties": {
                            "images": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "string",
                                    "contentEncoding": "base64",
                                    "description": "an image file in base64, in one line or several, or as a data URL",
                                },
                            }
                        },
                    }
                },
                "image/*": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {
            "200": _json(_reference(Predictions), "predictions in request order"),
            **_problems(*_UPLOAD_PROBLEMS, *problems),
        },
    }


def _adapt() -> Json:
    unlabelled = {
        **_IMAGE_PARTS,
        "minItems": 0,
        "description": "images for recalibration; with them alone a candidate is stored and ends `kept`, as without "
        "labels nothing can be proven",
    }
    labels = {"type": "string", "description": "JSON array of class names or indices, in order"}
    archive = {"type": "string", "format": "binary", "description": ".zip or .tar with one folder per class"}
    return {
        "summary": "Find a better soup for a few labelled images, or new channel statistics without labels",
        "parameters": [
            _DEPLOYMENT,
            _query("strategy", "how to search", {"enum": ["auto", "grid", "surrogate"], "default": "auto"}),
            _query(
                "promote",
                "auto: only what is proven to beat the current soup on images it was not chosen on; likely: also what "
                "is expected to and is unlikely to lose much; always: needs the role admin",
                {"enum": ["auto", "likely", "always", "never"], "default": "auto"},
            ),
            _query(
                "samples",
                "which labelled images to search on: new, those of the request; all, those that are kept as well. With "
                "an empty body, new means those kept that no search has seen",
                {"enum": ["new", "all"], "default": "new"},
            ),
            _query(
                "balance",
                "none: every image counts alike; class: every class that occurs does, however many images it has",
                {"enum": ["none", "class"], "default": "none"},
            ),
            _query(
                "wait", "seconds to wait for the end", {"type": "number", "minimum": 0, "maximum": 50, "default": 30}
            ),
        ],
        "requestBody": {
            "required": False,
            "description": "may be left out where the query says `samples`",
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "anyOf": [
                            _form(
                                {"images": _IMAGE_PARTS, "labels": labels, "unlabelled": unlabelled}, "images", "labels"
                            ),
                            _form({"archive": archive, "unlabelled": unlabelled}, "archive"),
                            _form({"unlabelled": {**unlabelled, "minItems": 1}}, "unlabelled"),
                        ]
                    }
                }
            },
        },
        "responses": {
            "200": _json(_reference(JobView), "the job is finished; if it promoted, every live worker serves it"),
            "202": {
                **_json(_reference(JobView), "the job, or its rollout, still runs"),
                "headers": {"Location": {"schema": {"type": "string"}, "description": "/jobs/{id}"}},
            },
            **_problems(*_UPLOAD_PROBLEMS, 429, 507),
        },
    }


def _get(summary: str, answer: Json, *problems: int, parameters: list[Json] | None = None) -> Json:
    return {"summary": summary, "parameters": parameters or [], "responses": {"200": answer, **_problems(*problems)}}


def _body(model: type[BaseModel]) -> Json:
    return {"required": True, "content": {"application/json": {"schema": _reference(model)}}}


def _paths() -> Json:
    view, job = _reference(DeploymentView), _reference(JobView)
    return {
        "/predict": {"post": _predict("Classify images", [_DEPLOYMENT, _TOP_K])},
        "/adapt": {"post": _adapt()},
        "/jobs/{id}": {
            "get": _get("Look at a job", _json(job, "the job"), 404, 503, parameters=[_JOB]),
            "delete": {
                "summary": "Cancel a job that waits or runs",
                "parameters": [_JOB],
                "responses": {"200": _json(job, "the job, which ended `failed`"), **_problems(403, 404, 409, 503)},
            },
        },
        "/jobs/{id}/events": {
            "get": _get(
                "Follow a job",
                _events("server-sent events `progress` and at last `done`, each with the job"),
                404,
                503,
                parameters=[_JOB],
            )
        },
        "/jobs/{id}/landscape": {
            "get": _get(
                "Look at the soups that the search of a job evaluated",
                _json(_reference(Landscape), "the soups and their accuracies on the labelled images"),
                404,
                503,
                parameters=[_JOB],
            )
        },
        "/deployments": {
            "get": _get(
                "List the deployments",
                _json(_reference(Deployments), "the deployments, by name"),
                400,
                503,
                parameters=_page("deployments", {"type": "string"}),
            )
        },
        "/deployments/{name}": {
            "get": _get(
                "Look at a deployment and its rollout", _json(view, "the deployment"), 404, 503, parameters=[_NAME]
            ),
            "put": {
                "summary": "Make a deployment",
                "parameters": [_NAME],
                "requestBody": _body(NewDeployment),
                "responses": {
                    "200": _json(view, "it is there already"),
                    "201": _json(view, "it was made"),
                    **_problems(400, 403, 409, 413, 415, 422, 503),
                },
            },
            "delete": {
                "summary": "Delete a deployment with its soups, jobs and samples",
                "parameters": [_NAME],
                "responses": {"204": {"description": "it is gone"}, **_problems(403, 404, 409, 503)},
            },
        },
        "/deployments/{name}/soups": {
            "get": _get(
                "List the soup versions with their evidence",
                _json(_reference(Soups), "versions, newest first"),
                400,
                404,
                503,
                parameters=[_NAME, *_page("soups", _NUMBER)],
            )
        },
        "/deployments/{name}/samples": {
            "get": _get(
                "Count the labelled images that are kept",
                _json(_reference(SamplesView), "what is kept"),
                404,
                503,
                parameters=[_NAME],
            ),
            "delete": {
                "summary": "Delete the labelled images for which all conditions hold, or all of them",
                "parameters": [
                    _NAME,
                    _query("hash", "SHA-256 of the pixels", {"type": "string", "pattern": "^[0-9a-f]{64}$"}),
                    _query("class", "the label", {"type": "string"}),
                    _query("before", "last sent before this time", {"type": "string", "format": "date-time"}),
                ],
                "responses": {
                    "200": _json(_reference(DeletedSamples), "rows and pixels are gone"),
                    **_problems(400, 403, 404, 503),
                },
            },
        },
        "/deployments/{name}/events": {
            "get": _get(
                "List what happened: promotions, rollbacks, the dial, who asked for them",
                _json(_reference(Events), "events, newest first; they outlive their deployment"),
                400,
                404,
                503,
                parameters=[_NAME, *_page("events", _NUMBER)],
            )
        },
        "/deployments/{name}/soups/{version}/predict": {
            "post": _predict("Ask any version, without serving it", [_NAME, _VERSION, _TOP_K], 409)
        },
        "/deployments/{name}/jobs": {
            "get": _get(
                "List the newest jobs",
                _json(_reference(Jobs), "the newest jobs, newest first"),
                400,
                404,
                503,
                parameters=[_NAME, *_page("jobs", {"type": "string"})],
            )
        },
        "/deployments/{name}/soup": {
            "put": {
                "summary": "Go back to a version, or dial coefficients by hand",
                "parameters": [_NAME],
                "requestBody": _body(NewSoup),
                "responses": {
                    "200": _json(view, "every live worker serves it"),
                    "202": _json(view, "it is current; the rollout goes on"),
                    **_problems(400, 403, 404, 409, 413, 415, 422, 503),
                },
            }
        },
        "/deployments/{name}/reservoir": {
            "put": {
                "summary": "Keep a sample of the images that are classified, for adaptations to estimate statistics on",
                "parameters": [_NAME],
                "requestBody": _body(NewReservoir),
                "responses": {
                    "200": _json(view, "it was on; of another size or retention, it starts empty"),
                    "201": _json(view, "it is on"),
                    **_problems(400, 403, 404, 413, 415, 422, 503),
                },
            },
            "delete": {
                "summary": "Keep no images, and delete those that were kept",
                "parameters": [_NAME],
                "responses": {"204": {"description": "they are gone"}, **_problems(403, 404, 503)},
            },
        },
        "/deployments/{name}/watch": {
            "put": {
                "summary": "Go back by itself when what was promoted is less sure, or less often right, than before",
                "parameters": [_NAME],
                "requestBody": _body(NewWatch),
                "responses": {
                    "200": _json(view, "it was on; with other numbers, it starts anew"),
                    "201": _json(view, "it is on"),
                    **_problems(400, 403, 404, 413, 415, 422, 503),
                },
            },
            "delete": {
                "summary": "Never go back by itself",
                "parameters": [_NAME],
                "responses": {"204": {"description": "it is off"}, **_problems(403, 404, 503)},
            },
        },
        **document.paths(),
        "/bases": {"get": _get("List the base sets", _json(_reference(Bases), "all base sets"))},
        "/metrics": {"get": _get("Metrics of all processes", _text("text/plain", "Prometheus text format"))},
        "/livez": {"get": _get("Is the process alive?", _text("text/plain", "it is"))},
        "/readyz": {"get": _get("Do all predictors serve the current soup?", _text("text/plain", "it is"), 503)},
    }


def openapi_document() -> Json:
    """Return the OpenAPI document of the service."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in _MODELS], ref_template="#/components/schemas/{model}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Saucier",
            "version": VERSION,
            "description": "Image classification by soups of robust ingredients that adapt to distribution shift.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": secured(_paths()),
        "components": {
            "securitySchemes": SCHEMES,
            "schemas": definitions["$defs"],
        },
    }
