"""`POST /deployments/{name}/soups/{version}/predict`: ask any version of a deployment, without serving it."""

import asyncio
import re

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from service.http.answers import confidences, predictions_json
from service.http.context import Context
from service.http.decoding import decode_prepared
from service.http.deployments import servable
from service.http.problems import unavailable
from service.http.queries import Query
from service.http.uploads import read_images
from service.prediction.batcher import Logits
from service.prediction.catalog import Base
from service.store.registry import UnknownVersion
from training.images import Pixels, to_input

_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class Trials:
    """Networks that are built for one request: one at a time in a process, so that memory stays bounded."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(1)

    async def run(self, context: Context, name: str, version: int, base: Base, images: list[Pixels]) -> Logits:
        """Return the logits (n, K) of a version, divided by its temperature.

        Raises:
            UnknownVersion: the deployment has none of that number.
            Problem: 409 or 422, it cannot be served any more.
        """
        async with self._room:
            return await asyncio.to_thread(_run, context, name, version, base, images)


def _run(context: Context, name: str, version: int, base: Base, images: list[Pixels]) -> Logits:
    soup = context.registry.soup(name, version)
    session = servable(context, base, soup)
    size = context.settings.max_batch
    parts = [session.run(to_input(np.stack(images[at : at + size]))) for at in range(0, len(images), size)]
    return np.concatenate(parts) / np.float32(soup.temperature)


async def predict_with_version(context: Context, request: Request) -> Response:
    """`POST /deployments/{name}/soups/{version}/predict`."""
    top_k = Query(request, ("top_k",)).integer("top_k", 3, low=1)
    name, number = request.path_params["name"], request.path_params["version"]
    found = await asyncio.to_thread(context.registry.deployment, name)
    request.state.deployment = name
    if not _VERSION.fullmatch(number):
        raise UnknownVersion(number[:80])
    version = int(number)
    await asyncio.to_thread(context.registry.soup, name, version)
    if (base := context.catalog.get(found.base_set)) is None:
        raise unavailable("the base set of the deployment is not there")
    files = await read_images(request, context.settings)
    images = await decode_prepared(files, base.manifest.input, context.settings, context.decoding)
    logits = await request.app.state.trials.run(context, name, version, base, images)
    body = predictions_json(name, version, confidences(logits, 1.0), base.manifest.class_names, top_k=top_k)
    return Response(body, media_type="application/json")
