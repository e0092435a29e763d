"""A PostgreSQL that keeps its connections and answers nothing on them: whoever waits for it gives up and goes on."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from adapt.documents.soup import default_soup
from benchmarks.postgres import Postgres
from benchmarks.proxy import Proxy
from service.metrics import Metrics
from service.prediction.catalog import read_catalog
from service.prediction.predictor import DEFAULT, Predictor
from service.settings import Settings
from service.store import postgres as limits
from service.store.database import UNAVAILABLE, Database
from service.store.registry import Registry
from tests.service.conftest import Labelled, Server, as_parts


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[Proxy]:
    with Proxy(postgres.port) as proxy:
        yield proxy


def through(proxy: Proxy, url: str, postgres: Postgres) -> str:
    return url.replace(f":{postgres.port}/", f":{proxy.port}/")


@pytest.fixture
def proxied(proxy: Proxy, postgres: Postgres, postgres_url: str) -> str:
    """The URL of a registry behind the proxy."""
    return through(proxy, postgres_url, postgres)


@pytest.fixture
def predictor(prebuilt_bases: Path, proxied: str, tmp_path: Path) -> Iterator[Predictor]:
    settings = Settings(
        home=tmp_path, bases=prebuilt_bases, base_set="tiny", poll_seconds=0.1, registry_max_age_seconds=2
    )
    catalog = read_catalog(prebuilt_bases, check_files=False)
    with closing(Database(proxied)) as database:
        registry = Registry(database)
        registry.ensure_deployment(DEFAULT, default_soup(catalog["tiny"].manifest))
        yield Predictor(settings, catalog, registry, Metrics(CollectorRegistry()))


def test_silent_connections_are_replaced_at_the_next_look(proxy: Proxy, predictor: Predictor) -> None:
    async def scenario() -> float:
        await predictor.refresh()
        proxy.silence()
        start = time.monotonic()
        await asyncio.wait_for(predictor.refresh(), 30)
        return time.monotonic() - start

    assert asyncio.run(scenario()) < limits.PING_SECONDS + 3


def test_statement_whose_answer_never_comes_ends(proxy: Proxy, proxied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ANSWER_SECONDS", 1.0)
    with closing(Database(proxied)) as database, database.read() as session:
        session.execute(text("SELECT 1"))
        proxy.silence()
        start = time.monotonic()
        with pytest.raises(UNAVAILABLE, match="did not answer for 1 s"):
            session.execute(text("SELECT 1"))
        assert time.monotonic() - start < 5
    with closing(Database(proxied)) as database, database.read() as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_slow_statement_is_ended_by_the_server(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STATEMENT_SECONDS", 1)
    with (
        closing(Database(postgres_url)) as database,
        database.read() as session,
        pytest.raises(UNAVAILABLE, match="statement timeout"),
    ):
        session.execute(text("SELECT pg_sleep(20)"))


def test_long_answers_are_not_cut_while_they_come(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ANSWER_SECONDS", 0.5)
    with closing(Database(postgres_url)) as database, database.read() as session:
        rows = session.scalars(text("SELECT repeat('x', 1000) FROM generate_series(1, 20000)")).all()
        assert len(rows) == 20_000


def test_connections_are_bounded_and_waits_for_one_end(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECT_SECONDS", 2)
    with closing(Database(postgres_url, connections=2)) as database:

        def hold(_: int) -> str:
            with database.read() as session:
                try:
                    session.execute(text("SELECT pg_sleep(3)"))
                except UNAVAILABLE as error:
                    return type(error).__name__
                return "answer"

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(hold, range(4))) == ["TimeoutError", "TimeoutError", "answer", "answer"]


def test_readiness_falls_with_the_age_of_the_registry_and_comes_back(
    proxy: Proxy, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECT_SECONDS", 2)

    async def becomes(expected: bool, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while predictor.are_all_ready is not expected:
            assert time.monotonic() < deadline, expected
            await asyncio.sleep(0.05)

    async def scenario() -> None:
        await predictor.start()
        await becomes(True, 20)
        proxy.silence(new_ones=True)
        await becomes(False, 10)
        assert predictor.is_ready  # it serves on
        proxy.recover()
        await becomes(True, 20)
        await predictor.stop()

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.e2e
def test_server_goes_on_when_its_connections_fall_silent(
    prebuilt_bases: Path, proxy: Proxy, postgres: Postgres, labelled: Labelled, tmp_path: Path
) -> None:
    """The fault: predictors waited for answers for over a minute, without a heartbeat, yet called themselves ready.

    Then new connections are silent, too: predictors serve on, but are not ready until that is over.
    """
    url = through(proxy, postgres.empty("silent"), postgres)
    server = Server(tmp_path / "home", prebuilt_bases, BASE_SET="tiny", DATABASE_URL=url, REGISTRY_MAX_AGE_SECONDS="5")

    def is_ready() -> int:
        return httpx.get(f"{server.url}/readyz", timeout=30).status_code

    try:
        server.start()
        proxy.silence()
        start = time.monotonic()
        time.sleep(1)
        server.wait_for(lambda: len(server.live_workers()) == 2, "heartbeats", 60)
        assert time.monotonic() - start < 30
        assert server.client.get("/readyz").status_code == 200
        promoted = server.client.post("/adapt", **labelled.request(0, 100)).json()
        assert promoted["state"] == "promoted"
        ages = [line for line in httpx.get(f"{server.url}/metrics").text.splitlines() if "registry_age" in line]
        values = [float(line.split()[-1]) for line in ages if not line.startswith("#")]
        assert len(values) == 2
        assert max(values) < 10
        proxy.silence(new_ones=True)
        server.wait_for(lambda: is_ready() == 503, "fall of readiness", 60)
        answer = httpx.post(f"{server.url}/predict", files=as_parts(labelled.files[:1]), timeout=30)
        assert (answer.status_code, answer.json()["version"]) == (200, promoted["version"])
        proxy.recover()
        server.wait_for(lambda: is_ready() == 200, "readiness", 60)
    finally:
        assert server.stop() == 0
