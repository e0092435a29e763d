"""`/deployments/{name}/samples`: the labelled images that a deployment keeps, counted and deleted."""

import asyncio
import re

from starlette.requests import Request
from starlette.responses import Response

from service.http.context import Context, caller, json_response
from service.http.problems import invalid
from service.http.queries import Query
from service.http.schemas import DeletedSamples
from service.http.views import samples_view

_HASH = re.compile(r"[0-9a-f]{64}")


async def samples(context: Context, request: Request) -> Response:
    """`/deployments/{name}/samples`, all methods."""
    if request.method == "DELETE":
        return await _delete(context, request)
    name = request.path_params["name"]
    counts = await asyncio.to_thread(context.samples.counts, name)
    return json_response(samples_view(name, counts, context.settings.max_sample_bytes))


async def _delete(context: Context, request: Request) -> Response:
    name = request.path_params["name"]
    query = Query(request, ("hash", "class", "before"))
    digest = query.text("hash", "") if query.has("hash") else None
    if digest is not None and not _HASH.fullmatch(digest):
        raise invalid("hash", "expected 64 hexadecimal digits in lower case", status=400)
    count = await asyncio.to_thread(
        context.samples.remove,
        name,
        digest=digest,
        label=query.text("class", "") if query.has("class") else None,
        before=query.moment("before"),
        who=caller(request),
    )
    return json_response(DeletedSamples(deployment=name, deleted=count))
