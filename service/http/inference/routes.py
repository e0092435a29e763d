"""The endpoints below `/v2`: a model is a deployment, its versions are soup versions. Errors are `{"error": text}`."""

import asyncio
from functools import partial

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deploy.layout import INPUT_NAME, OUTPUT_NAME
from service.http.answers import confidences
from service.http.context import Context, endpoint, json_response
from service.http.decoding import INLINE_BYTES
from service.http.inference.models import ModelMetadata, ModelParameters, ServerMetadata, TensorMetadata
from service.http.inference.tensors import (
    HEADER_LENGTH,
    Floats,
    json_size,
    read_request,
    write_answer,
)
from service.http.inflight import unless_gone
from service.http.problems import unavailable
from service.http.queries import path_version
from service.http.uploads import read_body
from service.prediction.catalog import Base
from service.prediction.loading import LoadedSoup, Outdated
from service.store.moves import Pointer
from training.version import VERSION

PLATFORM = "onnxruntime_onnx"


async def show_server(_: Context, __: Request) -> Response:
    """`GET /v2`."""
    return json_response(ServerMetadata(name="saucier", version=VERSION, extensions=["binary_tensor_data"]))


async def live(_: Context, __: Request) -> Response:
    """`GET /v2/health/live`."""
    return JSONResponse({"live": True})


async def ready(context: Context, _: Request) -> Response:
    """`GET /v2/health/ready`."""
    if not context.is_ready:
        raise unavailable("not every predictor has loaded the current soup yet")
    return JSONResponse({"ready": True})


async def show_model(context: Context, request: Request) -> Response:
    """`GET /v2/models/{name}[/versions/{version}]`."""
    pointer, base = await _find(context, request)
    soup = await asyncio.to_thread(context.registry.soup, pointer.name, pointer.version)
    digest = base.manifest.digest
    if soup.base_digest != digest:
        raise Outdated(pointer.version)
    versions = await asyncio.to_thread(context.registry.versions, pointer.name, base_digest=digest)
    return json_response(
        ModelMetadata(
            name=pointer.name,
            versions=[str(number) for number in versions],
            platform=PLATFORM,
            inputs=[TensorMetadata(name=INPUT_NAME, shape=[-1, *_image_shape(base)])],
            outputs=[TensorMetadata(name=OUTPUT_NAME, shape=[-1, len(base.manifest.class_names)])],
            parameters=ModelParameters(
                version=str(pointer.version),
                temperature=soup.temperature,
                class_names=list(base.manifest.class_names),
                base_set=base.manifest.name,
                coefficients=soup.coefficients,
            ),
        )
    )


async def model_ready(context: Context, request: Request) -> Response:
    """`GET /v2/models/{name}[/versions/{version}]/ready`."""
    pointer, base = await _find(context, request)
    soup = await asyncio.to_thread(context.registry.soup, pointer.name, pointer.version)
    if soup.base_digest != base.manifest.digest:
        raise Outdated(pointer.version)
    return JSONResponse({"name": pointer.name, "ready": True})


async def infer(context: Context, request: Request) -> Response:
    """`POST /v2/models/{name}[/versions/{version}]/infer`."""
    name = request.path_params["name"]
    loaded = await context.loaded(request, name, _version(request))
    body = await read_body(request, context.settings)
    size = json_size(request.headers.get(HEADER_LENGTH), len(body))
    read = partial(
        read_request,
        body,
        size,
        _image_shape(loaded.base),
        max_images=context.settings.max_images,
        max_pixels=context.settings.max_request_pixels,
    )
    is_small = len(body) <= INLINE_BYTES
    asked = read() if is_small else await asyncio.get_running_loop().run_in_executor(context.threads.ordinary, read)
    work = loaded.tensors.submit(list(asked.images))
    logits = await (work if is_small else unless_gone(request, work))
    _count(context, loaded, asked.images, logits)
    answer, headers = write_answer(
        logits, name=name, version=loaded.pointer.version, request_id=asked.id, is_binary=asked.is_binary
    )
    return Response(answer, headers=headers)


def _count(context: Context, loaded: LoadedSoup, images: Floats, logits: Floats) -> None:
    """Do for metrics, watch and reservoir what `/predict` does; an older version does not count."""
    loaded.metrics.images.inc(len(images))
    if not context.predictor.is_current(loaded.pointer):
        return
    best = confidences(logits, loaded.soup.temperature).max(axis=1)
    for confidence in best.tolist():
        loaded.metrics.confidence.observe(confidence)
    context.predictor.confidences.offer(loaded.pointer, best)
    if context.predictor.reservoirs.is_on(loaded.pointer.name):
        pixels = np.rint(images.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
        context.predictor.reservoirs.offer(loaded.pointer.name, list(pixels))


async def _find(context: Context, request: Request) -> tuple[Pointer, Base]:
    """Return the version that a request names, or the current one, which may not exist, and its base set."""
    pointer = await context.pointer(request, request.path_params["name"])
    wanted = _version(request)
    return (pointer if wanted is None else pointer._replace(version=wanted)), context.catalog[pointer.base_set]


def _version(request: Request) -> int | None:
    return path_version(request) if "version" in request.path_params else None


def _image_shape(base: Base) -> tuple[int, int, int]:
    return 3, base.manifest.input.height, base.manifest.input.width


def routes() -> list[Route]:
    """Return the routes of the protocol."""
    model = "/v2/models/{name}"
    found = [
        endpoint("/v2", show_server),
        endpoint("/v2/health/live", live),
        endpoint("/v2/health/ready", ready),
    ]
    for path in (model, f"{model}/versions/{{version}}"):
        found += [
            endpoint(path, show_model),
            endpoint(f"{path}/ready", model_ready),
            endpoint(f"{path}/infer", infer, ["POST"]),
        ]
    return found
