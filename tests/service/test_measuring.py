"""Every request is counted by route and class of status, with its duration."""

import asyncio
import time

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.http.measuring import CLASSIFYING, Measured
from service.http.roles import NEEDS, route
from service.http.security import Gate
from service.metrics import Metrics
from service.prediction.batcher import Batcher, Logits
from tests.service.conftest import Labelled, Server, as_parts


def samples(text: str) -> dict[tuple[str, ...], float]:
    """The value of every sample by its name and the values of its labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def answer(request: Request) -> Response:
    wait, status = (
        float(request.query_params.get(name, default)) for name, default in (("wait", "0"), ("status", "200"))
    )
    await asyncio.sleep(wait)
    if status == 0:
        raise RuntimeError
    return Response(status_code=int(status))


def test_requests_are_counted_whoever_answers_them() -> None:
    metrics = Metrics(CollectorRegistry())
    inner = Starlette(routes=[Route("/predict", answer), Route("/v2/models/{name}", answer)])
    app = Measured(Gate(inner, allowed_hosts=frozenset(), on_refusal=lambda _: None), lambda: metrics)

    async def run() -> dict[tuple[str, ...], float]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in ("/predict", "/predict?status=422", "/v2/models/a", "/v2/models/b", "/no/such/page/of/x"):
                await client.get(path)
            await client.get("/predict", headers={"host": "evil.example"})
            slow = asyncio.create_task(client.get("/predict?wait=0.2"))
            await asyncio.sleep(0.1)
            found = samples(metrics.render().decode())
            await slow
            return found

    during = asyncio.run(run())
    after = samples(metrics.render().decode())
    assert during["saucier_requests_in_progress", "/predict"] == 1
    assert after["saucier_requests_in_progress", "/predict"] == 0
    assert after["saucier_requests_total", "/predict", "2xx"] == 2
    assert after["saucier_requests_total", "/predict", "4xx"] == 2
    assert after["saucier_requests_total", "/v2/models/{name}", "2xx"] == 2
    assert after["saucier_requests_total", "other", "4xx"] == 1
    assert after["saucier_request_seconds_count", "/predict"] == 4
    assert 0.2 <= after["saucier_request_seconds_sum", "/predict"] < 2


def test_request_that_ends_without_an_answer_is_counted() -> None:
    metrics = Metrics(CollectorRegistry())

    async def broken(*_: object) -> None:
        raise RuntimeError

    async def run() -> None:
        with pytest.raises(RuntimeError):
            await Measured(broken, lambda: metrics)({"type": "http", "path": "/predict"}, None, None)  # type: ignore[arg-type]

    asyncio.run(run())
    found = samples(metrics.render().decode())
    assert found["saucier_requests_total", "/predict", "none"] == 1
    assert found["saucier_requests_in_progress", "/predict"] == 0


def test_routes_have_names_for_what_is_variable() -> None:
    assert set(CLASSIFYING) <= NEEDS.keys()
    assert route("/v2/models/x/versions/7/infer") == "/v2/models/{name}/versions/{version}/infer"
    assert route("/deployments/x") == "/deployments/{name}"
    assert route("/predict") == "/predict"
    assert route("/predict/x") is None


def test_images_that_wait_for_their_batch_are_counted() -> None:
    metrics = Metrics(CollectorRegistry()).of("a")
    seen = []

    def run(images: np.ndarray) -> Logits:
        seen.append(metrics.queued._value.get())
        return np.zeros((len(images), 3), dtype=np.float32)

    async def ask() -> None:
        batcher = Batcher[np.uint8](
            run,
            max_batch=4,
            max_waiting=100,
            executor=None,  # type: ignore[arg-type]  # runs are short
            seconds_per_image=0,
            observe=lambda *_: None,
            queued=metrics.queued.inc,
        )
        images = [np.zeros((2, 2, 3), dtype=np.uint8)] * 3
        await asyncio.gather(*(batcher.submit(images) for _ in range(3)))

    asyncio.run(ask())
    assert seen == [6, 3, 0]


@pytest.mark.e2e
def test_server_shows_requests_of_all_workers(server: Server, labelled: Labelled) -> None:
    def shown() -> dict[tuple[str, ...], float]:
        return samples(server.client.get("/metrics").text)

    before = shown()
    start = time.monotonic()
    for _ in range(6):  # each on a connection of its own, so on either worker
        httpx.post(f"{server.url}/predict", files=as_parts(labelled.files[:3]), timeout=60)
    httpx.post(f"{server.url}/predict", files=as_parts([b"none"]), timeout=60)
    took, after = time.monotonic() - start, shown()

    def grown(*key: str) -> float:
        return after.get(key, 0) - before.get(key, 0)

    assert grown("saucier_requests_total", "/predict", "2xx") == 6
    assert grown("saucier_requests_total", "/predict", "4xx") == 1
    assert grown("saucier_request_seconds_count", "/predict") == 7
    assert 0 < grown("saucier_request_seconds_sum", "/predict") <= took
    assert grown("saucier_decode_seconds_count", "default") == 6
    assert after["saucier_queued_images", "default"] == 0
    assert after["saucier_requests_in_progress", "/predict"] == 0
    assert after["saucier_requests_in_progress", "/metrics"] == 1
