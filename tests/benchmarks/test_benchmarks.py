import asyncio
import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.guard.__main__ import Guard
from benchmarks.guard.trials import spoiled
from benchmarks.load.__main__ import LoadTest
from benchmarks.load.story import Promises
from benchmarks.pictures import jpegs, photographs
from benchmarks.postgres import binaries
from benchmarks.proxy import Proxy
from benchmarks.search.__main__ import Search
from benchmarks.serving.__main__ import Serving, ahead
from benchmarks.serving.rivals import plain_pixels
from benchmarks.swap.__main__ import Swap
from service.demo.client import hammer, multipart, post_request
from tests.conftest import CLASSES
from training.images import decode, load_image
from training.manifest import InputSpec


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
    assert data["auto_share_of_grid"] <= 40 / 149


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
            on_answer=lambda sent, received, content, _: versions.append(json.loads(content)["version"]),
        )
        sent = len(calls)
        slow = await hammer(
            port, [post_request("/predict", body, media_type, port)], concurrency=1, seconds=0.5, pause=0.2
        )
        server.should_exit = True
        await task
        assert set(calls) == {len(body)}
        assert len(load.latencies) == len(versions)
        assert len(load.failed) == sent // 5
        assert len(load.latencies) + len(load.failed) == sent
        assert 1 <= len(slow.latencies) + len(slow.failed) <= 3
        assert load.percentile_ms(50) <= load.percentile_ms(99)

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.e2e
def test_the_serving_benchmark_runs(tiny_base_set: Path) -> None:
    data = Serving(base=tiny_base_set, concurrency=(2,), rounds=1, seconds=0.5).execute().data
    (row,) = data["rows"]
    assert min(row[name]["per_second"] for name in ("bare", "service", "service_multipart")) > 0


def test_forms_are_measured_without_a_server() -> None:
    result = Serving(forms=True, rounds=1).execute()
    assert [(row["num_parts"], row["num_bytes"]) for row in result.data["forms"]] == [(1000, 2000), (300, 30_000)]
    assert all(0 < row["usual_ms"] < row["odd_ms"] for row in result.data["forms"])
    assert len(result.text.splitlines()) == 3


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.e2e
def test_the_serving_benchmark_sends_photographs(tiny_base_set: Path) -> None:
    result = Serving(base=tiny_base_set, photos=True, concurrency=(2,), rounds=1, seconds=0.5).execute()
    assert [row["pictures"] for row in result.data["rows"]] == ["12 MP", "1.2 MP", "500 px"]
    assert min(row["service"]["per_second"] for row in result.data["rows"]) > 0
    assert result.data["stage_us"]["12 MP"]["decode"] > result.data["stage_us"]["500 px"]["decode"]


def test_the_next_best_is_the_best_rival() -> None:
    cells = {"service": 30.0, "bare": 40.0, "fastapi": 5.0, "litserve": 6.0}
    row = {"pictures": "12 MP", "concurrency": 8} | {name: {"per_second": value} for name, value in cells.items()}
    assert ahead([row], ("fastapi", "litserve")) == {"12 MP": {"8": 5.0}}


def test_photographs_have_the_detail_of_photographs() -> None:
    first, second = photographs(2, 300, 420, seed=1)
    assert first != second
    assert (first, second) == tuple(photographs(2, 300, 420, seed=1))
    pixels = decode(first)
    assert pixels.shape == (300, 420, 3)
    assert 0.2 < len(first) / (300 * 420) < 0.6  # as cameras write; smooth pictures have a tenth of it


def test_rivals_that_leave_files_to_pillow_see_nearly_the_same_pixels() -> None:
    spec = InputSpec(height=64, width=64, mean=(0, 0, 0), std=(1, 1, 1), resize="crop")
    (file,) = photographs(1, 900, 1200, seed=2)
    for rule in ("crop", "stretch"):
        changed = spec.model_copy(update={"resize": rule})
        difference = np.abs(plain_pixels(file, changed).astype(int) - load_image(file, changed).pixels)
        assert 0 < difference.mean() < 0.8


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.e2e
def test_the_swap_benchmark_loses_no_request(tiny_base_set: Path) -> None:
    data = Swap(base=tiny_base_set, swaps=3, pause=0.5).execute().data
    assert (data["failed"], data["late_answers"]) == (0, 0)
    assert data["requests"] > 10


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.e2e
def test_nothing_is_lost_or_wrong_while_parts_are_killed(tiny_base_set: Path, tmp_path: Path) -> None:
    rows = [(label, number) for label in CLASSES for number in range(700)]
    for label, number in rows:
        place = tmp_path / "data" / "test" / label
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([number, len(label)]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    has_postgres = binaries() is not None
    test = LoadTest(
        base=tiny_base_set,
        data=tmp_path / "data",
        postgres=has_postgres,
        replicas=2 if has_postgres else 1,
        seconds=40,
        adapt_every=6,
        kill_every=13,
    )
    data = test.execute().data
    faults = ("failed", "wrong_answers", "lost_promotions", "broken_promises", "refused")
    assert {name: data[name] for name in faults} == dict.fromkeys(faults, 0), data
    assert data["worker_kills"] >= 2
    assert sum(data["heavy"].values()) == 8
    assert len(data["restarts_s"]) == (2 if has_postgres else 0)
    assert data["silences"] == (2 if has_postgres else 0)
    assert sum(data["jobs"].values()) >= 1


def test_a_promise_is_broken_by_older_answers_to_later_requests() -> None:
    promises = Promises()
    before = time.perf_counter()
    promises.check(before, 1)
    promises.add(3)
    promises.add(2)  # a slower answer to an earlier promotion takes nothing back
    for sent, version in ((before, 1), (time.perf_counter(), 3), (time.perf_counter(), 4)):
        promises.check(sent, version)
    assert (len(promises), promises.broken) == (2, 0)
    promises.check(time.perf_counter(), 2)
    assert promises.broken == 1


def test_a_silenced_connection_stays_open_and_a_new_one_works() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Proxy(server.getsockname()[1]) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client,
        server.accept()[0] as behind,
    ):
        client.sendall(b"one")
        assert behind.recv(10) == b"one"
        behind.sendall(b"two")
        assert client.recv(10) == b"two"
        proxy.silence()
        client.sendall(b"three")
        for side in (client, behind):
            side.settimeout(0.3)
            with pytest.raises(TimeoutError):
                side.recv(10)
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as another, server.accept()[0] as beside:
            another.sendall(b"four")
            assert beside.recv(10) == b"four"


@given(share=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_spoiled_labels_are_wrong_where_they_are_changed(share: float, seed: int) -> None:
    labels = np.arange(200) % 10
    flipped = spoiled(labels, "flips", share, 10, np.random.default_rng(seed))
    assert abs((flipped != labels).mean() - share) < 0.2
    poisoned = spoiled(labels, "poison", share, 10, np.random.default_rng(seed))
    changed = poisoned != labels
    assert changed.mean() == pytest.approx(round(share * 10) / 10)
    assert np.array_equal(poisoned[changed], (labels[changed] + 1) % 10)


@pytest.mark.slow
@pytest.mark.alone
def test_the_guard_benchmark_measures_and_goes_on(
    tiny_base_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.guard.__main__.SHARES", (0.0, 0.5))
    for label in CLASSES:
        place = tmp_path / "data" / "test" / label
        place.mkdir(parents=True)
        for number in range(260):
            pixels = np.random.default_rng([number, len(label)]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    asked = Guard(
        base=tiny_base_set,
        data=tmp_path / "data",
        populations=("fog",),
        n=20,
        draws=1,
        n_unseen=50,
        work=tmp_path / "work",
        out=tmp_path / "out",
    )
    data = asked.execute().data
    assert len(data["rows"]) == 2 * 2 * 2
    for row in data["rows"]:
        for regime in ("clean", "site"):
            assert row[regime]["promoted"] <= row["free"]["promoted"]
    assert (tmp_path / "out" / "guard.png").exists()
    (file,) = (tmp_path / "work").iterdir()
    before = file.stat().st_mtime_ns
    assert asked.execute().data["rows"] == data["rows"]
    assert file.stat().st_mtime_ns == before
