import asyncio
import json
from pathlib import Path

import pytest
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.client import hammer, multipart, post_request
from benchmarks.pictures import jpegs
from benchmarks.search.__main__ import Search
from benchmarks.serving.__main__ import Serving
from benchmarks.swap.__main__ import Swap
from training.images import decode


def test_pictures_are_different_jpegs_of_the_size_asked_for() -> None:
    files = jpegs(5, 32, 48, seed=0)
    assert len(set(files)) == 5
    assert decode(files[0]).shape == (32, 48, 3)
    assert files == jpegs(5, 32, 48, seed=0)


def test_the_search_benchmark_measures_every_candidate(tiny_base_set: Path) -> None:
    threads = torch.get_num_threads()
    try:
        data = Search(base=tiny_base_set, n=8, repeats=1, threads=1).execute().data
    finally:
        torch.set_num_threads(threads)
    assert (data["soups"], data["n"]) == (149, 8)
    assert set(data["seconds"]) == {"search", "auto", "forwards", "naive"}
    assert data["search_over_forwards"] > 0
    assert data["naive_over_auto"] > 0
    assert data["auto_share_of_grid"] <= 24 / 149


def test_the_client_counts_answers_and_failures() -> None:
    """Against a real server in this process."""
    import uvicorn

    calls: list[int] = []

    async def answer(request: Request) -> JSONResponse:
        calls.append(len(await request.body()))
        return JSONResponse({"version": len(calls)}, status_code=503 if len(calls) % 5 == 0 else 200)

    async def scenario() -> None:
        app = Starlette(routes=[Route("/predict", answer, methods=["POST"])])
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        body, media_type = multipart([b"abc", b"de"])
        versions: list[int] = []
        load = await hammer(
            port,
            [post_request("/predict", body, media_type, port)],
            concurrency=3,
            seconds=0.3,
            on_answer=lambda sent, received, content: versions.append(json.loads(content)["version"]),
        )
        server.should_exit = True
        await task
        assert set(calls) == {len(body)}
        assert len(load.latencies) == len(versions)
        assert len(load.failed) == len(calls) // 5
        assert len(load.latencies) + len(load.failed) == len(calls)
        assert load.percentile_ms(50) <= load.percentile_ms(99)

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.e2e
def test_the_serving_benchmark_runs(tiny_base_set: Path) -> None:
    data = Serving(base=tiny_base_set, concurrency=(2,), rounds=1, seconds=0.5).execute().data
    (row,) = data["rows"]
    assert min(row[name]["per_second"] for name in ("bare", "service", "service_multipart")) > 0


@pytest.mark.slow
@pytest.mark.e2e
def test_the_swap_benchmark_loses_no_request(tiny_base_set: Path) -> None:
    data = Swap(base=tiny_base_set, swaps=3, pause=0.5).execute().data
    assert (data["failed"], data["late_answers"]) == (0, 0)
    assert data["requests"] > 10
