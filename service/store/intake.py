"""From the images of a request to a queued job: new images are stored, known ones are found, all or nothing."""

from typing import NamedTuple

from sqlalchemy import select

from service.store.database import UNAVAILABLE, Database
from service.store.jobs import add_job
from service.store.keeping import (
    Choice,
    Moved,
    SampleChanges,
    Written,
    fitting,
    keep,
    make_room,
    samples_of,
    select_images,
)
from service.store.material import Material, digest_of, pack_selection, summary_of
from service.store.objects import ObjectStore
from service.store.packs import Packs
from service.store.tables import Job, Pack, new_id
from service.store.transactions import Conflict, get_deployment, get_soup
from training.manifest import Manifest

PACK_BYTES = 32_000_000  # most pixels of one pack: its rest must be written to a new one when one image is deleted
ATTEMPTS = 3


class TooManySamples(ValueError):
    """The labelled images of one request are more than a deployment may keep."""


class Wanted(NamedTuple):
    """The options of a request for an adaptation."""

    deployment: str
    material: Material
    choice: Choice = "new"
    strategy: str = "auto"
    promote: str = "auto"
    balance: str = "none"
    effort: str = "auto"
    who: str | None = None  # name of the API key
    draw: str = "any"


class Submission(NamedTuple):
    """A job, queued now or earlier, and what the request that asked for it changed among the kept images."""

    job: Job
    changes: SampleChanges


class Intake:
    """Takes requests for adaptations in."""

    def __init__(self, database: Database, objects: ObjectStore, *, max_bytes: int, max_queued: int) -> None:
        """Remember the limits.

        Args:
            database: the registry's.
            objects: where pixels go.
            max_bytes: of the labelled images that one deployment keeps; the oldest make room.
            max_queued: jobs that wait.
        """
        self._database, self._packs = database, Packs(database, objects)
        self._max_bytes, self._max_queued = max_bytes, max_queued

    def submit(self, request: Wanted, manifest: Manifest) -> Submission:
        """Keep the labelled images and queue a job, or find the earlier job that answers the request.

        The job searches on the labelled images of the request, with `choice` "all" also on those kept before. Without
        any image in the request, "new" means the kept ones that no search has seen.

        Args:
            request: with images at the network's input size.
            manifest: of the deployment's base set.

        Raises:
            UnknownDeployment, QueueFull, NothingKept, TooManySamples, Conflict: nothing was stored.
            OSError, or what `UNAVAILABLE` lists: it cannot be stored; nothing is.
        """
        num_bytes = len(request.material.selected) * _bytes_per_image(manifest)
        if num_bytes > self._max_bytes:
            raise TooManySamples(
                f"expected labelled images of at most {self._max_bytes / 1e6:g} MB together at the network's input "
                f"size, got {num_bytes / 1e6:.4g} MB"
            )
        for _ in range(ATTEMPTS):
            job, packs = new_id(), list[Written]()
            try:
                self._write(job, request, manifest, packs)
                submission = self._record(job, request, manifest, packs)
            except BaseException as error:
                self._undo(job, packs)
                if isinstance(error, Moved):  # somebody deletes images: look again what has to be written
                    continue
                raise
            if submission.job.id != job and request.material.unlabelled is not None:
                self._packs.delete_unlabelled([job], are_new=True)
            return submission
        raise Conflict("the images that the deployment keeps are being deleted: try again")

    def _write(self, job: str, request: Wanted, manifest: Manifest, packs: list[Written]) -> None:
        """Write the images that are not kept yet, and those without labels; `packs` tells which, also if it fails."""
        support, unlabelled = request.material.support, request.material.unlabelled
        if support is not None:
            with self._database.read() as session:
                get_deployment(session, request.deployment)
                kept = fitting(session, samples_of(session, request.deployment, support.hashes), manifest.input)
            missing = [index for index, digest in enumerate(support.hashes) if digest not in kept]
            per_pack = max(1, PACK_BYTES // _bytes_per_image(manifest))
            for start in range(0, len(missing), per_pack):
                part = missing[start : start + per_pack]
                packs.append(Written(new_id(), tuple(support.hashes[index] for index in part)))
                self._packs.write(*packs[-1], support.images[part])
        if unlabelled is not None:
            self._packs.write_unlabelled(job, request.material.unlabelled_hashes, unlabelled)

    def _record(self, job: str, request: Wanted, manifest: Manifest, packs: list[Written]) -> Submission:
        """Write the rows of images and job in one transaction."""
        name, material, choice = request.deployment, request.material, request.choice
        with self._database.write() as session:
            found = get_deployment(session, name, lock=True)
            if get_soup(session, name, found.version).soup["base_digest"] != manifest.digest:
                raise Conflict(
                    f"version {found.version} of deployment {name!r} was made for other weights than this worker has"
                )
            changes = keep(session, found, material, manifest, packs, choice=choice)
            make_room(session, name, self._max_bytes)
            selected = select_images(session, name, material, manifest, choice=choice)
            queued = add_job(
                session,
                found,
                job=job,
                strategy=request.strategy,
                promote=request.promote,
                balance=request.balance,
                effort=request.effort,
                draw=request.draw,
                samples_digest=digest_of(selected, material.unlabelled_hashes),
                support=summary_of(selected, manifest.class_names, len(material.unlabelled_hashes)),
                samples=changes.model_dump(mode="json"),
                selection=pack_selection(selected),
                max_queued=self._max_queued,
                who=request.who,
            )
        return Submission(queued, changes)

    def _undo(self, job: str, packs: list[Written]) -> None:
        """Delete what was written for a request that was not accepted.

        If the database broke off while it committed, it may have been accepted: then the objects stay. They also stay
        if that is not known. Cleaning deletes objects without a row later.
        """
        written = [pack.id for pack in packs]
        try:
            with self._database.read() as session:
                known = set(session.scalars(select(Pack.id).where(Pack.id.in_(written))))
                is_queued = session.scalar(select(Job.seq).where(Job.id == job)) is not None
            self._packs.delete(pack for pack in written if pack not in known)
            if not is_queued:
                self._packs.delete_unlabelled([job], are_new=True)
        except (*UNAVAILABLE, OSError):
            return


def _bytes_per_image(manifest: Manifest) -> int:
    return manifest.input.height * manifest.input.width * 3
