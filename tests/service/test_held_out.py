"""What a version remembers of its images, from one adaptation to the next: intake, store, search, watch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from sqlalchemy import select

from adapt.documents.held_out import Answered, make_held_out
from adapt.documents.soup import Soup, default_soup, make_soup
from adapt.evidence.levels import attempt_level, p_threshold
from adapt.images.support import Support
from adapt.networks.forward import served_logits
from adapt.search.comparison import Comparison
from adapt.search.config import SearchConfig
from adapt.search.search import search
from service.adapter.loop import AdapterLoop
from service.adapter.searching import Searcher
from service.metrics import Metrics
from service.prediction.catalog import read_catalog
from service.settings import Settings
from service.store.database import Database
from service.store.intake import Intake, Wanted
from service.store.jobs import JobQueue
from service.store.material import Material
from service.store.objects import ObjectStore
from service.store.references import References
from service.store.registry import Registry
from service.store.samples import Samples
from service.store.tables import Job, SoupVersion
from service.store.watches import Watches
from training.bases import load_base_set
from training.images import pixel_hash, to_input

NUM_IMAGES = 1200
WRONG = 0.6  # share of labels drawn at random: a fit to some images does worse on others
FIRST = range(60)
MORE = range(60, 100)
UNSEEN = slice(600, NUM_IMAGES)


class Site:
    """Intake, registry and adapter, with a deployment `default`; jobs are done in this thread."""

    def __init__(self, home: Path, folder: Path, url: str) -> None:
        self.settings = Settings(home=home, bases=folder, database_url=url, threads=1, promote_p=0.05)
        self.base = load_base_set(folder)
        self.manifest = self.base.manifest
        self.pixels = np.random.default_rng(7).integers(0, 256, (NUM_IMAGES, 16, 16, 3), dtype=np.uint8)
        self.hashes = [pixel_hash(picture) for picture in self.pixels]
        self.labels = self._labels()
        self.database, objects = Database(url), ObjectStore(str(home / "objects"))
        self.registry, self.jobs = Registry(self.database), JobQueue(self.database)
        self.samples, self.watches = Samples(self.database, objects), Watches(self.database)
        self.intake = Intake(self.database, objects, max_bytes=10_000_000, max_queued=10)
        catalog = read_catalog(folder, check_files=False)
        self.searcher = Searcher(self.settings, catalog)
        references = References(self.database, objects)
        stores = (self.registry, self.jobs, self.samples, references, self.watches)
        self.loop = AdapterLoop(self.settings, catalog, *stores, Metrics(CollectorRegistry()))
        self.registry.ensure_deployment("default", default_soup(self.manifest))

    @torch.no_grad()
    def _labels(self) -> np.ndarray:
        labels = self.base.model("l2")(torch.from_numpy(to_input(self.pixels))).argmax(1).numpy()
        generator = np.random.default_rng(1)
        wrong = generator.random(NUM_IMAGES) < WRONG
        labels[wrong] = generator.integers(0, 3, wrong.sum())
        return labels

    def adapt(self, chosen: Sequence[int] = (), **asked: Any) -> Job:
        """Send images by number, let the adapter do the job, and return it."""
        images = Support(
            images=self.pixels[list(chosen)],
            labels=self.labels[list(chosen)],
            hashes=tuple(self.hashes[number] for number in chosen),
            class_names=self.manifest.class_names,
        )
        material = Material(images if len(chosen) else None, None, ())
        wanted = Wanted("default", material, effort="quick", **asked)  # a follow-up would be one attempt more
        queued = self.intake.submit(wanted, self.manifest).job
        if (job := self.jobs.claim("me", stale_seconds=60)) is not None:
            self.loop._work(self.searcher, job)
        found = self.jobs.get(queued.id)
        assert found is not None
        assert found.state in ("promoted", "kept"), found.reason
        return found

    def served(self) -> Soup:
        return self.registry.soup("default", self.registry.deployment("default").version, held_out=True)

    def answers(self) -> Answered:
        held_out = self.served().held_out
        assert held_out is not None
        return held_out.answers()

    def right(self, chosen: Sequence[int] | slice) -> np.ndarray:
        """Whether the version that is served, as it is, is right on images."""
        numbers = np.arange(NUM_IMAGES)[chosen]
        logits = served_logits(self.searcher._base("tiny"), self.served(), self.pixels[numbers])
        return np.asarray(logits.argmax(dim=1).numpy() == self.labels[numbers])

    def right_held_out(self, chosen: Sequence[int]) -> np.ndarray:
        """Whether its held-out answers to images are right."""
        known = self.answers()
        rows = known.logits[[known.hashes.index(self.hashes[number]) for number in chosen]]
        return np.asarray(rows.argmax(axis=1) == self.labels[list(chosen)])


@pytest.fixture
def site(tmp_path: Path, tiny_base_set: Path, sqlite_url: str) -> Iterator[Site]:
    site = Site(tmp_path, tiny_base_set, sqlite_url)
    yield site
    site.database.close()


def accuracy(job: Job) -> dict[str, Any]:
    assert job.outcome is not None
    found: dict[str, Any] = job.outcome["accuracy"]
    return found


def test_later_adaptations_judge_a_version_by_answers_made_without_the_image(site: Site) -> None:
    """The fault: a version looked as good as it is on the very images that it was fitted to."""
    first = site.adapt(FIRST, promote="always")
    assert (first.state, first.attempt, first.outcome and first.outcome["level"]) == ("promoted", None, None)
    assert accuracy(first)["judged"] == {"fresh": 60, "held_out": 0, "left_out": 0}
    unseen, fitted = site.right(UNSEEN).mean(), site.right(FIRST).mean()
    assert fitted > unseen + 0.08

    same = site.adapt(FIRST)
    assert accuracy(same)["judged"] == {"fresh": 0, "held_out": 60, "left_out": 0}
    assert accuracy(same)["current"] == pytest.approx(site.right_held_out(FIRST).mean())
    assert accuracy(same)["current"] == pytest.approx(unseen, abs=0.06)

    more = site.adapt(MORE, choice="all")
    assert (same.state, more.state) == ("kept", "kept")
    assert accuracy(more)["judged"] == {"fresh": 40, "held_out": 60, "left_out": 0}
    right = np.concatenate([site.right_held_out(FIRST), site.right(MORE)])
    assert accuracy(more)["current"] == pytest.approx(right.mean())
    assert (same.attempt, more.attempt) == (1, 2)
    assert more.outcome is not None
    assert more.outcome["level"] == pytest.approx(p_threshold(attempt_level(2, [60, 100]), 100))


def test_attempts_on_growing_images_are_less_strict_than_unrelated_ones(site: Site) -> None:
    first = site.adapt(FIRST, promote="never")
    grown = site.adapt(MORE, choice="all", promote="never")
    apart = site.adapt(range(100, 130), promote="never")
    everything = site.adapt(range(130, 150), choice="all", promote="never")
    jobs = [first, grown, apart, everything]
    assert [job.attempt for job in jobs] == [1, 2, 3, 4]
    levels = [job.outcome["level"] for job in jobs if job.outcome is not None]
    assert levels == pytest.approx(
        [
            p_threshold(attempt_level(1), 60),
            p_threshold(attempt_level(2, [60, 100]), 100),
            p_threshold(attempt_level(3), 30),  # the images before are not among these
            p_threshold(attempt_level(4, [30, 150]), 150),  # the chain to the second is broken
        ]
    )
    site.jobs.forget(older_than=-1)
    late = site.adapt(range(150, 160), choice="all", promote="never")
    assert late.outcome is not None
    assert late.outcome["level"] == pytest.approx(p_threshold(attempt_level(5), 160))  # no job is left to say so


def test_deleted_images_break_nothing_and_are_no_fresh_ones_when_they_come_back(site: Site) -> None:
    site.adapt(FIRST, promote="always")
    for number in FIRST[:30]:
        assert site.samples.remove("default", digest=site.hashes[number]) == 1
    rest = site.adapt(MORE, choice="all")
    assert accuracy(rest)["judged"] == {"fresh": 40, "held_out": 30, "left_out": 0}
    again = site.adapt(FIRST[:30])
    assert accuracy(again)["judged"] == {"fresh": 0, "held_out": 30, "left_out": 0}
    assert accuracy(again)["current"] == pytest.approx(site.right_held_out(FIRST[:30]).mean())
    site.samples.remove("default")
    only = site.adapt(MORE[:20])
    assert accuracy(only)["judged"] == {"fresh": 20, "held_out": 0, "left_out": 0}


def test_relabelled_images_are_judged_by_their_new_label(site: Site) -> None:
    site.adapt(FIRST, promote="always")
    before = site.right_held_out(FIRST)
    wrong = FIRST[:25]
    site.labels[list(wrong)] = (site.labels[list(wrong)] + 1) % 3
    job = site.adapt(wrong, choice="all")
    assert job.samples is not None
    assert job.samples["relabelled"] == 25
    after = site.right_held_out(FIRST)
    assert (before != after).any()
    assert accuracy(job)["current"] == pytest.approx(after.mean())


def test_held_out_answers_are_on_the_scale_of_the_network(site: Site) -> None:
    """They are stored with the temperature applied, while a network answers without it: one temperature fits both."""
    alone = dict.fromkeys(site.manifest.ingredient_names, 0.0) | {"l2": 1.0}
    images = Support(site.pixels[:60], site.labels[:60], tuple(site.hashes[:60]), site.manifest.class_names)
    network = site.searcher._base("tiny")
    plain = make_soup(site.manifest, alone, temperature=4.0)
    answers = served_logits(network, plain, images.images).numpy() / plain.temperature
    folds = images.folds(5, seed=0)
    held_out = make_held_out(images.hashes[:30], folds[:30], answers[:30])  # the same that it answers by itself
    config = SearchConfig(rungs=(), threads=1)
    expected = search(network, images, config, current=plain)
    found = search(network, images, config, current=plain.model_copy(update={"held_out": held_out}))
    np.testing.assert_allclose(found.scores.losses[:, 0], expected.scores.losses[:, 0], atol=0.02)


def test_dial_and_default_remember_no_images_and_a_way_back_needs_nothing(site: Site) -> None:
    assert site.served().held_out is None
    first = site.adapt(FIRST, promote="always")
    known = site.served().held_out
    assert known is not None
    site.registry.dial("default", default_soup(site.manifest))
    assert site.served().held_out is None
    assert accuracy(site.adapt(FIRST))["judged"] == {"fresh": 60, "held_out": 0, "left_out": 0}
    assert first.version is not None
    site.registry.point_at("default", first.version)
    assert site.served().held_out == known


def test_predictors_read_no_held_out_answers(site: Site) -> None:
    first = site.adapt(FIRST, promote="always")
    assert first.version is not None
    assert site.registry.soup("default", first.version).held_out is None
    with site.database.read() as session:
        row = session.scalars(select(SoupVersion).where(SoupVersion.version == first.version)).one()
        assert "held_out" not in row.__dict__  # not loaded yet
    assert row.soup["held_out"]["images"] == row.soup["held_out"]["answered"] == 60
    assert site.registry.delete_deployment("default")
    with site.database.read() as session:
        assert session.scalars(select(SoupVersion.held_out)).all() == []


def test_watch_keeps_to_the_level_of_the_attempt_and_to_images_that_neither_version_was_made_from(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.watches.switch_on("default", 50, 0.2)
    version = site.adapt(FIRST, promote="always").version
    site.samples.remove("default")
    compared: list[tuple[str, ...]] = []

    def compare(base_set: str, images: Support, **_: Any) -> Comparison:
        compared.append(images.hashes)
        return Comparison(n=len(images), soup=0.9, current=0.5, p_value=0.02, objection=None)

    monkeypatch.setattr(site.searcher, "compare", compare)
    assert site.adapt(FIRST, promote="never").version == version  # sent again, they only look new
    assert compared == []
    second = site.adapt([*FIRST[:10], *MORE], promote="never")
    assert [set(images) for images in compared] == [{site.hashes[number] for number in MORE}]
    assert (second.attempt, second.version) == (2, version)  # 0.02 is not below the level of the second attempt

    site.registry.dial("default", default_soup(site.manifest))
    rolled_back = site.adapt(range(100, 130), promote="never")
    assert (rolled_back.attempt, rolled_back.version) == (1, version)
    assert "p = 0.02, below 0.025" in str(rolled_back.reason)


def test_likely_promotes_unproven_where_the_stated_harm_is_improbable(site: Site) -> None:
    careful = site.adapt(FIRST, promote="likely")
    found = accuracy(careful)
    assert (careful.state, careful.attempt) == ("kept", 1)
    assert found["p_value"] > 0.025
    assert found["chance_of_harm"] > 0.05
    assert "losing more than 2 points" in str(careful.reason)
    assert site.adapt(FIRST, promote="likely", strategy="grid").id == careful.id

    bold = site.settings.model_copy(update={"harm": 0.1})
    site.searcher = Searcher(bold, read_catalog(*bold.bases_folders, check_files=False))
    site.registry.dial("default", default_soup(site.manifest))  # the same soup as another version
    daring = site.adapt(FIRST, promote="likely")
    assert (daring.state, daring.attempt) == ("promoted", 1), daring.reason
    assert "losing more than 10 points" in str(daring.reason)
    assert accuracy(daring)["p_value"] == pytest.approx(found["p_value"])
    event = site.registry.events("default", limit=1)[0]
    assert (event.kind, event.job, event.unproven) == ("promoted", daring.id, True)
    site.registry.point_at("default", 1)
    assert site.adapt(MORE).attempt == 2
