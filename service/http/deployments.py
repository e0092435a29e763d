"""The endpoints below `/deployments`: make, look, go back, dial, keep recent images, delete."""

import asyncio
import re
import time

from starlette.requests import Request
from starlette.responses import Response

from adapt.documents.soup import Soup, SoupError, check_soup, default_soup, make_soup
from deploy.runtime import UnusableSoup
from service.http.context import Context, caller, checked, json_response
from service.http.problems import Problem, invalid, unavailable
from service.http.queries import Query
from service.http.schemas import (
    DEPLOYMENT_NAME,
    DEPLOYMENT_NAME_RULE,
    MAX_COEFFICIENT,
    PAGES,
    DeploymentEntry,
    Deployments,
    Events,
    Jobs,
    NewDeployment,
    NewReservoir,
    NewSoup,
    NewWatch,
    ReservoirView,
    Soups,
)
from service.http.uploads import read_json
from service.http.views import deployment_view, event_view, job_view, soup_view, watch_view
from service.prediction.catalog import Base
from service.prediction.predictor import DEFAULT
from service.prediction.reservoir import count_kept, delete_reservoir, most_images
from service.store.jobs import UnknownJob
from service.store.moves import Move
from service.store.references import info_of
from service.store.tables import Deployment
from service.store.transactions import UnknownDeployment, plan_of
from training.nearest import meant

ROLLOUT_SECONDS = 10  # how long a rollback or the dial waits for the workers before it answers 202


async def list_deployments(context: Context, request: Request) -> Response:
    """`GET /deployments`."""
    query = Query(request, ("limit", "before"))
    limit, before = query.limit(*PAGES["deployments"]), query.text("before", "") if query.has("before") else None
    rows = await asyncio.to_thread(context.registry.deployments, limit=limit + 1, before=before)
    page = [DeploymentEntry(deployment=row.name, base_set=row.base_set, version=row.version) for row in rows[:limit]]
    return json_response(Deployments(deployments=page, next=page[-1].deployment if len(rows) > limit else None))


async def one(context: Context, request: Request) -> Response:
    """`/deployments/{name}`, whatever the method."""
    if request.method == "PUT":
        return await make(context, request)
    if request.method == "DELETE":
        return await delete(context, request)
    return await asyncio.to_thread(_answer, context, request.path_params["name"], 200)


def _answer(context: Context, name: str, status: int) -> Response:
    found, moved = context.registry.deployment_moved(name)
    soup = context.registry.soup_version(name, found.version)
    workers = context.registry.workers_of(name, found.uid, stale_seconds=context.settings.stale_seconds)
    seen = context.watches.status(name) if found.watch is not None else None
    watched = None if seen is None else watch_view(seen)
    view = deployment_view(found, moved, soup, workers, _reservoir_view(context, found), watched)
    return json_response(view, status)


def _reservoir_view(context: Context, found: Deployment) -> ReservoirView | None:
    plan, base = plan_of(found), context.catalog.get(found.base_set)
    if plan is None:
        return None
    kept = 0 if base is None else count_kept(context.settings, plan, base.manifest.input)
    return ReservoirView(size=plan.size, retention_hours=plan.retention_hours, kept=kept)


async def make(context: Context, request: Request) -> Response:
    """`PUT /deployments/{name}`."""
    name = request.path_params["name"]
    if not re.fullmatch(DEPLOYMENT_NAME, name):
        raise invalid("name", f"expected a name of {DEPLOYMENT_NAME_RULE}, got {name[:80]!r}")
    wanted = checked(NewDeployment, await read_json(request, context.settings)).base_set
    if wanted not in context.catalog:
        raise invalid(
            "base_set",
            f"expected one of {sorted(context.catalog)}, got {wanted[:80]!r}{meant(wanted, context.catalog)}",
        )
    soup = default_soup(context.catalog[wanted].manifest)
    is_new = await asyncio.to_thread(context.registry.ensure_deployment, name, soup, who=caller(request))
    await context.predictor.refresh()
    return await asyncio.to_thread(_answer, context, name, 201 if is_new else 200)


async def delete(context: Context, request: Request) -> Response:
    """`DELETE /deployments/{name}`."""
    name = request.path_params["name"]
    if name == DEFAULT:
        raise Problem(409, f"the deployment {DEFAULT!r} cannot be deleted")
    found = await asyncio.to_thread(context.registry.deployment, name)
    plan = plan_of(found)
    await asyncio.to_thread(context.samples.remove, name, who=caller(request))  # here a failing store is told
    jobs = await asyncio.to_thread(context.registry.delete_deployment, name, who=caller(request))
    await asyncio.to_thread(context.samples.forget, found.uid, jobs)
    await asyncio.to_thread(context.references.forget, info_of(found))
    if plan is not None:
        await asyncio.to_thread(delete_reservoir, context.settings, plan.id)
    await context.predictor.refresh()
    return Response(status_code=204)


async def reservoir(context: Context, request: Request) -> Response:
    """`/deployments/{name}/reservoir`: keep a sample of recent images, or keep none and delete what there is."""
    name = request.path_params["name"]
    if request.method == "DELETE":
        before = await asyncio.to_thread(context.registry.clear_reservoir, name, who=caller(request))
        status = 204
    else:
        found = await asyncio.to_thread(context.registry.deployment, name)
        wanted = checked(NewReservoir, await read_json(request, context.settings))
        if found.base_set not in context.catalog:
            raise unavailable("the base set of the deployment is not there")
        limit = most_images(context.settings, context.catalog[found.base_set].manifest.input)
        if wanted.size > limit:
            raise invalid("size", f"expected at most {limit} images (SAUCIER_MAX_RESERVOIR_MB), got {wanted.size}")
        plan, before = await asyncio.to_thread(
            context.registry.set_reservoir, name, wanted.size, wanted.retention_hours, who=caller(request)
        )
        status = 201 if before is None else 200
        before = None if before == plan else before
    await context.predictor.refresh()
    if before is not None:
        await asyncio.to_thread(delete_reservoir, context.settings, before.id)
    return Response(status_code=204) if status == 204 else await asyncio.to_thread(_answer, context, name, status)


async def watch(context: Context, request: Request) -> Response:
    """`/deployments/{name}/watch`: go back by itself when a promotion turns out badly, or do not."""
    name = request.path_params["name"]
    if request.method == "DELETE":
        await asyncio.to_thread(context.watches.switch_off, name, who=caller(request))
        await context.predictor.refresh()
        return Response(status_code=204)
    await asyncio.to_thread(context.registry.deployment, name)
    wanted = checked(NewWatch, await read_json(request, context.settings))
    numbers = (wanted.min_images, wanted.confidence_drop)
    is_new = await asyncio.to_thread(context.watches.switch_on, name, *numbers, who=caller(request))
    await context.predictor.refresh()
    return await asyncio.to_thread(_answer, context, name, 201 if is_new else 200)


async def list_soups(context: Context, request: Request) -> Response:
    """`GET /deployments/{name}/soups`."""
    name = request.path_params["name"]
    query = Query(request, ("limit", "before"))
    limit, before = query.limit(*PAGES["soups"]), query.integer("before", 0, low=1) or None
    found = await asyncio.to_thread(context.registry.deployment, name)
    rows = await asyncio.to_thread(context.registry.soups, name, limit=limit + 1, before=before)
    page = [soup_view(row, found.version) for row in rows[:limit]]
    return json_response(Soups(deployment=name, soups=page, next=page[-1].version if len(rows) > limit else None))


async def list_events(context: Context, request: Request) -> Response:
    """`GET /deployments/{name}/events`: also those of a deployment that is gone."""
    name = request.path_params["name"]
    query = Query(request, ("limit", "before"))
    limit, before = query.limit(*PAGES["events"]), query.integer("before", 0, low=1) or None
    rows = await asyncio.to_thread(context.registry.events, name, limit=limit + 1, before=before)
    if not rows:
        any_at_all = [] if before is None else await asyncio.to_thread(context.registry.events, name, limit=1)
        if not any_at_all:
            raise UnknownDeployment(name)
    page = [event_view(row) for row in rows[:limit]]
    return json_response(Events(deployment=name, events=page, next=page[-1].seq if len(rows) > limit else None))


async def list_jobs(context: Context, request: Request) -> Response:
    """`GET /deployments/{name}/jobs`."""
    query = Query(request, ("limit", "before"))
    limit, before = query.limit(*PAGES["jobs"]), query.text("before", "") if query.has("before") else None
    name = request.path_params["name"]
    try:
        rows = await asyncio.to_thread(context.jobs.latest, name, limit=limit + 1, before=before)
    except UnknownJob:
        raise Problem(404, "before: expected a job of this deployment, the last of the page before") from None
    page = [job_view(row) for row in rows[:limit]]
    return json_response(Jobs(deployment=name, jobs=page, next=page[-1].job if len(rows) > limit else None))


async def set_soup(context: Context, request: Request) -> Response:
    """`PUT /deployments/{name}/soup`: a rollback or the dial."""
    name = request.path_params["name"]
    found = await asyncio.to_thread(context.registry.deployment, name)
    wanted = checked(NewSoup, await read_json(request, context.settings))
    if (wanted.version is None) == (wanted.coefficients is None):
        raise invalid("body", "expected either version or coefficients")
    if found.base_set not in context.catalog:
        raise unavailable("the base set of the deployment is not there")
    await asyncio.to_thread(_change, context, name, wanted, caller(request))
    move = await asyncio.to_thread(context.registry.move, name)
    status = 200 if await _rolled_out(context, move) else 202
    return await asyncio.to_thread(_answer, context, name, status)


def _change(context: Context, name: str, wanted: NewSoup, who: str | None) -> None:
    """Check what is wanted and make it current."""
    registry = context.registry
    found = registry.deployment(name)
    base = context.catalog[found.base_set]
    expected = wanted.expected_version
    if wanted.version is not None:
        _check_servable(context, base, registry.soup(name, wanted.version))
        registry.point_at(name, wanted.version, expected_version=expected, who=who)
    else:
        current = registry.soup(name, found.version)
        if current.base_digest != base.manifest.digest:
            raise Problem(409, f"version {found.version} was made for other weights than this worker has")
        soup = _dialled(base, wanted.coefficients or {}, current)
        _check_servable(context, base, soup)
        registry.dial(name, soup, expected_version=expected, who=who)


def _check_servable(context: Context, base: Base, soup: Soup) -> None:
    """Build the soup's network once, here, before anyone is told to serve it.

    Raises:
        Problem: 409 it belongs to other weights, 422 its logits are not finite.
    """
    try:
        check_soup(soup, base.manifest)
        context.predictor.build(base, soup)
    except SoupError:
        raise Problem(409, "that version was made for other weights than those of the base set now") from None
    except UnusableSoup as error:
        raise invalid("coefficients", str(error)) from None


def _dialled(base: Base, coefficients: dict[str, float], current: Soup) -> Soup:
    """Return the soup of coefficients set by hand; BatchNorm mode and temperature stay as in the current one.

    Its patch does not: statistics and last layer were estimated for other coefficients. Without its statistics, the raw
    mode would mix those of the ingredients, so the soup is folded then.

    Raises:
        Problem: 422 naming the coefficient.
    """
    for name, value in coefficients.items():
        if abs(value) > MAX_COEFFICIENT:
            limit = f"expected a value within [-{MAX_COEFFICIENT:g}, {MAX_COEFFICIENT:g}], got {value}"
            raise invalid(f"coefficients.{name[:80]}", limit)
    try:
        is_recalibrated = current.patch is not None and current.patch.recalibrated > 0
        bn_mode = "folded" if is_recalibrated else current.bn_mode
        return make_soup(base.manifest, coefficients, bn_mode=bn_mode, temperature=current.temperature)
    except ValueError as error:
        raise invalid("coefficients", str(error)) from None


async def _rolled_out(context: Context, move: Move) -> bool:
    deadline = time.monotonic() + ROLLOUT_SECONDS
    while not await context.adaptation.is_rolled_out(move):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(0.05)
    return True
