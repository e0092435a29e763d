"""The app that BentoML mounts: its routes, and the endpoints around images, jobs and the service itself."""

import asyncio
import gc
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from service.http import deployments, samples
from service.http.adaptation import (
    BALANCES,
    CHOICES,
    DRAWS,
    EFFORTS,
    MAX_WAIT_SECONDS,
    PROMOTES,
    STRATEGIES,
    Upload,
    read_upload,
)
from service.http.answers import predictions_json
from service.http.bento_client import client_schema
from service.http.classifying import classify
from service.http.console import console
from service.http.context import Context, caller, endpoint, json_response, key_counts, refuse, require
from service.http.docs_page import docs_page
from service.http.inference.routes import routes as inference_routes
from service.http.inflight import unless_gone
from service.http.openapi import openapi_document
from service.http.problems import Problem, invalid
from service.http.queries import Query
from service.http.schemas import Bases, JobView
from service.http.trial import predict_with_version
from service.http.uploads import media_type, read_body, read_images, read_multipart, unsupported
from service.http.views import base_view, job_view
from service.prediction.predictor import DEFAULT
from service.store.intake import Wanted
from service.store.jobs import landscape_of
from service.store.tables import Job

EVENT_SECONDS = 0.25  # between two looks at a job that somebody follows
QUIET_SECONDS = 15  # after which a comment keeps the stream open


async def predict(context: Context, request: Request) -> Response:
    """`POST /predict`."""
    query = Query(request, ("deployment", "top_k"))
    name = query.text("deployment", DEFAULT)
    top_k = query.integer("top_k", 3, low=1)
    loaded = await context.loaded(request, name)
    files = await read_images(request, context.settings, context.threads.ordinary)
    images, probabilities = await classify(context, request, loaded, files)
    context.predictor.reservoirs.offer(name, images)
    loaded.metrics.images.inc(len(images))
    best = probabilities.max(axis=1)
    for confidence in best.tolist():
        loaded.metrics.confidence.observe(confidence)
    context.predictor.confidences.offer(loaded.pointer, best)
    class_names = loaded.base.manifest.class_names
    body = predictions_json(name, loaded.pointer.version, probabilities, class_names, top_k=top_k)
    return Response(body, media_type="application/json")


async def adapt(context: Context, request: Request) -> Response:
    """`POST /adapt`."""
    query = Query(request, ("deployment", "strategy", "promote", "wait", "samples", "balance", "effort", "draw"))
    name = query.text("deployment", DEFAULT)
    strategy = query.choice("strategy", STRATEGIES)
    promote = query.choice("promote", PROMOTES)
    if promote == "always":
        require(request, "admin", "promote=always")
    wait = query.number("wait", 30, low=0, high=MAX_WAIT_SECONDS)
    choice = query.choice("samples", CHOICES)
    balance, draw = query.choice("balance", BALANCES), query.choice("draw", DRAWS)
    effort = query.choice("effort", EFFORTS)
    base = context.catalog[(await context.pointer(request, name)).base_set]
    await context.adaptation.check_room()
    upload = await _read_upload(context, request, may_be_empty=query.has("samples"))
    deadline = time.monotonic() + wait
    is_unlabelled = choice == "new" and bool(upload.unlabelled) and not upload.is_labelled
    if is_unlabelled and not context.predictor.has_statistics(base):
        raise invalid("unlabelled", "the base set has no channel statistics, so without labels nothing can be found")
    material = await unless_gone(request, context.adaptation.decode(upload, base.manifest, request.state.share))
    del upload  # while the job runs, nobody needs the files
    request.state.share.release()
    wanted = Wanted(name, material, choice, strategy, promote, balance, effort, caller(request), draw)
    submitted = await context.adaptation.submit(wanted, base.manifest)
    del material, wanted
    job, is_done = await context.adaptation.wait(submitted.job, deadline - time.monotonic())
    view = job_view(job)
    if submitted.changes.relabelled:  # the job may be an earlier one
        view = view.model_copy(update={"samples": submitted.changes})
    if is_done:
        return json_response(view)
    return json_response(view, 202, {"Location": f"/jobs/{job.id}"})


async def _read_upload(context: Context, request: Request, *, may_be_empty: bool) -> Upload:
    """Return what a body has; there need not be one if the request says which kept samples it means."""
    if media_type(request) == "multipart/form-data":
        parts = await read_multipart(request, context.settings, context.threads.uploads)
        return read_upload(parts, context.settings, may_be_empty=may_be_empty)
    if not may_be_empty or media_type(request) or await read_body(request, context.settings):
        raise unsupported(request, "multipart/form-data")
    return read_upload([], context.settings, may_be_empty=may_be_empty)


async def one_job(context: Context, request: Request) -> Response:
    """`/jobs/{id}`: look at it, or end it."""
    if request.method != "DELETE":
        return json_response(job_view(await _job(context, request)))
    job = _found(await asyncio.to_thread(context.jobs.cancel, request.path_params["id"], who=caller(request)))
    await asyncio.to_thread(context.samples.discard, job)
    return json_response(job_view(job))


async def _job(context: Context, request: Request) -> Job:
    return _found(await asyncio.to_thread(context.jobs.get, request.path_params["id"]))


def _found(job: Job | None) -> Job:
    if job is None:
        raise Problem(404, "there is no such job", reason="unknown_job")
    return job


async def show_landscape(context: Context, request: Request) -> Response:
    """`GET /jobs/{id}/landscape`."""
    landscape = landscape_of(await _job(context, request))
    if landscape is None:
        raise Problem(404, "this job has no landscape: it had no labels, or the search is not over")
    return json_response(landscape)


async def follow_job(context: Context, request: Request) -> Response:
    """`GET /jobs/{id}/events`."""
    stream = _events(context, request, await _job(context, request))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _events(context: Context, request: Request, job: Job) -> AsyncIterator[str]:
    told, told_at = None, -math.inf
    while key_counts(request) and not context.adaptation.is_stopping:
        view = job_view(job)
        if job.is_finished:
            yield _event("done", view)
            return
        if view != told:
            yield _event("progress", view)
            told, told_at = view, time.monotonic()
        elif time.monotonic() - told_at > QUIET_SECONDS:
            yield ": still here\n\n"
            told_at = time.monotonic()
        await asyncio.sleep(EVENT_SECONDS)
        found = await asyncio.to_thread(context.jobs.get, job.id)
        if found is None:
            return
        job = found


def _event(name: str, view: JobView) -> str:
    return f"event: {name}\ndata: {view.model_dump_json()}\n\n"


async def show_bases(context: Context, _: Request) -> Response:
    """`GET /bases`."""
    return json_response(Bases(bases=[base_view(base.manifest) for base in context.catalog.values()]))


async def show_metrics(context: Context, _: Request) -> Response:
    """`GET /metrics`."""
    text = await asyncio.to_thread(context.metrics.render, context.predictor.deployments)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@cache
def _document() -> dict[str, Any]:
    return openapi_document()


async def openapi(_: Context, __: Request) -> Response:
    """`GET /openapi.json`."""
    return JSONResponse(_document())


async def schema(_: Context, __: Request) -> Response:
    """`GET /schema.json`."""
    return JSONResponse(client_schema())


async def docs(_: Context, __: Request) -> Response:
    """`GET /docs`."""
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy}
    return HTMLResponse(docs_page(_document()), headers=headers)


async def index(_: Context, __: Request) -> Response:
    """`GET /`: the name of the service, and where to read on."""
    links = {
        "console": "/ui",
        "docs": "/docs",
        "openapi": "/openapi.json",
        "deployments": "/deployments",
        "bases": "/bases",
    }
    return JSONResponse({"service": "saucier", "version": _document()["info"]["version"], **links})


async def _refuse(request: Request, error: Exception) -> Response:
    """Render what Starlette itself raises: no such route, no such method."""
    return refuse(request, error)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    context: Context = app.state.context
    await context.predictor.start()
    # What is alive now lives as long as the process. Collections that walk over it hold up every request by 0.1 s.
    gc.collect()
    gc.freeze()
    yield
    context.threads.close()
    await context.predictor.stop()


def create_app() -> Starlette:
    """Return the app that BentoML mounts; its `state.context` is set when the process makes its service."""
    routes = [
        endpoint("/predict", predict, ["POST"]),
        endpoint("/adapt", adapt, ["POST"], is_upload=True),
        endpoint("/jobs/{id}", one_job, ["GET", "DELETE"]),
        endpoint("/jobs/{id}/events", follow_job),
        endpoint("/jobs/{id}/landscape", show_landscape),
        endpoint("/deployments", deployments.list_deployments),
        endpoint("/deployments/{name}", deployments.one, ["GET", "PUT", "DELETE"]),
        endpoint("/deployments/{name}/soups", deployments.list_soups),
        endpoint("/deployments/{name}/samples", samples.samples, ["GET", "DELETE"]),
        endpoint("/deployments/{name}/events", deployments.list_events),
        endpoint("/deployments/{name}/soups/{version}/predict", predict_with_version, ["POST"]),
        endpoint("/deployments/{name}/jobs", deployments.list_jobs),
        endpoint("/deployments/{name}/soup", deployments.set_soup, ["PUT"]),
        endpoint("/deployments/{name}/watch", deployments.watch, ["PUT", "DELETE"]),
        endpoint("/deployments/{name}/reservoir", deployments.reservoir, ["PUT", "DELETE"]),
        endpoint("/bases", show_bases),
        endpoint("/metrics", show_metrics),
        endpoint("/openapi.json", openapi),
        endpoint("/schema.json", schema),
        endpoint("/docs", docs),
        endpoint("/ui", console),
        endpoint("/ui/{file}", console),
        endpoint("/", index),
        *inference_routes(),
    ]
    return Starlette(routes=routes, lifespan=_lifespan, exception_handlers={HTTPException: _refuse})
