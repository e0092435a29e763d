"""`POST /deployments/{name}/soups/{version}/predict`: ask any version of a deployment, without serving it."""

from starlette.requests import Request
from starlette.responses import Response

from service.http.answers import predictions_json
from service.http.classifying import classify
from service.http.context import Context
from service.http.queries import Query, path_version
from service.http.uploads import read_images


async def predict_with_version(context: Context, request: Request) -> Response:
    """`POST /deployments/{name}/soups/{version}/predict`."""
    top_k = Query(request, ("top_k",)).integer("top_k", 3, low=1)
    name = request.path_params["name"]
    loaded = await context.loaded(request, name, path_version(request))
    files = await read_images(request, context.settings)
    _, probabilities = await classify(context, request, loaded, files)
    class_names = loaded.base.manifest.class_names
    body = predictions_json(name, loaded.pointer.version, probabilities, class_names, top_k=top_k)
    return Response(body, media_type="application/json")
