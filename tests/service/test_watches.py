"""Watches in the registry, on SQLite and PostgreSQL: what is put back, what is not, and that no report is lost."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import func, select

from service.adapter.watch import WatchLoop
from service.metrics import Metrics
from service.prediction.confidences import Confidences
from service.store.confidence import Tally
from service.store.database import Database
from service.store.jobs import JobQueue
from service.store.moves import Pointer
from service.store.rebasing import rebase
from service.store.registry import Registry
from service.store.repeats import SUPERSEDED
from service.store.sums import add_sums
from service.store.tables import WATCH, ConfidenceSum, Deployment, Event, Job, new_id
from service.store.transactions import UnknownDeployment
from service.store.watches import Rollback, Suspect, Watches, state_of
from tests.service.test_confidence import tally
from tests.service.test_registry import add, claimed, outcome, soup

HIGH, LOW = tally(np.full(60, 0.9)), tally(np.full(60, 0.3))
BATCHES = itertools.count(1)
BETTER = "version 1 before it is better"


@dataclass(frozen=True)
class Site:
    """A watched deployment, `default`, at version 1."""

    database: Database
    registry: Registry
    jobs: JobQueue
    watches: Watches

    @property
    def version(self) -> int:
        return self.registry.deployment("default").version

    @property
    def latest(self) -> Event:
        return self.registry.events("default", limit=1)[0]

    def report(self, sums: dict[int, Tally], worker: str = "w", deployment: str = "default") -> None:
        """What a worker's heartbeat brings."""
        watch = self.registry.snapshot().watches[deployment]
        confidences = {(watch, version): tally for version, tally in sums.items()}
        self.registry.beat_worker(
            worker, pid=1, host="h", provider=None, loaded={}, batch=next(BATCHES), confidences=confidences
        )

    def pending(self) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(ConfidenceSum)) or 0

    def suspect(self) -> Suspect:
        found = self.watches.suspect("default")
        assert found is not None
        return found

    def finish(self, state: str, rollback: Rollback | None) -> Job:
        add(self.jobs, new_id())
        found = soup(0.125)
        finished = self.jobs.finish(claimed(self.jobs), found, outcome(found, state), rollback=rollback)
        assert finished is not None
        return finished


@pytest.fixture
def site(database: Database) -> Site:
    site = Site(database, Registry(database), JobQueue(database), Watches(database))
    site.registry.ensure_deployment("default", soup(1.0))
    assert site.watches.switch_on("default", 50, 0.2)
    return site


def test_confidence_that_collapses_puts_the_version_before_back(site: Site) -> None:
    site.report({1: HIGH})
    site.registry.dial("default", soup(0.5))
    assert site.watches.judge("default") is None
    site.report({2: LOW})
    assert site.watches.waiting() == ["default"]
    rollback = site.watches.judge("default")
    assert rollback is not None
    assert (site.version, site.watches.waiting(), site.pending()) == (1, [], 0)
    event = site.latest
    assert (event.kind, event.who, event.from_version, event.to_version) == ("rollback", WATCH, 2, 1)
    assert event.reason == rollback.reason
    assert "mean 0.300 over the last 60 images of version 2, 0.900 over the last 60 of version 1" in rollback.reason
    assert [row.reason for row in site.registry.events("default", limit=9)][1:] == [
        None,
        "from 50 images, fall of confidence 0.2",
        None,
    ]


def test_what_went_back_stays_and_what_is_put_forward_again_starts_anew(site: Site) -> None:
    site.report({1: HIGH})
    site.registry.dial("default", soup(0.5))
    site.report({2: LOW})
    assert site.watches.judge("default") is not None
    for _ in range(3):  # the version that came back does just as badly: there is nowhere to go
        site.report({1: LOW, 2: HIGH})
        assert site.watches.judge("default") is None
        assert site.watches.suspect("default") is None
    site.report({1: HIGH.plus(HIGH).plus(HIGH)})
    assert site.watches.judge("default") is None
    site.registry.point_at("default", 2)
    assert site.watches.judge("default") is None  # what was seen of it before counts no more
    assert (site.version, site.suspect()[:2]) == (2, (2, 1))
    site.report({2: LOW._replace(n=40)})
    assert site.watches.judge("default") is None
    site.report({2: LOW})
    assert site.watches.judge("default") is not None
    assert site.version == 1


def test_a_promotion_in_between_wins(site: Site) -> None:
    site.report({1: HIGH})
    site.registry.dial("default", soup(0.5))
    site.report({2: LOW})
    site.registry.dial("default", soup(0.25))
    assert site.watches.judge("default") is None
    assert site.version == 3
    state = state_of(site.registry.deployment("default"))
    assert state is not None
    assert (state.version, state.against, state.before) == (3, 2, LOW)  # which version 3 has replaced
    site.report({3: LOW})
    assert site.watches.judge("default") is None
    assert site.version == 3


def test_who_is_judged(site: Site) -> None:
    assert site.watches.suspect("default") is None  # version 1 replaced nothing
    site.registry.dial("default", soup(0.5))
    assert site.suspect()[:2] == (2, 1)
    promoted = site.finish("promoted", None)
    assert site.suspect()[:2] == (promoted.version, 2)
    assert site.suspect().since == site.latest.at
    site.registry.point_at("default", 1)  # a way back
    assert site.watches.suspect("default") is None
    site.registry.point_at("default", 2)  # put forward by hand
    assert site.suspect()[:2] == (2, 1)
    rebase(site.database, {"tiny": soup(1.0, digest="b" * 64)}, stale_seconds=60)
    assert site.watches.suspect("default") is None  # coefficients of before mean nothing now
    with pytest.raises(UnknownDeployment):
        site.watches.suspect("nowhere")


def test_labelled_images_put_the_version_before_back_and_the_job_says_so(site: Site) -> None:
    site.registry.dial("default", soup(0.5))
    finished = site.finish("kept", Rollback(site.suspect(), BETTER))
    assert (finished.state, finished.version, finished.previous_version) == ("kept", 1, None)
    assert finished.reason == f"rolled back to version 1: {BETTER}; the candidate: because"
    assert finished.rolled_back_to == 1
    event = site.latest
    assert (event.kind, event.who, event.job, event.reason) == ("rollback", WATCH, finished.id, BETTER)


def test_a_candidate_that_is_promoted_needs_no_way_back(site: Site) -> None:
    site.registry.dial("default", soup(0.5))
    finished = site.finish("promoted", Rollback(site.suspect(), BETTER))
    assert (finished.state, finished.version, finished.previous_version) == ("promoted", 3, 2)
    assert finished.rolled_back_to is None
    assert site.latest.kind == "promoted"


def test_what_moved_since_it_was_judged_is_left_alone(site: Site) -> None:
    site.registry.dial("default", soup(0.5))
    rollback = Rollback(site.suspect(), BETTER)
    site.registry.point_at("default", 1)
    site.registry.point_at("default", 2)  # deliberately: the same version, and another spell of it
    finished = site.finish("kept", rollback)
    assert (finished.version, finished.reason, site.version) == (2, "because", 2)
    late = Rollback(site.suspect(), BETTER)
    site.watches.switch_off("default")
    assert site.finish("kept", late).version == 2
    add(site.jobs, "late")
    job = claimed(site.jobs)
    site.registry.dial("default", soup(0.75))
    superseded = site.jobs.finish(job, soup(0.3), outcome(soup(0.3)))
    assert superseded is not None
    assert superseded.reason == SUPERSEDED


def test_switching_on_again_changes_nothing_and_other_numbers_forget_what_was_seen(site: Site) -> None:
    before = site.registry.snapshot().watches
    site.report({1: HIGH})
    assert not site.watches.switch_on("default", 50, 0.2)
    assert site.registry.snapshot().watches == before
    assert site.pending() == 1
    assert not site.watches.switch_on("default", 50, 0.3)
    assert site.registry.snapshot().watches != before
    assert site.pending() == 0
    site.report({1: HIGH})
    site.watches.judge("default")
    site.watches.switch_off("default")
    site.watches.switch_off("default")
    assert site.registry.snapshot().watches == {}
    assert site.registry.deployment("default").watch_state is None
    assert site.watches.judge("default") is None
    for change in (lambda: site.watches.switch_on("nowhere", 50, 0.2), lambda: site.watches.switch_off("nowhere")):
        with pytest.raises(UnknownDeployment):
            change()


def test_reports_for_a_watch_that_is_gone_are_swept_away(site: Site) -> None:
    site.registry.ensure_deployment("other", soup(1.0))
    site.watches.switch_on("other", 50, 0.2)
    site.report({1: HIGH})
    site.report({1: HIGH}, deployment="other")
    gone = site.registry.snapshot().watches["other"]
    site.registry.delete_deployment("other")
    assert site.pending() == 1
    with site.database.write() as session:  # a worker that had not heard of it
        add_sums(session, {(gone, 1): HIGH})
    assert site.watches.waiting() == ["default"]
    site.watches.sweep()
    assert site.pending() == 1
    assert site.watches.waiting() == ["default"]


def test_no_report_is_lost_or_counted_twice_while_all_write_at_once(site: Site) -> None:
    """Four workers report two versions, in either order, while the adapter takes what there is."""
    site.watches.switch_on("default", 1_000_000, 0.2)
    site.registry.dial("default", soup(0.5))
    site.watches.judge("default")
    one = Tally(1, 0.5, 0.25)
    stop = threading.Event()

    def work(worker: int) -> None:
        for turn in range(20):
            site.report({1: one, 2: one} if turn % 2 else {2: one, 1: one}, worker=f"w{worker}")

    def take() -> None:
        while not stop.is_set():
            site.watches.judge("default")

    with ThreadPoolExecutor(5) as pool:
        taking = pool.submit(take)
        for done in [pool.submit(work, number) for number in range(4)]:
            done.result()
        stop.set()
        taking.result()
    site.watches.judge("default")
    state = state_of(site.registry.deployment("default"))
    assert state is not None
    assert state.before == state.open == Tally(80, 40.0, 20.0)


def test_the_loop_judges_all_counts_what_it_did_and_lets_the_others_be(site: Site) -> None:
    metrics = Metrics(CollectorRegistry())
    for name in ("a", "b", "c"):
        site.registry.ensure_deployment(name, soup(1.0))
        site.watches.switch_on(name, 50, 0.2)
        site.report({1: HIGH}, deployment=name)
        site.registry.dial(name, soup(0.5))
    for name, tallied in (("a", LOW), ("b", HIGH), ("c", LOW)):
        site.report({2: tallied}, deployment=name)
    WatchLoop(site.watches, metrics, seconds=60).look()
    assert [site.registry.deployment(name).version for name in ("a", "b", "c")] == [1, 2, 1]
    told = {
        sample.labels["deployment"]: sample.value
        for family in metrics.rollbacks.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and sample.labels["cause"] == "confidence"
    }
    assert told == {"a": 1, "c": 1}


def test_a_worker_adds_up_for_watched_deployments_alone_and_keeps_what_was_not_taken() -> None:
    pointer = Pointer("a", "u", "tiny", 3)
    confidences = Confidences()
    confidences.offer(pointer, np.array([0.5, 1.0]))
    assert confidences.take().sums == {}
    confidences.refresh({"a": "watch"})
    confidences.offer(pointer, np.array([0.5, 1.0]))
    confidences.offer(pointer._replace(version=4), np.array([0.5]))
    confidences.offer(pointer._replace(name="b"), np.array([0.5]))
    taken = confidences.take()
    assert taken.sums == {("watch", 3): Tally(2, 1.5, 1.25), ("watch", 4): Tally(1, 0.5, 0.25)}
    confidences.offer(pointer, np.array([1.0]))
    assert confidences.take() == taken  # as it was, with its number: the registry may have it
    confidences.confirm()
    later = confidences.take()
    assert later.sums == {("watch", 3): Tally(1, 1.0, 1.0)}
    assert later.number > taken.number
    confidences.confirm()
    assert confidences.take().sums == {}


def test_a_report_whose_commit_nobody_heard_of_counts_once(site: Site) -> None:
    watch = site.registry.snapshot().watches["default"]
    confidences = Confidences()
    confidences.refresh({"default": watch})
    pointer = site.registry.move("default").pointer

    def report() -> None:
        batch = confidences.take()
        site.registry.beat_worker(
            "one", pid=1, host="h", provider=None, loaded={}, batch=batch.number, confidences=batch.sums
        )

    confidences.offer(pointer, np.array([0.5, 1.0]))
    report()  # the connection broke after the commit, so that the worker does not know
    confidences.offer(pointer, np.array([0.25]))
    report()
    confidences.confirm()
    report()
    confidences.confirm()
    site.registry.beat_worker("two", pid=1, host="h", provider=None, loaded={}, batch=1, confidences=report_of(watch))
    with site.database.read() as session:
        sums = session.execute(select(ConfidenceSum.n, ConfidenceSum.total)).all()
    assert sums == [(4, 2.0)]


def report_of(watch: str) -> dict[tuple[str, int], Tally]:
    return {(watch, 1): Tally(1, 0.25, 0.0625)}


def test_a_deployment_from_before_watches_is_off(site: Site) -> None:
    site.registry.ensure_deployment("old", soup(1.0))
    found = site.registry.deployment("old")
    assert (found.watch, found.watch_state, state_of(found)) == (None, None, None)
    with site.database.read() as session:
        assert session.scalar(select(Deployment.name).where(Deployment.watch.is_not(None))) == "default"
