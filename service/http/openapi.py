"""The OpenAPI 3.1 document of the routes, and a page that shows it without asking anyone else for a script."""

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from adapt.documents.landscape import Landscape
from service.http.inference import document, models
from service.http.openapi_parts import (
    SCHEMES,
    Json,
    body,
    event_answer,
    form,
    get,
    json_answer,
    page,
    path,
    problems,
    query,
    reference,
    secured,
    text_answer,
)
from service.http.schemas import (
    DEPLOYMENT_NAME,
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
from training.version import VERSION

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


_DEPLOYMENT = query("deployment", "name of the deployment", {"type": "string", "default": "default"})
_NAME = path("name", "name of the deployment", {"type": "string", "pattern": DEPLOYMENT_NAME})
_JOB = path("id", "the job")
_VERSION = path("version", "a soup version of the deployment", {"type": "integer", "minimum": 1})
_NUMBER: Json = {"type": "integer", "minimum": 1}
_TOP_K = query(
    "top_k", "classes per image; larger than their number is clipped", {"type": "integer", "minimum": 1, "default": 3}
)


def _predict(summary: str, parameters: list[Json], *more: int) -> Json:
    return {
        "summary": summary,
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form({"images": _IMAGE_PARTS}, "images")},
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
            "200": json_answer(reference(Predictions), "predictions in request order"),
            **problems(*_UPLOAD_PROBLEMS, *more),
        },
    }


def _adapt() -> Json:
    unlabelled = {
        **_IMAGE_PARTS,
        "minItems": 0,
        "description": "images for recalibration; with them alone a candidate is stored and the job ends `kept`, "
        "because nothing can be proven without labels",
    }
    labels = {"type": "string", "description": "JSON array of class names or indices, in order"}
    archive = {"type": "string", "format": "binary", "description": ".zip or .tar with one folder per class"}
    return {
        "summary": "Find a better soup for a few labelled images, or new channel statistics without labels",
        "parameters": [
            _DEPLOYMENT,
            query("strategy", "how to search", {"enum": ["auto", "grid", "surrogate"], "default": "auto"}),
            query(
                "promote",
                "auto: a candidate that is proven better on images it was not chosen on; likely: also one that is "
                "probably better; never: none; always: any, with the role admin",
                {"enum": ["auto", "likely", "always", "never"], "default": "auto"},
            ),
            query(
                "samples",
                "which labelled images to search on. new: those of the request; all: kept ones as well. With an empty "
                "body, new means kept ones that no search has used",
                {"enum": ["new", "all"], "default": "new"},
            ),
            query(
                "balance",
                "none: every image has the same weight; class: every class that occurs has, however many images it has",
                {"enum": ["none", "class"], "default": "none"},
            ),
            query(
                "effort",
                "auto: a quick search without rungs that train weights, then a follow-up with all rungs; quick: no "
                "follow-up; full: all rungs in one job",
                {"enum": ["auto", "quick", "full"], "default": "auto"},
            ),
            query(
                "draw",
                "fair: classes are as frequent among the labelled images as among those to be served, so labels may "
                "judge class frequencies; any: frequencies are only reported",
                {"enum": ["any", "fair"], "default": "any"},
            ),
            query(
                "wait", "seconds to wait for the end", {"type": "number", "minimum": 0, "maximum": 50, "default": 30}
            ),
        ],
        "requestBody": {
            "required": False,
            "description": "may be empty if the query says `samples`",
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "anyOf": [
                            form(
                                {"images": _IMAGE_PARTS, "labels": labels, "unlabelled": unlabelled}, "images", "labels"
                            ),
                            form({"archive": archive, "unlabelled": unlabelled}, "archive"),
                            form({"unlabelled": {**unlabelled, "minItems": 1}}, "unlabelled"),
                        ]
                    }
                }
            },
        },
        "responses": {
            "200": json_answer(reference(JobView), "the job is finished; if it promoted, every live worker serves it"),
            "202": {
                **json_answer(reference(JobView), "the job, or its rollout, still runs"),
                "headers": {"Location": {"schema": {"type": "string"}, "description": "/jobs/{id}"}},
            },
            **problems(*_UPLOAD_PROBLEMS, 429, 507),
        },
    }


def _images() -> Json:
    job = reference(JobView)
    return {
        "/predict": {"post": _predict("Classify images", [_DEPLOYMENT, _TOP_K])},
        "/adapt": {"post": _adapt()},
        "/jobs/{id}": {
            "get": get("Look at a job", json_answer(job, "the job"), 404, 503, parameters=[_JOB]),
            "delete": {
                "summary": "Cancel a job that waits or runs",
                "parameters": [_JOB],
                "responses": {"200": json_answer(job, "the job, which ended `failed`"), **problems(403, 404, 409, 503)},
            },
        },
        "/jobs/{id}/events": {
            "get": get(
                "Follow a job",
                event_answer("server-sent events `progress` and at last `done`, each with the job"),
                404,
                503,
                parameters=[_JOB],
            )
        },
        "/jobs/{id}/landscape": {
            "get": get(
                "Look at the soups that the search of a job evaluated",
                json_answer(reference(Landscape), "the soups and their accuracies on the labelled images"),
                404,
                503,
                parameters=[_JOB],
            )
        },
    }


def _deployments() -> Json:
    view = reference(DeploymentView)
    return {
        "/deployments": {
            "get": get(
                "List the deployments",
                json_answer(reference(Deployments), "the deployments, by name"),
                400,
                503,
                parameters=page("deployments", {"type": "string"}),
            )
        },
        "/deployments/{name}": {
            "get": get(
                "Look at a deployment and its rollout",
                json_answer(view, "the deployment"),
                404,
                503,
                parameters=[_NAME],
            ),
            "put": {
                "summary": "Make a deployment",
                "parameters": [_NAME],
                "requestBody": body(NewDeployment),
                "responses": {
                    "200": json_answer(view, "it is there already"),
                    "201": json_answer(view, "it was made"),
                    **problems(400, 403, 409, 413, 415, 422, 503),
                },
            },
            "delete": {
                "summary": "Delete a deployment with its soups, jobs and samples",
                "parameters": [_NAME],
                "responses": {"204": {"description": "it is gone"}, **problems(403, 404, 409, 503)},
            },
        },
        "/deployments/{name}/soups": {
            "get": get(
                "List the soup versions with their evidence",
                json_answer(reference(Soups), "versions, newest first"),
                400,
                404,
                503,
                parameters=[_NAME, *page("soups", _NUMBER)],
            )
        },
        "/deployments/{name}/samples": {
            "get": get(
                "Count the kept labelled images",
                json_answer(reference(SamplesView), "what is kept"),
                404,
                503,
                parameters=[_NAME],
            ),
            "delete": {
                "summary": "Delete the labelled images for which all conditions hold, or all of them",
                "parameters": [
                    _NAME,
                    query("hash", "SHA-256 of the pixels", {"type": "string", "pattern": "^[0-9a-f]{64}$"}),
                    query("class", "the label", {"type": "string"}),
                    query("before", "last sent before this time", {"type": "string", "format": "date-time"}),
                ],
                "responses": {
                    "200": json_answer(reference(DeletedSamples), "rows and pixels are gone"),
                    **problems(400, 403, 404, 503),
                },
            },
        },
        "/deployments/{name}/events": {
            "get": get(
                "List the changes of a deployment, and who made them",
                json_answer(reference(Events), "events, newest first; they outlive their deployment"),
                400,
                404,
                503,
                parameters=[_NAME, *page("events", _NUMBER)],
            )
        },
        "/deployments/{name}/soups/{version}/predict": {
            "post": _predict("Classify images with any version, without serving it", [_NAME, _VERSION, _TOP_K], 409)
        },
        "/deployments/{name}/jobs": {
            "get": get(
                "List the newest jobs",
                json_answer(reference(Jobs), "the newest jobs, newest first"),
                400,
                404,
                503,
                parameters=[_NAME, *page("jobs", {"type": "string"})],
            )
        },
        "/deployments/{name}/soup": {
            "put": {
                "summary": "Serve a version again (rollback), or set coefficients by hand (the dial)",
                "parameters": [_NAME],
                "requestBody": body(NewSoup),
                "responses": {
                    "200": json_answer(view, "every live worker serves it"),
                    "202": json_answer(view, "it is current; the rollout goes on"),
                    **problems(400, 403, 404, 409, 413, 415, 422, 503),
                },
            }
        },
        "/deployments/{name}/reservoir": {
            "put": {
                "summary": "Keep a sample of the classified images, on which adaptations estimate statistics",
                "parameters": [_NAME],
                "requestBody": body(NewReservoir),
                "responses": {
                    "200": json_answer(view, "it was on; of another size or retention, it starts empty"),
                    "201": json_answer(view, "it is on"),
                    **problems(400, 403, 404, 413, 415, 422, 503),
                },
            },
            "delete": {
                "summary": "Switch the reservoir off, and delete its images",
                "parameters": [_NAME],
                "responses": {"204": {"description": "they are gone"}, **problems(403, 404, 503)},
            },
        },
        "/deployments/{name}/watch": {
            "put": {
                "summary": "Roll back automatically if a version is less sure or less often right than the one before",
                "parameters": [_NAME],
                "requestBody": body(NewWatch),
                "responses": {
                    "200": json_answer(view, "it was on; if its numbers changed, it starts from the beginning"),
                    "201": json_answer(view, "it is on"),
                    **problems(400, 403, 404, 413, 415, 422, 503),
                },
            },
            "delete": {
                "summary": "Switch the watch off",
                "parameters": [_NAME],
                "responses": {"204": {"description": "it is off"}, **problems(403, 404, 503)},
            },
        },
        **document.paths(),
    }


def _service() -> Json:
    return {
        "/bases": {"get": get("List the base sets", json_answer(reference(Bases), "all base sets"))},
        "/metrics": {"get": get("Metrics of all processes", text_answer("text/plain", "Prometheus text format"))},
        "/livez": {"get": get("Is the process alive?", text_answer("text/plain", "it is"))},
        "/readyz": {"get": get("Do all workers serve the current soup?", text_answer("text/plain", "it is"), 503)},
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
        # Relative to where the document was read, so that paths keep the prefix that a proxy puts before them.
        "servers": [{"url": "."}],
        "paths": secured({**_images(), **_deployments(), **_service()}),
        "components": {
            "securitySchemes": SCHEMES,
            "schemas": definitions["$defs"],
        },
    }
