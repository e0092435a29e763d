"""The schema that `bentoml.SyncHTTPClient` reads first: its methods, and how it sends their arguments."""

from typing import Any

from service.http.schemas import Predictions


def client_schema() -> dict[str, Any]:
    """Return the document at `/schema.json`, in the form of a service whose `predict` is a `@bentoml.api`.

    The client sends arguments of the type `file` as parts of a form, which is what `/predict` takes. Deployment and
    `top_k` stand in the query, where the client puts nothing, so they keep their defaults.
    """
    images = {"type": "array", "items": {"type": "file", "format": "image"}}
    return {
        "name": "Saucier",
        "type": "service",
        "routes": [
            {
                "name": "predict",
                "route": "/predict",
                "doc": "Classify images, a list of paths, with the deployment `default`.",
                "batchable": False,
                "is_task": False,
                "input": {"type": "object", "properties": {"images": images}, "required": ["images"]},
                "output": Predictions.model_json_schema(),
            }
        ],
    }
