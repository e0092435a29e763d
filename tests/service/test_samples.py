"""Kept images: taken in with a job, read, deleted, limited; on SQLite and a folder, on PostgreSQL and S3."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, text, update

from adapt.documents.soup import Outcome, SearchSummary, Soup, default_soup
from adapt.images.support import Support
from service.store import packs as packs_module
from service.store.database import Database
from service.store.identity import read_owner
from service.store.intake import Intake, Submission, TooManySamples, Wanted
from service.store.jobs import JobQueue, QueueFull
from service.store.keeping import NothingKept
from service.store.material import Material
from service.store.objects import ObjectStore
from service.store.registry import Registry
from service.store.samples import Samples, SamplesGone
from service.store.tables import Job, Pack, Sample
from service.store.transactions import UnknownDeployment
from training.images import pixel_hash
from training.manifest import Manifest, read_manifest

NUM_PICTURES = 12
PICTURES = np.random.default_rng(0).integers(0, 256, (NUM_PICTURES, 16, 16, 3), dtype=np.uint8)
HASHES = [pixel_hash(picture) for picture in PICTURES]
SIZE = 16 * 16 * 3


class Place:
    """A registry with the deployment `default`, and an object store."""

    def __init__(self, url: str, store_url: str, manifest: Manifest) -> None:
        self.manifest = manifest
        self.database = Database(url)
        self.objects = ObjectStore(store_url)
        self.registry, self.jobs = Registry(self.database), JobQueue(self.database)
        self.samples = Samples(self.database, self.objects)
        self.registry.ensure_deployment("default", default_soup(manifest))

    def intake(self, *, max_images: int = 1000, max_queued: int = 100) -> Intake:
        return Intake(self.database, self.objects, max_bytes=max_images * SIZE, max_queued=max_queued)

    def submit(
        self, labelled: dict[int, int] | None = None, unlabelled: Sequence[int] = (), **options: Any
    ) -> Submission:
        """Send pictures by number with their labels, and pictures without."""
        limits = {key: options.pop(key) for key in ("max_images", "max_queued") if key in options}
        wanted = Wanted(options.pop("deployment", "default"), self.material(labelled or {}, unlabelled), **options)
        return self.intake(**limits).submit(wanted, self.manifest)

    def material(self, labelled: dict[int, int], unlabelled: Sequence[int] = ()) -> Material:
        chosen = list(labelled)
        support = Support(
            images=PICTURES[chosen],
            labels=np.asarray(list(labelled.values()), dtype=np.int64),
            hashes=tuple(HASHES[number] for number in chosen),
            class_names=self.manifest.class_names,
        )
        hashes = tuple(HASHES[number] for number in unlabelled)
        return Material(support if chosen else None, PICTURES[list(unlabelled)] if hashes else None, hashes)

    def load(self, job: Job) -> tuple[dict[int, int], list[int]]:
        """The numbers of the pictures that a job gets, with labels and without; each must be as it was sent."""
        material = self.samples.load(job, self.manifest)
        labelled, unlabelled = {}, []
        if material.support is not None:
            for image, label, digest in zip(
                material.support.images, material.support.labels, material.support.hashes, strict=True
            ):
                assert np.array_equal(image, PICTURES[HASHES.index(digest)])
                labelled[HASHES.index(digest)] = int(label)
        if material.unlabelled is not None:
            unlabelled = [HASHES.index(digest) for digest in material.unlabelled_hashes]
            assert np.array_equal(material.unlabelled, PICTURES[unlabelled])
        return labelled, unlabelled

    def finish(self, state: str = "kept") -> Job:
        """Let the next job end."""
        job = self.jobs.claim("me", stale_seconds=60)
        assert job is not None
        if state == "failed":
            self.jobs.fail(job, "no")
            return job
        found = default_soup(self.manifest)
        self.jobs.finish(job, found, outcome(found, job))
        return job

    def kept(self) -> dict[int, str]:
        """The pictures that are kept with their labels; the pixels of each must be in the store."""
        with self.database.read() as session:
            rows = session.scalars(select(Sample).order_by(Sample.added_at, Sample.hash)).all()
            known = set(session.scalars(select(Pack.id)))
        content = self.samples.packs.read({row.pack for row in rows})
        for row in rows:
            assert row.pack in known
            assert np.array_equal(content[row.pack][row.hash], PICTURES[HASHES.index(row.hash)])
        return {HASHES.index(row.hash): row.label for row in rows}

    def stored(self) -> list[int]:
        """The pictures whose pixels are anywhere in the store, as often as they are."""
        found = []
        for data in self.objects.read(self.objects.list("")).values():
            found += [number for number, picture in enumerate(PICTURES) if picture.tobytes() in data]
        return sorted(found)


def outcome(found: Soup, job: Job) -> Outcome:
    return Outcome.model_validate(
        {
            "state": "kept",
            "reason": "because",
            "coefficients": found.coefficients,
            "temperature": found.temperature,
            "bn_mode": found.bn_mode,
            "support": job.support,
            "accuracy": None,
            "search": SearchSummary(strategy="grid", candidates=3, image_forwards=6, seconds=0.1),
            "ingredients": {},
        }
    )


@pytest.fixture(params=["sqlite and a folder", "postgresql and s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, tiny_base_set: Path) -> Iterator[Place]:
    is_local = request.param.startswith("sqlite")
    place = Place(
        request.getfixturevalue("sqlite_url" if is_local else "postgres_url"),
        str(tmp_path / "objects") if is_local else request.getfixturevalue("bucket_url"),
        read_manifest(tiny_base_set),
    )
    with closing(place.database):
        yield place


def test_images_are_kept_and_read_by_their_job(place: Place) -> None:
    job, changes = place.submit({0: 1, 1: 0, 2: 1}, unlabelled=[3, 4])
    assert (changes.added, changes.relabelled) == (3, 0)
    assert (job.support["n"], job.support["unlabelled"]) == (3, 2)
    assert job.support["per_class"] == {"cat": 1, "dog": 2}
    assert place.load(job) == ({0: 1, 1: 0, 2: 1}, [3, 4])
    assert place.kept() == {0: "dog", 1: "cat", 2: "dog"}
    counts = place.samples.counts("default")
    assert (counts.per_class, counts.unused, counts.num_bytes) == ({"cat": 1, "dog": 2}, 3, 3 * SIZE)
    assert counts.oldest is not None
    assert time.time() - 60 < counts.oldest <= (counts.newest or 0) <= time.time()


def test_images_that_are_kept_are_not_stored_again(place: Place) -> None:
    place.submit({0: 1, 1: 0})
    job, changes = place.submit({1: 0, 2: 0, 0: 1})
    assert changes.added == 1
    assert place.stored() == [0, 1, 2]
    assert list(place.load(job)[0]) == [1, 2, 0]


def test_new_is_what_came_with_the_request_and_all_what_is_kept_as_well(place: Place) -> None:
    place.submit({0: 1, 1: 0})
    assert place.load(place.submit({2: 2}).job)[0] == {2: 2}
    every = place.submit({3: 0}, choice="all").job
    assert place.load(every)[0] == {3: 0, 0: 1, 1: 0, 2: 2}
    assert next(iter(place.load(every)[0])) == 3
    assert every.support["per_class"] == {"cat": 2, "dog": 1, "ship": 1}
    without_labels = place.submit(unlabelled=[5], choice="all").job
    assert place.load(without_labels) == ({0: 1, 1: 0, 2: 2, 3: 0}, [5])
    assert place.load(place.submit(unlabelled=[5]).job) == ({}, [5])


def test_request_without_images_means_those_kept(place: Place) -> None:
    for choice in ("new", "all"):
        with pytest.raises(NothingKept, match=r"no labelled image is kept|searched on"):
            place.submit(choice=choice)
    place.submit({0: 1, 1: 0})
    place.submit({2: 2})
    place.finish("failed")  # on the first two
    place.finish()
    assert place.load(place.submit(choice="new").job)[0] == {0: 1, 1: 0}
    assert place.load(place.submit(choice="all").job)[0] == {0: 1, 1: 0, 2: 2}
    place.finish()
    with pytest.raises(NothingKept, match="every image that is kept was searched on"):
        place.submit(choice="new")
    assert place.samples.counts("default").unused == 0


def test_same_samples_return_the_earlier_decision_however_they_were_chosen(place: Place) -> None:
    first = place.submit({0: 1, 1: 0}).job
    assert place.submit({1: 0, 0: 1}).job.id == first.id
    assert place.submit({1: 0}, choice="all").job.id == first.id
    assert place.submit(choice="all").job.id == first.id
    place.finish()
    assert place.submit(choice="all").job.id == first.id
    more = place.submit({2: 0}, choice="all").job
    assert more.id != first.id
    assert place.submit({0: 1}, choice="all").job.id == more.id
    assert place.submit({0: 1, 1: 0, 2: 0}).job.id == more.id
    place.samples.remove("default", digest=HASHES[2])
    assert place.submit(choice="all").job.id == first.id


def test_relabelled_image_replaces_and_is_reported(place: Place) -> None:
    first = place.submit({0: 1, 1: 0}).job
    job, changes = place.submit({0: 2, 1: 0})
    assert job.id != first.id
    assert (changes.added, changes.relabelled) == (0, 1)
    (relabel,) = changes.relabels
    assert (relabel.hash, relabel.before, relabel.after) == (HASHES[0], "dog", "ship")
    assert job.samples == changes.model_dump(mode="json")
    assert place.kept() == {0: "ship", 1: "cat"}
    assert place.load(first)[0] == {0: 1, 1: 0}  # it was accepted with these labels
    assert place.load(place.submit(choice="all").job)[0] == {0: 2, 1: 0}
    again, changes = place.submit({0: 1, 1: 0})  # judged already, but this is what the image is now said to be
    assert (again.id, changes.relabelled) == (first.id, 1)
    assert place.kept() == {0: "dog", 1: "cat"}


def test_refused_request_stores_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.submit({0: 1})
    before = place.stored()
    with pytest.raises(QueueFull):
        place.submit({1: 0, 0: 2}, unlabelled=[2], max_queued=1)
    with pytest.raises(UnknownDeployment):
        place.submit({1: 0}, unlabelled=[2], deployment="nobody")
    with pytest.raises(UnknownDeployment):
        place.submit(unlabelled=[2], deployment="nobody")
    with pytest.raises(TooManySamples, match="at most"):
        place.submit({1: 0, 2: 0, 3: 0}, max_images=2)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(place.objects, "write", fail)
    broken = Intake(place.database, place.objects, max_bytes=10**6, max_queued=9)
    with pytest.raises(OSError, match="no space"):
        broken.submit(Wanted("default", place.material({1: 0}, [2])), place.manifest)
    assert place.stored() == before
    assert place.kept() == {0: "dog"}
    assert len(place.jobs.ids()) == 1


def test_unlabelled_images_go_when_their_job_has_ended_or_is_not_needed(place: Place) -> None:
    job = place.submit({0: 1}, unlabelled=[1, 2]).job
    assert place.stored() == [0, 1, 2]
    assert place.submit({0: 1}, unlabelled=[2, 1]).job.id == job.id
    assert place.stored() == [0, 1, 2]
    place.samples.discard(job)
    assert place.stored() == [0]


@pytest.mark.parametrize(
    ("condition", "left"),
    [
        ({}, []),
        ({"digest": HASHES[1]}, [0, 2, 3]),
        ({"label": "cat"}, [0, 3]),
        ({"label": "cow"}, [0, 1, 2, 3]),
        ({"label": "a\0b"}, [0, 1, 2, 3]),
        ({"before": 10.0}, [0, 1, 2, 3]),
        ({"before": 1e10}, []),
        ({"label": "cat", "digest": HASHES[0]}, [0, 1, 2, 3]),
    ],
)
def test_deleting_really_deletes(place: Place, condition: dict[str, Any], left: list[int]) -> None:
    place.submit({0: 1, 1: 0})
    place.submit({2: 0, 3: 2})
    place.registry.ensure_deployment("other", default_soup(place.manifest))
    place.submit({0: 1, 4: 0}, deployment="other")
    assert place.samples.remove("default", who="cleaner", **condition) == 4 - len(left)
    assert place.stored() == sorted([*left, 0, 4])
    told = place.registry.events("default", limit=1)[0]
    assert (told.kind, told.who) == (("samples_deleted", "cleaner") if len(left) < 4 else ("created", None))


def test_deleting_a_class_does_not_mind_how_its_accents_are_written(place: Place) -> None:
    place.manifest = place.manifest.model_copy(update={"class_names": ("cafe\u0301", "cafe", "ship")})
    place.submit({0: 0, 1: 1, 2: 0})
    assert place.samples.remove("default", label="caf\u00e9") == 2
    assert place.kept() == {1: "cafe"}


def test_deleted_images_are_not_searched_on(place: Place) -> None:
    some, none = place.submit({0: 1, 1: 0}).job, place.submit({1: 0}, unlabelled=[5]).job
    place.samples.remove("default", digest=HASHES[1])
    assert place.load(some)[0] == {0: 1}
    with pytest.raises(SamplesGone, match="deleted"):
        place.samples.load(none, place.manifest)


def test_deleted_deployment_takes_its_images_along(place: Place) -> None:
    place.registry.ensure_deployment("gate", default_soup(place.manifest))
    uid = place.registry.deployment("gate").uid
    place.submit({0: 1, 1: 0}, unlabelled=[2], deployment="gate")
    place.submit({1: 0})
    jobs = place.registry.delete_deployment("gate")
    place.samples.forget(uid, jobs)
    assert place.stored() == [1]
    assert place.kept() == {1: "cat"}


def test_oldest_images_make_room(place: Place) -> None:
    place.submit({0: 1, 1: 0})
    place.submit({2: 0, 3: 0})
    place.submit({0: 1})  # sent again, so it is not old
    job = place.submit({4: 0, 5: 0}, choice="all", max_images=4).job
    assert len(place.kept()) == 4
    assert {0, 4, 5} < set(place.kept())
    assert set(place.load(job)[0]) == set(place.kept())
    place.samples.packs.clean()
    assert place.stored() == sorted(place.kept())


def test_images_that_are_too_old_go(place: Place) -> None:
    place.submit({0: 1, 1: 0})
    between = time.time()
    time.sleep(0.05)
    place.submit({1: 0, 2: 0})
    assert place.samples.expire(older_than=time.time() - between) == 1
    assert place.samples.expire(older_than=time.time() - between) == 0
    place.samples.packs.clean()
    assert place.stored() == [1, 2]
    assert place.kept() == {1: "cat", 2: "cat"}


def crash(*_: object, **__: object) -> None:
    raise KeyboardInterrupt  # nothing catches it, as nothing catches SIGKILL


def test_crash_between_objects_and_rows_loses_nothing_and_is_swept_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.submit({0: 1})
    with monkeypatch.context() as patch:
        patch.setattr(Intake, "_record", crash)
        patch.setattr(Intake, "_undo", lambda *_: None)  # the process is gone
        with pytest.raises(KeyboardInterrupt):
            place.submit({1: 0}, unlabelled=[2])
    assert place.stored() == [0, 1, 2]
    assert place.kept() == {0: "dog"}
    place.samples.packs.sweep()
    assert place.stored() == [0, 1, 2]  # they might belong to a request that is being recorded
    monkeypatch.setattr(packs_module, "ORPHAN_SECONDS", -10)
    place.samples.packs.sweep()
    assert place.stored() == [0]
    assert place.submit({1: 0}).changes.added == 1


@pytest.mark.parametrize("moment", ["write", "_forget"])
def test_crash_while_a_pack_is_replaced_is_made_good(
    place: Place, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.submit({0: 1, 1: 0, 2: 0})
    with monkeypatch.context() as patch:
        patch.setattr(packs_module.Packs, moment, crash)
        with pytest.raises(KeyboardInterrupt):
            place.samples.remove("default", digest=HASHES[1])
    assert place.kept() == {0: "dog", 2: "cat"}
    place.samples.packs.clean()
    assert place.stored() == [0, 2]
    assert place.kept() == {0: "dog", 2: "cat"}


def test_store_that_fails_while_deleting_is_caught_up_with(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.submit({0: 1, 1: 0})
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "delete", lambda *_: (_ for _ in ()).throw(OSError("gone")))
        with pytest.raises(OSError, match="gone"):
            place.samples.remove("default", label="cat")
    assert place.kept() == {0: "dog"}
    assert place.samples.remove("default", label="cat") == 0
    assert place.stored() == [0]


def test_lost_and_damaged_packs_are_left_out(place: Place) -> None:
    place.submit({0: 1})
    place.submit({1: 0})
    place.submit({2: 0})
    with place.database.read() as session:
        packs = {HASHES.index(row.hash): row.pack for row in session.scalars(select(Sample))}
    place.objects.delete([key for key in place.objects.list("") if packs[0] in key])
    (key,) = (key for key in place.objects.list("") if packs[1] in key)
    data = place.objects.read([key])[key]
    place.objects.write(key, data[:-40])
    job = place.submit(choice="all").job
    assert place.load(job)[0] == {2: 0}
    place.samples.remove("default", digest=HASHES[2])
    with pytest.raises(SamplesGone, match="damaged"):
        place.samples.load(job, place.manifest)


def test_images_of_another_input_size_are_left_out_until_they_are_sent_again(place: Place) -> None:
    place.submit({0: 1, 1: 0})
    with place.database.write() as session:
        for pack in session.scalars(select(Pack)):
            pack.height = 32
    assert place.load(place.submit({2: 0}, choice="all").job)[0] == {2: 0}
    again = place.submit({1: 0}, choice="all")
    assert again.changes.added == 0
    assert place.load(again.job)[0] == {1: 0, 2: 0}
    place.samples.packs.clean()
    assert place.stored() == [0, 1, 2]


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    results: list[Any] = [None] * len(actions)

    def call(position: int) -> None:
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


def test_requests_and_deletions_at_once_end_well(place: Place) -> None:
    """Whatever happens at the same time: rows and pixels agree, and nothing that was deleted is left."""
    for turn in range(4):
        results = at_once(
            lambda: place.submit({0: 1, 1: 0, 2: 0}, promote="never"),
            lambda: place.submit({1: 0, 2: 0, 3: 0}, choice="all"),
            lambda: place.samples.remove("default", digest=HASHES[1]),
            lambda: place.samples.remove("default", label="dog"),
            lambda: place.samples.packs.clean(),
            partial(place.submit, {4 + turn: 2}),
        )
        assert [result for result in results if isinstance(result, Exception)] == []
        for result in results:
            if isinstance(result, Submission):
                assert result.job.id in place.jobs.ids()
        place.samples.packs.clean()
        assert sorted(place.kept()) == place.stored()
        while place.jobs.claim("me", stale_seconds=60) is not None:
            pass


def test_large_requests_are_several_packs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store.intake.PACK_BYTES", 3 * SIZE)
    monkeypatch.setattr("service.store.keeping.CHUNK", 2)
    labelled = {number: number % 3 for number in range(8)}
    job = place.submit(labelled).job
    assert len(place.objects.list(f"{read_owner(place.database).id}/packs")) == 3
    assert place.load(job)[0] == labelled
    place.finish()
    assert place.samples.counts("default").unused == 0
    assert len(place.objects.list("")) == 3


@pytest.fixture
def on_postgresql(postgres_url: str, tmp_path: Path, tiny_base_set: Path) -> Iterator[Place]:
    """A place where two transactions write at the same time, which SQLite does not have."""
    place = Place(postgres_url, str(tmp_path / "objects"), read_manifest(tiny_base_set))
    with closing(place.database):
        yield place


WAIT = "CREATE FUNCTION wait() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END' LANGUAGE plpgsql"


def slowly(place: Place, action: str, table: str) -> None:
    """Let every statement of a kind on a table hold its locks for half a second."""
    trigger = f"CREATE TRIGGER slow AFTER {action} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION wait()"
    with place.database.write() as session:
        for statement in (WAIT, trigger):
            session.execute(text(statement))


def after(seconds: float, action: Callable[[], Any]) -> Callable[[], Any]:
    def later() -> Any:
        time.sleep(seconds)
        return action()

    return later


def age(place: Place, *pictures: int) -> None:
    """Have pictures been sent long ago."""
    with place.database.write() as session:
        old = Sample.hash.in_([HASHES[number] for number in pictures])
        session.execute(update(Sample).where(old).values(given_at=1))


def test_request_and_expiry_of_the_same_images_wait_for_each_other(on_postgresql: Place) -> None:
    """The request changes rows, then packs; expiry changed packs, then rows: each waited for the other."""
    place = on_postgresql
    place.submit({0: 0, 1: 1, 2: 2})
    age(place, 0, 1)
    slowly(place, "UPDATE", "samples")
    # It gives 0 again, and relabels it; there is room for 3, so that the oldest, 1, goes, whose pack is that of 0.
    again = partial(place.submit, {0: 1, 3: 1}, max_images=3)
    sent, expired = at_once(again, after(0.2, partial(place.samples.expire, older_than=1000)))
    assert not isinstance(sent, Exception), sent
    assert not isinstance(expired, Exception), expired
    assert sorted(place.kept()) == [0, 2, 3]


def test_room_is_made_once_while_images_expire(on_postgresql: Place) -> None:
    """What expired meanwhile counted as too much: more was deleted than had to be, or the request never ended."""
    place = on_postgresql
    place.submit(dict.fromkeys(range(6), 0))
    age(place, 0, 1, 2)
    slowly(place, "DELETE", "samples")
    send = partial(place.submit, {6: 0}, max_images=4)
    expired, sent = at_once(partial(place.samples.expire, older_than=1000), after(0.2, send))
    assert expired == 3
    assert not isinstance(sent, Exception), sent
    assert sorted(place.kept()) == [3, 4, 5, 6]


def test_image_that_is_deleted_while_its_pack_is_copied_is_gone(on_postgresql: Place) -> None:
    """Its row went, but the new pack was not marked: its pixels would have stayed for good."""
    place = on_postgresql
    place.submit({0: 0, 1: 1, 2: 2})
    with place.database.write() as session:
        session.execute(update(Pack).values(is_stale=True))
    slowly(place, "UPDATE", "samples")
    cleaned, removed = at_once(
        place.samples.packs.clean, after(0.2, partial(place.samples.remove, "default", digest=HASHES[1]))
    )
    assert (cleaned, removed) == (None, 1)
    assert sorted(place.kept()) == [0, 2]
    place.samples.packs.clean()
    assert place.stored() == [0, 2]


def test_image_that_is_deleted_while_its_pack_is_written_is_gone_when_that_ends(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.submit({0: 0, 1: 1, 2: 2, 3: 0})
    write = ObjectStore.write

    def delete_and_write(store: ObjectStore, key: str, data: bytes) -> None:
        monkeypatch.setattr(ObjectStore, "write", write)
        assert place.samples.remove("default", digest=HASHES[1]) == 1
        write(store, key, data)

    with place.database.write() as session:
        session.execute(update(Pack).values(is_stale=True))
    monkeypatch.setattr(ObjectStore, "write", delete_and_write)
    place.samples.packs.clean()
    assert place.stored() == [0, 2, 3]
    assert sorted(place.kept()) == [0, 2, 3]
