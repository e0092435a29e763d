"""The labelled images that deployments keep: counted, read, deleted. `service.store.intake` is how they come in."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from sqlalchemy import func, select

from adapt.images.support import Support
from service.store.clock import Now
from service.store.database import Database, is_text
from service.store.keeping import packs_of, samples_of
from service.store.material import Images, Material, Selected, unpack_selection
from service.store.objects import ObjectStore
from service.store.packs import Packs, drop_samples
from service.store.tables import Event, Job, Pack, Sample
from service.store.transactions import UnknownDeployment, get_deployment
from training.folders import composed
from training.manifest import Manifest

logger = logging.getLogger(__name__)

READ_ATTEMPTS = 3  # a pack may be replaced between looking it up and reading it


class SamplesGone(ValueError):
    """The images of a job were deleted, or are damaged."""


class SampleCounts(NamedTuple):
    """The labelled images that a deployment keeps."""

    per_class: dict[str, int]
    unused: int  # that no search has seen
    num_bytes: int
    oldest: float | None
    newest: float | None


class Samples:
    """The labelled images of all deployments, and the unlabelled ones of jobs that are not done."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database = database
        self.packs = Packs(database, objects)

    def counts(self, deployment: str) -> SampleCounts:
        """Return what a deployment keeps.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        ours = Sample.deployment == deployment
        totals = (
            select(func.sum(Pack.height * Pack.width * 3), func.min(Sample.given_at), func.max(Sample.given_at))
            .join_from(Sample, Pack, Pack.id == Sample.pack)
            .where(ours)
        )
        with self._database.read() as session:
            get_deployment(session, deployment)
            counts = session.execute(select(Sample.label, func.count()).where(ours).group_by(Sample.label)).all()
            unused = session.scalar(select(func.count()).where(ours, Sample.used_at.is_(None)))
            num_bytes, oldest, newest = session.execute(totals).one()
        per_class = {row[0]: row[1] for row in sorted(counts)}
        return SampleCounts(per_class, unused or 0, int(num_bytes or 0), oldest, newest)

    def remove(
        self,
        deployment: str,
        *,
        digest: str | None = None,
        label: str | None = None,
        before: float | None = None,
        who: str | None = None,
    ) -> int:
        """Delete the images of a deployment for which all of these hold, rows and pixels; return how many.

        Args:
            deployment: its name.
            digest: pixel hash of the one image.
            label: of the images; accents composed or not.
            before: last given before this time.
            who: name of the API key that asked.

        Raises:
            UnknownDeployment: there is none of that name.
            OSError: the store does not answer; the rows are gone, and the pixels go as soon as it does.
        """
        conditions = [Sample.deployment == deployment]
        if digest is not None:
            conditions.append(Sample.hash == digest)
        if before is not None:
            conditions.append(Sample.given_at < before)
        with self._database.write() as session:
            found = get_deployment(session, deployment, lock=True)
            if label is not None:
                kept = session.scalars(select(Sample.label).where(Sample.deployment == deployment).distinct())
                conditions.append(Sample.label.in_([name for name in kept if composed(name) == composed(label)]))
            count = drop_samples(session, *conditions) if is_text(f"{digest}{label}") else 0
            if count:
                session.add(Event(deployment=deployment, kind="samples_deleted", who=who))
        self.packs.clean(owner=found.uid)
        return count

    def arrived(self, deployment: str, hashes: Sequence[str], *, since: float) -> set[str]:
        """Return which of these images a deployment keeps and did not before a time (seconds since 1970)."""
        with self._database.read() as session:
            return {row.hash for row in samples_of(session, deployment, hashes) if row.added_at > since}

    def forget(self, owner: str, jobs: Sequence[str]) -> None:
        """Delete the objects of a deployment that is gone; deletions that fail now are repeated later."""
        try:
            self.packs.clean(owner=owner)
            self.packs.delete_unlabelled(jobs)
        except OSError as error:
            logger.warning("the store cannot be used: %s", error)

    def expire(self, *, older_than: float) -> int:
        """Delete the rows of images last sent more than a number of seconds ago; return how many.

        Cleaning deletes the pixels.
        """
        is_old, count = Sample.given_at < Now() - older_than, 0
        with self._database.read() as session:  # nothing to do, mostly: then nobody is locked out
            names = session.scalars(select(Sample.deployment).where(is_old).distinct()).all()
        for name in names:
            with suppress(UnknownDeployment), self._database.write() as session:
                get_deployment(session, name, lock=True)  # as all do who change rows of images
                count += drop_samples(session, Sample.deployment == name, is_old)
        return count

    def load(self, job: Job, manifest: Manifest) -> Material:
        """Return the images of a job, those of them that are still kept.

        Raises:
            SamplesGone: none is, or they are damaged.
            OSError: the store does not answer.
        """
        with self._database.read() as session:
            selection = session.scalar(select(Job.selection).where(Job.seq == job.seq))
        support = self._support(job.deployment, unpack_selection(selection or b""), manifest)
        content = None
        if job.support.get("unlabelled") and (content := self.packs.read_unlabelled(job.follows or job.id)) is None:
            raise SamplesGone("the stored images of this job are missing or damaged")
        if support is None and (selection or content is None):
            raise SamplesGone("the stored images of this job were deleted, or are damaged")
        hashes, unlabelled = content or ((), None)
        return Material(support, unlabelled, hashes)

    def discard(self, job: Job) -> None:
        """Delete the unlabelled images of a job that has ended, but not before its follow-up has.

        If the store fails, the hourly sweep deletes them.
        """
        if job.followed_by is not None:
            return
        try:
            self.packs.delete_unlabelled([job.follows or job.id])
        except OSError as error:
            logger.warning("the store cannot be used: %s", error)

    def _support(self, deployment: str, selected: Sequence[Selected], manifest: Manifest) -> Support | None:
        images = self._images(deployment, [digest for digest, _ in selected])
        shape = (manifest.input.height, manifest.input.width, 3)
        kept = [item for item in selected if item.hash in images and images[item.hash].shape == shape]
        if not kept:
            return None
        return Support(
            images=np.stack([images[digest] for digest, _ in kept]),
            labels=np.asarray([label for _, label in kept], dtype=np.int64),
            hashes=tuple(digest for digest, _ in kept),
            class_names=manifest.class_names,
        )

    def _images(self, deployment: str, hashes: Sequence[str]) -> dict[str, Images]:
        """Return the kept images among these, by hash."""
        images: dict[str, Images] = {}
        for _ in range(READ_ATTEMPTS):
            by_pack: dict[str, list[str]] = defaultdict(list)
            with self._database.read() as session:
                for digest, pack in packs_of(session, deployment, set(hashes) - images.keys()):
                    by_pack[pack].append(digest)
            found = self.packs.read(by_pack)
            for pack, content in found.items():
                images |= {digest: content[digest] for digest in by_pack[pack] if digest in content}
            if len(found) == len(by_pack):
                break
        return images
