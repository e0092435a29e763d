"""Follow-ups in the queue: when there is one, whose turn it is, what ends it; on SQLite and PostgreSQL."""

import time
from typing import Any

import pytest

from adapt.documents.soup import SupportSummary
from service.http.views import job_view
from service.store.database import Database
from service.store.jobs import JobQueue, QueueFull
from service.store.material import Selected, pack_selection
from service.store.registry import Registry
from service.store.repeats import SUPERSEDED
from service.store.tables import Job
from service.store.watches import Watches
from tests.service.test_registry import STALE, add, claimed, outcome, soup

NO_LABELS = SupportSummary(n=0, unlabelled=5, per_class={})
SELECTION = pack_selection([Selected("ab" * 32, 1)])


@pytest.fixture
def registry(database: Database) -> Registry:
    registry = Registry(database)
    for name in ("default", "gate"):
        registry.ensure_deployment(name, soup(1.0))
    return registry


def quick(jobs: JobQueue, name: str, *, state: str = "kept", share: float = 0.5, **asked: Any) -> Job:
    """Queue a job, search quickly, finish with more to try; return it."""
    add(jobs, name, selection=SELECTION, **asked)
    return ended(jobs, state=state, share=share)


def ended(jobs: JobQueue, *, state: str = "kept", share: float = 0.5) -> Job:
    found = jobs.finish(claimed(jobs), soup(share), outcome(soup(share), state), is_more_to_try=True)
    assert found is not None
    return found


def follow_up(jobs: JobQueue, first: Job) -> Job:
    assert first.followed_by is not None
    return reread(jobs, first.followed_by)


def reread(jobs: JobQueue, name: str) -> Job:
    found = jobs.get(name)
    assert found is not None
    return found


def test_a_quick_answer_is_followed_by_a_full_search_on_the_same_images(jobs: JobQueue) -> None:
    first = quick(jobs, "one", balance="class", promote="likely", strategy="grid", who="gardener")
    later = follow_up(jobs, first)
    assert (later.state, later.effort, later.follows, later.followed_by) == ("queued", "full", "one", None)
    assert (first.effort, first.follows) == ("auto", None)
    for name in ("deployment", "base_version", "strategy", "promote", "balance", "samples_digest", "support", "who"):
        assert getattr(later, name) == getattr(first, name), name
    running = claimed(jobs)
    assert running.id == later.id
    with jobs._database.read() as session:
        kept = session.get(Job, running.seq)
        assert kept is not None
        assert kept.selection == SELECTION
    views = job_view(first), job_view(later)
    assert [(view.effort, view.follows, view.followed_by) for view in views] == [
        ("auto", None, later.id),
        ("full", "one", None),
    ]


def test_it_is_another_attempt_against_what_is_served_when_it_begins(jobs: JobQueue) -> None:
    quick(jobs, "kept")
    second = claimed(jobs)
    assert (second.base_version, second.attempt) == (1, 2)
    assert jobs.earlier(second, ["x"]) == (0,)
    jobs.fail(second, "no")
    promoted = quick(jobs, "promoted", state="promoted")
    assert promoted.version == 3
    fresh = claimed(jobs)
    assert (fresh.base_version, fresh.attempt) == (promoted.version, 1)
    finished = jobs.finish(fresh, soup(0.7), outcome(soup(0.7)), is_more_to_try=True)
    assert finished is not None
    assert (finished.state, finished.previous_version) == ("promoted", promoted.version)
    assert finished.followed_by is None


@pytest.mark.parametrize("effort", ["quick", "full"])
def test_no_follow_up_where_none_was_asked_for(jobs: JobQueue, effort: str) -> None:
    assert quick(jobs, "one", effort=effort).followed_by is None
    assert jobs.claim("me", stale_seconds=STALE) is None


def test_no_follow_up_where_nothing_is_left_to_try_or_the_job_failed(jobs: JobQueue) -> None:
    add(jobs, "one")
    done = jobs.finish(claimed(jobs), soup(0.5), outcome(soup(0.5), "kept"))
    assert done is not None
    assert done.followed_by is None
    add(jobs, "two")
    jobs.fail(claimed(jobs), "nothing usable")
    assert reread(jobs, "two").followed_by is None
    assert jobs.claim("me", stale_seconds=STALE) is None


@pytest.mark.parametrize("state", ["kept", "promoted"])
def test_no_follow_up_where_the_deployment_moved_meanwhile(jobs: JobQueue, registry: Registry, state: str) -> None:
    add(jobs, "one")
    job = claimed(jobs)
    registry.dial("default", soup(0.25))
    done = jobs.finish(job, soup(0.5), outcome(soup(0.5), state), is_more_to_try=True)
    assert done is not None
    assert (done.reason == SUPERSEDED, done.followed_by) == (state == "promoted", None)


def test_no_follow_up_where_newer_labelled_images_came_meanwhile(jobs: JobQueue) -> None:
    add(jobs, "one")
    job = claimed(jobs)
    add(jobs, "unlabelled", support=NO_LABELS)
    add(jobs, "two")
    done = jobs.finish(job, soup(0.5), outcome(soup(0.5), "kept"), is_more_to_try=True)
    assert done is not None
    assert done.followed_by is None


def test_images_without_labels_and_failed_jobs_are_no_newer_labels(jobs: JobQueue) -> None:
    add(jobs, "one")
    job = claimed(jobs)
    add(jobs, "unlabelled", support=NO_LABELS)
    add(jobs, "two")
    jobs.cancel("two")
    done = jobs.finish(job, soup(0.5), outcome(soup(0.5), "kept"), is_more_to_try=True)
    assert done is not None
    assert follow_up(jobs, done).state == "queued"


def test_it_comes_after_all_that_somebody_asked_for(jobs: JobQueue) -> None:
    first = quick(jobs, "one")
    add(jobs, "other", deployment="gate")
    add(jobs, "unlabelled", support=NO_LABELS)
    order = []
    while (job := jobs.claim("me", stale_seconds=STALE)) is not None:
        order.append(job.id)
        jobs.fail(job, "no")
    assert order == ["other", "unlabelled", first.followed_by]


def test_nobody_waits_longer_for_the_next_turn_because_of_it(jobs: JobQueue) -> None:
    quick(jobs, "a1")
    time.sleep(0.01)
    add(jobs, "b1", deployment="gate")
    jobs.fail(claimed(jobs), "no")
    time.sleep(0.01)
    later = claimed(jobs)
    assert later.follows == "a1"
    assert jobs.beat(later, progress=0.5, message="training")
    jobs.release(later)
    add(jobs, "b2", deployment="gate")
    add(jobs, "a2", support=NO_LABELS)
    assert [claimed(jobs).id, claimed(jobs).id] == ["a2", "b2"]  # `default` was asked about longer ago


def test_follow_ups_of_deployments_take_turns(jobs: JobQueue) -> None:
    ours, theirs = quick(jobs, "one"), quick(jobs, "two", deployment="gate")
    later = claimed(jobs)
    assert later.id == ours.followed_by
    jobs.release(later)
    assert claimed(jobs).id == theirs.followed_by
    assert claimed(jobs).id == ours.followed_by


def test_it_takes_no_place_of_those_that_may_wait(jobs: JobQueue) -> None:
    quick(jobs, "one", max_queued=1)
    jobs.check_room(1)
    add(jobs, "two", deployment="gate", max_queued=1)
    with pytest.raises(QueueFull):
        jobs.check_room(1)
    with pytest.raises(QueueFull):
        add(jobs, "three", max_queued=1)
    assert jobs.get("three") is None
    assert follow_up(jobs, reread(jobs, "one")).state == "queued"


def test_a_running_one_learns_that_somebody_waits_and_goes_back(jobs: JobQueue) -> None:
    first = quick(jobs, "one")
    later = claimed(jobs)
    assert not jobs.is_somebody_waiting()
    add(jobs, "other", deployment="gate")
    assert jobs.is_somebody_waiting()
    assert jobs.is_somebody_waiting(["a" * 64])
    assert not jobs.is_somebody_waiting(["b" * 64])  # another adapter's weights
    jobs.release(later)
    other = claimed(jobs)
    assert other.id == "other"
    assert not jobs.is_somebody_waiting()
    jobs.fail(other, "no")
    again = claimed(jobs)
    assert (again.id, again.attempts, again.attempt) == (first.followed_by, 1, later.attempt)


@pytest.mark.parametrize("is_running", [False, True])
def test_newer_labelled_images_end_it(jobs: JobQueue, registry: Registry, is_running: bool) -> None:
    later = follow_up(jobs, quick(jobs, "one"))
    running = claimed(jobs) if is_running else None
    add(jobs, "unlabelled", support=NO_LABELS)
    add(jobs, "elsewhere", deployment="gate")
    assert not reread(jobs, later.id).is_finished
    add(jobs, "two")
    cancelled = reread(jobs, later.id)
    reason = "cancelled: newer labelled images came, with job two"
    assert (cancelled.state, cancelled.reason, cancelled.version) == ("failed", reason, 1)
    assert cancelled.finished_at is not None
    if running is not None:
        assert not jobs.beat(running, progress=0.5, message="")
        assert jobs.finish(running, soup(0.3), outcome(soup(0.3))) is None
    assert registry.deployment("default").version == 1
    assert [claimed(jobs).id for _ in range(3)] == ["elsewhere", "unlabelled", "two"]


@pytest.mark.parametrize("is_running", [False, True])
@pytest.mark.parametrize("kind", ["dial", "rollback", "promoted"])
def test_it_ends_as_soon_as_its_deployment_moves(
    jobs: JobQueue, registry: Registry, kind: str, is_running: bool
) -> None:
    first = quick(jobs, "one", state="promoted")
    running = claimed(jobs) if is_running else None
    if kind == "dial":
        registry.dial("default", soup(0.25))
    elif kind == "rollback":
        registry.point_at("default", 1)
    else:
        add(jobs, "forced", support=NO_LABELS, promote="always")
        job = claimed(jobs)
        assert jobs.finish(job, soup(0.75), outcome(soup(0.75))) is not None
    cancelled = follow_up(jobs, first)
    version = registry.deployment("default").version
    assert cancelled.state == "failed"
    assert cancelled.reason == f"cancelled: the deployment moved to version {version} ({kind})"
    assert cancelled.version == version
    if running is not None:
        assert not jobs.beat(running, progress=0.5, message="")
        assert jobs.finish(running, soup(0.3), outcome(soup(0.3))) is None
    assert registry.deployment("default").version == version
    assert jobs.claim("me", stale_seconds=STALE) is None


def test_going_back_to_the_version_that_is_served_ends_nothing(jobs: JobQueue, registry: Registry) -> None:
    first = quick(jobs, "one")
    registry.point_at("default", 1)
    assert follow_up(jobs, first).state == "queued"


def test_it_ends_with_its_deployment(jobs: JobQueue, registry: Registry) -> None:
    first = quick(jobs, "one", deployment="gate")
    running = claimed(jobs)
    assert set(registry.delete_deployment("gate")) == {"one", first.followed_by}
    assert not jobs.beat(running, progress=0.5, message="")
    assert jobs.finish(running, soup(0.3), outcome(soup(0.3))) is None


def test_its_own_promotion_does_not_end_it(jobs: JobQueue, registry: Registry, database: Database) -> None:
    Watches(database).switch_on("default", 50, 0.2)
    first = quick(jobs, "one", state="promoted")
    done = ended(jobs, state="promoted", share=0.3)
    assert (done.id, done.state, done.previous_version, done.version) == (first.followed_by, "promoted", 2, 3)
    assert reread(jobs, done.id).state == "promoted"
    assert registry.events("default", limit=1)[0].job == done.id


def test_it_is_cancelled_by_hand_like_any_job(jobs: JobQueue) -> None:
    first = quick(jobs, "one")
    assert first.followed_by is not None
    jobs.cancel(first.followed_by, who="gardener")
    assert follow_up(jobs, first).reason == "cancelled by gardener"
    assert reread(jobs, "one").state == "kept"


def test_one_whose_adapter_died_is_done_again_once(jobs: JobQueue) -> None:
    first = quick(jobs, "one")
    for attempts in (1, 2):
        job = jobs.claim(f"adapter-{attempts}", stale_seconds=0.01)
        assert job is not None
        assert (job.id, job.attempts, job.attempt) == (first.followed_by, attempts, 2)
        time.sleep(0.03)
    assert jobs.claim("next", stale_seconds=0.01) is None
    lost = follow_up(jobs, first)
    assert (lost.state, lost.reason) == ("failed", "the adapter stopped 2 times while it worked on this job")


def test_a_repeated_request_gets_the_job_and_its_follow_up(jobs: JobQueue) -> None:
    first = quick(jobs, "one", samples_digest="same")
    for number, effort in enumerate(("auto", "quick", "auto")):
        again = add(jobs, f"again-{number}", samples_digest="same", effort=effort)
        assert (again.id, again.followed_by) == ("one", first.followed_by)
    assert follow_up(jobs, first).state == "queued"
    assert add(jobs, "whole", samples_digest="same", effort="full").id == first.followed_by


@pytest.mark.parametrize("state", ["queued", "running", "kept"])
def test_so_it_does_after_a_promotion(jobs: JobQueue, state: str) -> None:
    """The fault: the same images again were newer images, and ended the follow-up."""
    first = quick(jobs, "one", samples_digest="same", state="promoted")
    if state != "queued":
        running = claimed(jobs)
        if state == "kept":
            jobs.finish(running, soup(0.3), outcome(soup(0.3), "kept"))
    again = add(jobs, "again", samples_digest="same")
    assert (again.id, again.followed_by) == ("one", first.followed_by)
    assert follow_up(jobs, first).state == state
    assert add(jobs, "whole", samples_digest="same", effort="full").id == first.followed_by


def test_after_a_cancelled_follow_up_images_are_searched_on_again(jobs: JobQueue, registry: Registry) -> None:
    quick(jobs, "one", samples_digest="same", state="promoted")
    registry.dial("default", soup(0.25))
    registry.point_at("default", 2)
    assert add(jobs, "again", samples_digest="same").id == "again"


def test_a_job_answers_a_request_for_no_more_effort_than_its_own(jobs: JobQueue) -> None:
    add(jobs, "quick", samples_digest="same", effort="quick")
    assert add(jobs, "again", samples_digest="same", effort="quick").id == "quick"
    assert add(jobs, "auto", samples_digest="same").id == "auto"
    assert add(jobs, "full", samples_digest="same", effort="full").id == "full"
    while (job := jobs.claim("me", stale_seconds=STALE)) is not None:
        jobs.fail(job, "no")
    add(jobs, "whole", samples_digest="same", effort="full")
    assert add(jobs, "soon", samples_digest="same", effort="quick").id == "soon"  # nobody waits for more than asked
    jobs.cancel("soon")
    jobs.finish(claimed(jobs), soup(0.5), outcome(soup(0.5), "kept"))
    for effort in ("quick", "auto", "full"):
        assert add(jobs, f"later-{effort}", samples_digest="same", effort=effort).id == "whole"


def test_jobs_that_are_forgotten_leave_a_follow_up_that_answers_for_itself(jobs: JobQueue) -> None:
    quick(jobs, "one", samples_digest="same", state="promoted")
    later = ended(jobs, state="kept", share=0.3)
    with jobs._database.write() as session:
        first = session.get(Job, reread(jobs, "one").seq)
        assert first is not None
        session.delete(first)
    assert add(jobs, "again", samples_digest="same").id == later.id
