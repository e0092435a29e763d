"""The adapter and what passes: a store or a database that is away, a search that takes too long, or hangs."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeout

from adapt.networks.network import Cancelled
from benchmarks.postgres import Postgres
from benchmarks.proxy import Proxy
from service.adapter import heartbeat as heartbeats
from service.adapter.heartbeat import Heartbeat
from service.store import postgres as limits
from service.store.tables import Job
from tests.service.test_held_out import Site


@pytest.fixture
def site(tmp_path: Path, tiny_base_set: Path, sqlite_url: str) -> Iterator[Site]:
    site = Site(tmp_path, tiny_base_set, sqlite_url)
    yield site
    site.database.close()


def later(seconds: float, action: Callable[[], Any]) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def limited(site: Site, **settings: float) -> None:
    site.loop._settings = site.settings.model_copy(update={"heartbeat_seconds": 0.05, **settings})


def searching(site: Site, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Callable[[], bool]], None]) -> None:
    """Do something before each search, as a part of it; it is told how to know when to stop."""
    find = site.searcher.find

    def longer(*arguments: Any, **named: Any) -> Any:
        meanwhile(named["should_stop"])
        return find(*arguments, **named)

    monkeypatch.setattr(site.searcher, "find", longer)


def ended(site: Site) -> Job:
    """Send images, let the adapter work on their job, and return it, however it ended."""
    with pytest.raises(AssertionError):
        site.adapt(range(20))
    (job,) = site.jobs.latest("default", limit=1)
    return job


def test_store_that_fails_for_a_while_costs_no_job(site: Site, tmp_path: Path) -> None:
    submit = site.intake.submit

    def submit_and_break(*arguments: Any) -> Any:
        """Put a folder in the place of the pack, which no read gets through, for two seconds."""
        submitted = submit(*arguments)
        (pack,) = (tmp_path / "objects").rglob("*.npz")
        away = pack.rename(pack.with_suffix(".away"))
        pack.mkdir()
        later(2, lambda: (pack.rmdir(), away.rename(pack)))
        return submitted

    site.intake.submit = submit_and_break  # type: ignore[method-assign]
    job = site.adapt(range(20))
    assert job.attempts == 1


def test_database_that_is_away_for_a_while_costs_no_job(
    postgres: Postgres, postgres_url: str, tiny_base_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(limits, "PING_SECONDS", 0.5)
    monkeypatch.setattr(limits.BoundedConnection, "patience", 0.5)
    with Proxy(postgres.port) as proxy:
        site = Site(tmp_path, tiny_base_set, postgres_url.replace(f":{postgres.port}/", f":{proxy.port}/"))

        def silence(_: object) -> None:
            proxy.silence(new_ones=True)
            later(5, proxy.recover)

        searching(site, monkeypatch, silence)
        job = site.adapt(range(20))
        assert job.attempts == 1
        site.database.close()


def test_heartbeat_survives_whatever_it_is_answered() -> None:
    faults = iter([PoolTimeout("no connection"), RuntimeError("unexpected"), None])
    beaten = threading.Event()

    def beat(*_: object) -> bool:
        if (fault := next(faults, None)) is not None:
            raise fault
        beaten.set()
        return True

    with Heartbeat(beat, lambda: None, seconds=0.02, limit_seconds=60) as heartbeat:
        assert beaten.wait(10)
        assert not heartbeat.should_stop


def wait_for_stop(should_stop: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not should_stop():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    raise Cancelled


def test_job_that_takes_too_long_fails_with_a_plain_reason(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    searching(site, monkeypatch, wait_for_stop)
    limited(site, job_timeout_seconds=0.5)
    job = ended(site)
    assert (job.state, job.version) == ("failed", 1)
    assert job.reason == "the job took longer than 0.5 s (SAUCIER_JOB_TIMEOUT_SECONDS)"


def test_cancelled_search_stops(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    searching(site, monkeypatch, wait_for_stop)
    limited(site)
    later(1, lambda: site.jobs.cancel(site.jobs.latest("default", limit=1)[0].id))
    job = ended(site)
    assert (job.state, job.reason) == ("failed", "cancelled")


def test_search_that_hangs_ends_its_process_and_its_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    exited = threading.Event()
    monkeypatch.setattr(heartbeats, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(os, "_exit", lambda _: exited.set())
    limited(site, job_timeout_seconds=0.3)

    def hang(_: object) -> None:
        assert exited.wait(30)
        raise Cancelled  # the process is gone

    searching(site, monkeypatch, hang)
    job = ended(site)
    assert (job.state, job.claimed_by) == ("failed", "me")
    assert "took longer than 0.3 s" in str(job.reason)
