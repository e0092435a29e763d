"""The registry and its queue, on a real SQLite file and a real PostgreSQL."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, event

from adapt.documents.held_out import HeldOut, make_held_out
from adapt.documents.patch import Patch, make_patch
from adapt.documents.soup import Outcome, SearchSummary, Soup, SupportSummary
from service.store.database import Database
from service.store.jobs import JobQueue, QueueFull, UnknownJob, add_job
from service.store.registry import Registry
from service.store.repeats import SUPERSEDED
from service.store.tables import Event, Job
from service.store.transactions import Conflict, UnknownDeployment, UnknownVersion, get_deployment
from service.store.watches import Watches

SUPPORT = SupportSummary(n=2, per_class={"cat": 1, "dog": 1})
STALE = 30.0


def soup(share: float, *, digest: str = "a" * 64, base_set: str = "tiny", patch: Patch | None = None) -> Soup:
    coefficients = {"linf": share, "nominal": 1 - share}
    return Soup(base_set=base_set, base_digest=digest, coefficients=coefficients, patch=patch)


def head(bias: float) -> Patch:
    return make_patch({"head.bias": np.full(3, bias, dtype=np.float32)}, rungs=["head"])


def held_out(logit: float) -> HeldOut:
    return make_held_out(["a", "b"], np.asarray([0, 1]), np.full((2, 3), logit, dtype=np.float32))


def outcome(found: Soup, state: str = "promoted", *, p_value: float | None = 0.001) -> Outcome:
    accuracy = {"current": 0.5, "candidate": 0.7, "interval": (0.1, 0.3), "p_value": p_value}
    return Outcome.model_validate(
        {
            "state": state,
            "reason": "because",
            "coefficients": found.coefficients,
            "temperature": found.temperature,
            "bn_mode": found.bn_mode,
            "patch": found.patch and found.patch.summary,
            "support": SUPPORT,
            "accuracy": None if p_value is None else accuracy,
            "attempt": 1,
            "level": 0.025,
            "search": SearchSummary(strategy="grid", candidates=3, image_forwards=6, seconds=0.1),
            "ingredients": {"linf": 0.5, "nominal": 0.5},
        }
    )


def add(jobs: JobQueue, name: str, **changes: Any) -> Job:
    arguments: dict[str, Any] = {
        "job": name,
        "strategy": "auto",
        "promote": "auto",
        "samples_digest": name,
        "support": SUPPORT,
        "max_queued": 10,
    }
    with jobs._database.write() as session:
        found = get_deployment(session, changes.pop("deployment", "default"), lock=True)
        return add_job(session, found, **{**arguments, **changes})


def events(registry: Registry, deployment: str = "default") -> Sequence[Event]:
    return registry.events(deployment, limit=100)


def claimed(jobs: JobQueue, owner: str = "me") -> Job:
    job = jobs.claim(owner, stale_seconds=STALE)
    assert job is not None
    return job


def test_default_soup_is_version_1(registry: Registry) -> None:
    assert registry.deployment("default").version == 1
    assert registry.soup("default", 1) == soup(1.0)
    assert not registry.ensure_deployment("default", soup(1.0))
    assert [event.kind for event in events(registry)] == ["created"]


def test_deployment_keeps_its_base_set(registry: Registry) -> None:
    with pytest.raises(Conflict, match="'tiny', not 'other'"):
        registry.ensure_deployment("default", soup(1.0, base_set="other"))


def test_new_weights_move_nothing_by_themselves(registry: Registry) -> None:
    registry.dial("default", soup(0.5))
    assert not registry.ensure_deployment("default", soup(1.0, digest="b" * 64))
    assert registry.deployment("default").version == 2
    assert events(registry)[0].kind == "dial"


def test_patch_comes_back_with_its_soup(registry: Registry, jobs: JobQueue) -> None:
    registry.dial("default", soup(0.5, patch=head(1)))
    assert registry.soup("default", 2) == soup(0.5, patch=head(1))
    assert registry.soup("default", 1).patch is None
    add(jobs, "one")
    finished = jobs.finish(claimed(jobs), soup(0.5, patch=head(2)), outcome(soup(0.5, patch=head(2))))
    assert finished is not None
    assert (finished.state, finished.candidate_version) == ("promoted", 3)
    assert registry.soup("default", 3).patch == head(2)
    registry.point_at("default", 2)
    assert registry.soup("default", registry.deployment("default").version).patch == head(1)
    digests = [(row.soup["patch"] or {}).get("digest") for row in registry.soups("default")]
    assert digests == [head(2).digest, head(1).digest, None]


def test_candidate_with_the_patch_of_the_current_soup_makes_no_version(registry: Registry, jobs: JobQueue) -> None:
    registry.dial("default", soup(0.5, patch=head(1)))
    for name, found, version in (("one", soup(0.5, patch=head(1)), 2), ("two", soup(0.5), 3)):
        add(jobs, name)
        finished = jobs.finish(claimed(jobs), found, outcome(found, "kept"))
        assert finished is not None
        assert finished.candidate_version == version


@pytest.fixture
def statements(registry: Registry, jobs: JobQueue) -> Iterator[list[str]]:
    """Every statement that is sent to a database from now on."""
    found: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield found
    event.remove(Engine, "before_cursor_execute", note)


def test_patches_are_read_neither_to_end_a_job_nor_to_look_at_earlier_attempts(
    registry: Registry, jobs: JobQueue, statements: list[str]
) -> None:
    registry.dial("default", soup(0.5, patch=head(1)))
    for number, name in enumerate(("one", "two", "three"), 1):
        add(jobs, name)
        job = claimed(jobs)
        jobs.earlier(job, ["x"])
        found = soup(0.5, patch=head(number)).model_copy(update={"held_out": held_out(0.5)})
        jobs.finish(job, found, outcome(found, "kept"))
    assert statements
    assert not [text for text in statements if text.startswith("SELECT") and "soups.patch" in text]


def test_held_out_answers_stand_beside_their_soup(registry: Registry, jobs: JobQueue) -> None:
    known = held_out(0.5)
    add(jobs, "one")
    jobs.finish(claimed(jobs), soup(0.5).model_copy(update={"held_out": known}), outcome(soup(0.5)))
    assert registry.soup("default", 2, held_out=True).held_out == known
    assert registry.soup("default", 2) == soup(0.5)
    (row, _) = registry.soups("default")
    assert row.soup["held_out"] == known.summary.model_dump(mode="json")


def test_other_held_out_answers_of_the_same_network_make_no_version(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    jobs.finish(claimed(jobs), soup(0.5).model_copy(update={"held_out": held_out(0.5)}), outcome(soup(0.5)))
    found = outcome(soup(0.5), "kept")
    again = soup(0.5).model_copy(update={"held_out": held_out(0.25), "evidence": found})
    add(jobs, "two")
    finished = jobs.finish(claimed(jobs), again, found)
    assert finished is not None
    assert finished.candidate_version == 2
    assert registry.soup("default", 2, held_out=True).held_out == held_out(0.5)


def test_unknown_names_are_said_so(registry: Registry) -> None:
    with pytest.raises(UnknownDeployment):
        registry.deployment("nobody")
    with pytest.raises(UnknownVersion):
        registry.point_at("default", 9)


def test_dial_and_rollback_move_the_pointer_with_an_event(registry: Registry) -> None:
    assert registry.dial("default", soup(0.5), expected_version=1).version == 2
    assert registry.point_at("default", 1).version == 1
    assert [soup.version for soup in registry.soups("default")] == [2, 1]
    last = events(registry)[0]
    assert (last.kind, last.from_version, last.to_version, last.unproven) == ("rollback", 2, 1, False)
    assert events(registry)[1].unproven


def test_expected_version_decides_between_two_dials(registry: Registry) -> None:
    registry.dial("default", soup(0.5), expected_version=1)
    with pytest.raises(Conflict, match="at version 2, expected 1"):
        registry.dial("default", soup(0.25), expected_version=1)
    assert len(registry.soups("default")) == 2


def test_pointing_at_a_candidate_never_served_is_flagged(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    jobs.finish(claimed(jobs), soup(0.25), outcome(soup(0.25), "kept"))
    registry.point_at("default", 2)
    assert events(registry)[0].unproven


def test_promotion_stores_evidence_and_moves_the_pointer(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    finished = jobs.finish(claimed(jobs), soup(0.25), outcome(soup(0.25)))
    assert finished is not None
    assert (finished.state, finished.version, finished.previous_version, finished.candidate_version) == (
        "promoted",
        2,
        1,
        2,
    )
    assert registry.deployment("default").version == 2
    event = events(registry)[0]
    assert (event.kind, event.job, event.unproven) == ("promoted", "one", False)


def test_promotion_without_proof_is_flagged(registry: Registry, jobs: JobQueue) -> None:
    for share, promote, p_value, unproven in (
        (0.1, "auto", 0.001, False),
        (0.2, "likely", 0.02499, False),
        (0.3, "likely", 0.025, True),
        (0.4, "likely", None, True),
        (0.5, "always", 0.001, True),
    ):
        add(jobs, f"{promote}-{share}", promote=promote)
        jobs.finish(claimed(jobs), soup(share), outcome(soup(share), p_value=p_value))
        assert (events(registry)[0].kind, events(registry)[0].unproven) == ("promoted", unproven), (promote, p_value)


def test_kept_candidate_gets_a_version_that_is_not_served(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    finished = jobs.finish(claimed(jobs), soup(0.25), outcome(soup(0.25), "kept"))
    assert finished is not None
    assert (finished.state, finished.version, finished.previous_version, finished.candidate_version) == (
        "kept",
        1,
        None,
        2,
    )
    assert registry.deployment("default").version == 1


def test_candidate_equal_to_the_current_soup_makes_no_version(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    finished = jobs.finish(claimed(jobs), soup(1.0), outcome(soup(1.0), "kept"))
    assert finished is not None
    assert finished.candidate_version == 1
    assert len(registry.soups("default")) == 1


def test_of_two_concurrent_adaptations_one_is_superseded(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    add(jobs, "two")
    first, second = claimed(jobs, "a"), claimed(jobs, "b")
    winner = jobs.finish(second, soup(0.5), outcome(soup(0.5)))
    loser = jobs.finish(first, soup(0.25), outcome(soup(0.25)))
    assert winner is not None
    assert loser is not None
    assert winner.state == "promoted"
    assert (loser.state, loser.reason, loser.version) == ("kept", SUPERSEDED, 2)
    assert loser.candidate_version == 3
    assert loser.outcome is not None
    assert registry.deployment("default").version == 2


def test_same_samples_return_the_earlier_decision(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one", samples_digest="same")
    assert add(jobs, "two", samples_digest="same").id == "one"
    jobs.finish(claimed(jobs), soup(0.25), outcome(soup(0.25), "kept"))
    assert add(jobs, "three", samples_digest="same").id == "one"
    assert add(jobs, "four", samples_digest="same", strategy="grid").id == "one"
    assert add(jobs, "five", samples_digest="same", promote="never").id == "five"
    assert add(jobs, "likely", samples_digest="same", promote="likely").id == "likely"
    assert add(jobs, "more-likely", samples_digest="same", promote="likely", strategy="grid").id == "likely"
    assert add(jobs, "classes", samples_digest="same", balance="class").id == "classes"
    assert add(jobs, "again", samples_digest="same", balance="class").id == "classes"
    assert add(jobs, "fair", samples_digest="same", draw="fair").id == "fair"
    assert add(jobs, "fair-again", samples_digest="same", draw="fair").id == "fair"
    registry.dial("default", soup(0.5))
    assert add(jobs, "six", samples_digest="same").id == "six"


def test_superseded_decision_is_not_returned_again(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one", samples_digest="same")
    job = claimed(jobs)
    registry.dial("default", soup(0.5))
    jobs.finish(job, soup(0.25), outcome(soup(0.25)))
    registry.point_at("default", 1)
    assert add(jobs, "two", samples_digest="same").id == "two"


def test_queue_is_bounded_and_in_order(jobs: JobQueue) -> None:
    add(jobs, "one", max_queued=2)
    add(jobs, "two", max_queued=2)
    with pytest.raises(QueueFull):
        add(jobs, "three", max_queued=2)
    assert [claimed(jobs).id, claimed(jobs).id] == ["one", "two"]
    assert jobs.claim("me", stale_seconds=STALE) is None


def test_queue_is_bounded_for_those_who_come_at_once(registry: Registry, jobs: JobQueue) -> None:
    names = [f"gate-{number}" for number in range(8)]
    for name in names:
        registry.ensure_deployment(name, soup(1.0))

    def queue(name: str) -> bool:
        try:
            add(jobs, name, deployment=name, max_queued=3)
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(len(names)) as pool:
        assert sum(pool.map(queue, names)) == 3


def test_stale_job_goes_back_once_and_then_fails(jobs: JobQueue) -> None:
    add(jobs, "one")
    claimed(jobs, "dead")
    time.sleep(0.02)
    again = jobs.claim("next", stale_seconds=0.01)
    assert again is not None
    assert (again.id, again.attempts) == ("one", 2)
    time.sleep(0.02)
    assert jobs.claim("third", stale_seconds=0.01) is None
    failed = jobs.get("one")
    assert failed is not None
    assert (failed.state, failed.version) == ("failed", 1)
    assert "stopped 2 times" in str(failed.reason)


def test_owner_taken_for_dead_can_change_nothing(registry: Registry, jobs: JobQueue) -> None:
    add(jobs, "one")
    old = claimed(jobs, "dead")
    time.sleep(0.02)
    assert jobs.claim("next", stale_seconds=0.01) is not None
    assert not jobs.beat(old, progress=0.5, message="")
    assert jobs.finish(old, soup(0.25), outcome(soup(0.25))) is None
    jobs.fail(old, "no")
    jobs.release(old)
    found = jobs.get("one")
    assert found is not None
    assert (found.state, found.claimed_by) == ("running", "next")
    assert registry.deployment("default").version == 1


def test_heartbeat_keeps_a_job(jobs: JobQueue) -> None:
    add(jobs, "one")
    job = claimed(jobs)
    time.sleep(0.1)
    assert jobs.beat(job, progress=0.5, message="half")
    assert jobs.claim("other", stale_seconds=0.09) is None
    found = jobs.get("one")
    assert found is not None
    assert (found.progress, found.message) == (0.5, "half")


def test_release_does_not_count_as_an_attempt(jobs: JobQueue) -> None:
    add(jobs, "one")
    for _ in range(4):
        jobs.release(claimed(jobs))
    assert claimed(jobs).attempts == 1


def test_deleted_deployment_takes_everything_but_its_events(registry: Registry, jobs: JobQueue) -> None:
    registry.ensure_deployment("gate", soup(1.0))
    uid = registry.deployment("gate").uid
    add(jobs, "one", deployment="gate")
    job = claimed(jobs)
    assert registry.delete_deployment("gate") == ["one"]
    assert jobs.finish(job, soup(0.25), outcome(soup(0.25))) is None
    assert jobs.get("one") is None
    with pytest.raises(UnknownDeployment):
        registry.soups("gate")
    assert [event.kind for event in events(registry, "gate")] == ["deleted", "created"]
    registry.ensure_deployment("gate", soup(1.0))
    assert registry.deployment("gate").uid != uid


def test_workers_are_live_while_they_report(registry: Registry) -> None:
    registry.beat_worker("one", pid=1, host="h", provider=None, loaded={"default": 1})
    registry.beat_worker("one", pid=1, host="h", provider="CPU", loaded={"default": 2})
    (worker,) = registry.workers(stale_seconds=5)
    assert (worker.provider, worker.loaded) == ("CPU", {"default": 2})
    time.sleep(0.02)
    assert registry.workers(stale_seconds=0.01) == []
    registry.forget_workers(stale_seconds=0.01)
    assert registry.workers(stale_seconds=5) == []


def test_snapshot_says_whether_jobs_are_active(registry: Registry, jobs: JobQueue) -> None:
    assert registry.snapshot().active_jobs == {}
    add(jobs, "one")
    assert registry.snapshot().active_jobs == {"default": 1}
    jobs.fail(claimed(jobs), "no")
    snapshot = registry.snapshot()
    assert snapshot.active_jobs == {}
    assert {name: move.pointer.version for name, move in snapshot.moves.items()} == {"default": 1}


def test_snapshot_reads_what_events_tell_of_and_nothing_else(registry: Registry, database: Database) -> None:
    for number in range(40):
        registry.ensure_deployment(f"camera-{number}", soup(1.0))
    known = registry.snapshot()
    assert known == registry.snapshot()
    statements: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    event.listen(database._engine, "before_cursor_execute", note)
    again = registry.snapshot(known)
    assert len(statements) == 1
    assert again.moves is known.moves
    registry.dial("camera-7", soup(0.5))
    registry.set_reservoir("camera-8", 10, 1.0)
    watches = Watches(database)
    watches.switch_on("camera-9", 50, 0.2)
    registry.delete_deployment("camera-10")
    registry.ensure_deployment("camera-10", soup(1.0))
    registry.delete_deployment("camera-11")
    known, before = registry.snapshot(known), known
    assert known == registry.snapshot()
    assert known.moves["camera-7"].pointer.version == 2
    assert known.moves["camera-7"].seq > before.moves["camera-7"].seq
    assert known.moves["camera-10"].pointer.uid != before.moves["camera-10"].pointer.uid
    assert before.moves.keys() - known.moves.keys() == {"camera-11"}
    assert known.reservoirs.keys() == {"camera-8"}
    assert known.watches.keys() == {"camera-9"}
    registry.clear_reservoir("camera-8")
    watches.switch_off("camera-9")
    assert registry.snapshot(known) == registry.snapshot()
    assert registry.snapshot(known._replace(latest=10**6)) == registry.snapshot()  # an older backup was restored


def test_events_are_committed_in_the_order_of_their_numbers(registry: Registry, database: Database) -> None:
    """Otherwise one would be passed over by who has seen a later one."""
    registry.ensure_deployment("other", soup(1.0))
    known = registry.snapshot()
    ended = []

    def dial_the_other() -> None:
        registry.dial("other", soup(0.5))
        ended.append(registry.snapshot(known).latest)

    with database.write() as session:
        session.add(Event(deployment="default", kind="dial", to_version=1))
        session.flush()
        late = threading.Thread(target=dial_the_other)
        late.start()
        late.join(0.5)
        assert not ended
    late.join(20)
    assert registry.snapshot(known) == registry.snapshot()
    assert ended == [known.latest + 2]


def test_workers_say_which_move_they_follow(registry: Registry) -> None:
    registry.ensure_deployment("a-1", soup(1.0))
    move = registry.move("a-1")
    uid = move.pointer.uid
    beat = partial(registry.beat_worker, pid=1, host="h", provider=None)
    assert not registry.is_followed(move, stale_seconds=5)  # nobody lives
    beat("new", loaded={"a-1": 1}, moves={uid: move.seq})
    beat("old", loaded={"a-1": 1})
    told = {worker.id: (worker.version, worker.move) for worker in registry.workers_of("a-1", uid, stale_seconds=5)}
    assert told == {"new": (1, move.seq), "old": (1, None)}
    assert not registry.is_followed(move, stale_seconds=5)
    registry.remove_worker("old")
    assert registry.is_followed(move, stale_seconds=5)
    registry.point_at("a-1", 1)  # it is there already: nothing moves
    assert registry.is_latest(move)
    beat("new", loaded={}, moves={}, is_news=False)  # a heartbeat and no more
    assert registry.is_followed(move, stale_seconds=5)
    with pytest.raises(UnknownDeployment):
        registry.move("nobody")


def test_threads_that_dial_at_once_get_different_versions(registry: Registry) -> None:
    errors: list[BaseException] = []

    def dial(share: float) -> None:
        try:
            registry.dial("default", soup(share))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=dial, args=(position / 8,)) for position in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [soup.version for soup in registry.soups("default")] == list(range(9, 0, -1))


def _claim_all(url: str, owner: str, found: Any) -> None:
    jobs = JobQueue(Database(url))
    while (job := jobs.claim(owner, stale_seconds=STALE)) is not None:
        found.put(job.id)


def test_processes_never_claim_the_same_job(registry_url: str, registry: Registry, jobs: JobQueue) -> None:
    names = [f"job{position}" for position in range(12)]
    for name in names:
        add(jobs, name, max_queued=100)
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    workers = [context.Process(target=_claim_all, args=(registry_url, owner, found)) for owner in ("a", "b")]
    for worker in workers:
        worker.start()
    claims = [found.get(timeout=60) for _ in names]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sorted(claims) == sorted(names)
    assert found.empty()


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Call all at the same moment, each in its thread; returns what each returned or raised."""
    barrier = threading.Barrier(len(actions))
    results: list[Any] = [None] * len(actions)

    def call(position: int) -> None:
        barrier.wait()
        try:
            results[position] = actions[position]()
        except Exception as error:
            results[position] = error

    threads = [threading.Thread(target=call, args=(position,)) for position in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_promotions_at_the_same_moment_exactly_one_wins(registry: Registry, jobs: JobQueue) -> None:
    for turn in range(8):
        before = registry.deployment("default").version
        names = [f"{turn}-{position}" for position in range(3)]
        for name in names:
            add(jobs, name)
        work = [claimed(jobs, name) for name in names]
        found = [soup((turn + 1) / 10 + position / 100) for position in range(3)]
        ended = at_once(*(partial(jobs.finish, *pair, outcome(pair[1])) for pair in zip(work, found, strict=True)))
        assert sorted((job.state, job.reason) for job in ended) == [
            ("kept", SUPERSEDED),
            ("kept", SUPERSEDED),
            ("promoted", "because"),
        ]
        (winner,) = [job for job in ended if job.state == "promoted"]
        current = registry.deployment("default").version
        assert (winner.version, winner.previous_version) == (current, before)
        assert {job.version for job in ended} == {current}
        assert len({job.candidate_version for job in ended}) == 3
        (promotion,) = [event for event in events(registry) if event.job in names]
        assert (promotion.from_version, promotion.to_version) == (before, current)


def test_of_a_promotion_and_a_dial_at_the_same_moment_one_wins(registry: Registry, jobs: JobQueue) -> None:
    for turn in range(8):
        before = registry.deployment("default").version
        add(jobs, str(turn))
        job, found = claimed(jobs), soup((turn + 1) / 10)
        ended, dialled = at_once(
            partial(jobs.finish, job, found, outcome(found)),
            partial(registry.dial, "default", soup((turn + 1) / 20), expected_version=before),
        )
        assert (ended.state == "promoted") == isinstance(dialled, Conflict)
        moves = [event for event in events(registry) if event.from_version == before]
        assert [event.kind for event in moves] == ["promoted" if ended.state == "promoted" else "dial"]


def test_deployment_made_twice_at_once_is_made_once(registry: Registry) -> None:
    for turn in range(8):
        name = f"gate-{turn}"
        made = at_once(*(partial(registry.ensure_deployment, name, soup(1.0)) for _ in range(4)))
        assert sorted(map(str, made)) == ["False", "False", "False", "True"]
        assert [event.kind for event in events(registry, name)] == ["created"]


def test_deployment_deleted_while_its_job_ends_leaves_nothing_behind(registry: Registry, jobs: JobQueue) -> None:
    for turn in range(8):
        registry.ensure_deployment("gate", soup(1.0))
        add(jobs, str(turn), deployment="gate")
        ended, deleted = at_once(
            partial(jobs.finish, claimed(jobs), soup(0.5), outcome(soup(0.5))),
            partial(registry.delete_deployment, "gate"),
        )
        assert deleted == [str(turn)]
        assert ended is None or ended.state == "promoted"
        assert jobs.get(str(turn)) is None


def test_events_say_who_asked(registry: Registry, jobs: JobQueue) -> None:
    registry.ensure_deployment("gate", soup(1.0), who="maker")
    registry.dial("gate", soup(0.5), who="dialler")
    registry.point_at("gate", 1)
    add(jobs, "one", deployment="gate", who="labeller")
    jobs.finish(claimed(jobs), soup(0.25), outcome(soup(0.25)))
    registry.delete_deployment("gate", who="cleaner")
    told = [(event.kind, event.who, event.from_version, event.to_version) for event in events(registry, "gate")]
    assert told == [
        ("deleted", "cleaner", 3, None),
        ("promoted", "labeller", 1, 3),
        ("rollback", None, 2, 1),
        ("dial", "dialler", 1, 2),
        ("created", "maker", None, 1),
    ]


def test_events_come_in_pages(registry: Registry) -> None:
    for turn in range(5):
        registry.dial("default", soup(turn / 8))
    pages = [registry.events("default", limit=4)]
    pages.append(registry.events("default", limit=4, before=pages[0][-1].seq))
    assert [[event.to_version for event in page] for page in pages] == [[6, 5, 4, 3], [2, 1]]


def test_deployments_soups_and_jobs_come_in_pages(registry: Registry, jobs: JobQueue) -> None:
    for name in ("b", "a-1", "a"):
        registry.ensure_deployment(name, soup(1.0))
    names = [row.name for row in registry.deployments()]
    assert sorted(names) == ["a", "a-1", "b", "default"]
    pages = [registry.deployments(limit=3), registry.deployments(limit=3, before=names[2])]
    assert [row.name for page in pages for row in page] == names
    assert [row.name for row in registry.deployments(before=f"{names[1]}\0")] == names[2:]
    registry.dial("default", soup(0.5))
    assert [row.version for row in registry.soups("default", limit=1)] == [2]
    assert [row.version for row in registry.soups("default", limit=5, before=2)] == [1]
    assert len(registry.soups("default", before=10**18)) == 2
    for name in ("one", "two", "three"):
        add(jobs, name)
    assert [job.id for job in jobs.latest("default", limit=2)] == ["three", "two"]
    assert [job.id for job in jobs.latest("default", limit=2, before="two")] == ["one"]
    for nobody in ("four", "a\0b"):
        with pytest.raises(UnknownJob):
            jobs.latest("default", limit=2, before=nobody)
    with pytest.raises(UnknownJob):
        jobs.latest("a", limit=2, before="two")


def test_old_finished_jobs_are_forgotten_and_no_others(registry: Registry, jobs: JobQueue) -> None:
    for name in ("old", "new", "running", "queued"):
        add(jobs, name)
    jobs.finish(claimed(jobs), soup(0.5), outcome(soup(0.5)))
    between = time.time()
    time.sleep(0.05)
    jobs.finish(claimed(jobs), soup(0.25), outcome(soup(0.25)))
    claimed(jobs)
    assert jobs.forget(older_than=time.time() - between) == 0  # what it made is served
    registry.point_at("default", 1)
    assert jobs.forget(older_than=time.time() - between) == 1
    assert jobs.ids() == {"new", "running", "queued"}
    assert [row.job for row in registry.soups("default")] == ["new", "old", None]
    assert jobs.forget(older_than=time.time() - between) == 0


def test_what_no_column_can_hold_is_not_found(registry: Registry, jobs: JobQueue) -> None:
    assert jobs.get("a\0b") is None
    assert registry.events("a\0b", limit=1) == []
    with pytest.raises(UnknownDeployment):
        registry.deployment("a\0b")
    with pytest.raises(UnknownVersion):
        registry.point_at("default", 10**30)
    assert len(registry.events("default", limit=5, before=10**18)) == 1
