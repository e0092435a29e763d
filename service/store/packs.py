"""The pixels of kept images, in packs: objects that hold the images of one request, written once and never changed.

A pack is written before the rows that refer to it. Code that deletes such rows marks the pack as stale in the same
transaction; cleaning writes the rest of a stale pack to a new one and deletes the old object. So a crash at any moment
loses no acknowledged image, and later cleaning finds and deletes the rest.

Names of objects begin with the id of the registry that wrote them, and no other deletes them: see
`service.store.identity`.
"""

import logging
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from service.store.database import Database
from service.store.identity import read_owner, registry_id
from service.store.material import Images
from service.store.objects import ObjectStore, from_bytes, to_bytes
from service.store.tables import ACTIVE_STATES, Deployment, Job, Pack, Sample, new_id

logger = logging.getLogger(__name__)

ORPHAN_SECONDS = 3600  # older objects that no row knows are left from a crash between the two writes
CHUNK = 1000  # packs in one statement
FOLDER = "packs"
UNLABELLED = "unlabelled"


def key_of(folder: str, name: str, origin: str | None) -> str:
    """Return the key of an object.

    Args:
        folder: its kind.
        name: within it.
        origin: id of the registry that wrote it; None for objects from before there were ids.
    """
    return f"{folder}/{name}.npz" if origin is None else f"{origin}/{folder}/{name}.npz"


def _id(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".npz")


class Content(NamedTuple):
    """The content of an object."""

    hashes: tuple[str, ...]
    images: Images  # one for each hash


class Packs:
    """The objects of an object store that hold images, and the rows about them."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database, self._objects = database, objects

    def write(self, pack: str, hashes: Sequence[str], images: Images) -> None:
        """Write the object of a pack that has no row yet.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        self._write(key_of(FOLDER, pack, self._id()), hashes, images)

    def read(self, packs: Iterable[str]) -> dict[str, dict[str, Images]]:
        """Return the images of those packs that are there and whole, each by its hash.

        Raises:
            OSError: the store does not answer.
        """
        wanted, keys = list(packs), list[str]()
        with self._database.read() as session:
            for start in range(0, len(wanted), CHUNK):
                chosen = Pack.id.in_(wanted[start : start + CHUNK])
                rows = session.execute(select(Pack.id, Pack.origin).where(chosen))
                keys += [key_of(FOLDER, pack, origin) for pack, origin in rows]
        return self._read(keys)

    def _id(self) -> str:
        with self._database.read() as session:
            return registry_id(session)

    def _read(self, keys: Iterable[str]) -> dict[str, dict[str, Images]]:
        found: dict[str, dict[str, Images]] = {}
        for key, data in self._objects.read(keys).items():
            if (content := _unpacked(key, data)) is not None:
                found[_id(key)] = dict(zip(*content, strict=True))
        return found

    def _write(self, key: str, hashes: Sequence[str], images: Images) -> None:
        self._objects.write(key, to_bytes(hashes=np.asarray(hashes), images=images))

    def delete(self, packs: Iterable[str]) -> None:
        """Delete the objects of packs that were just written and have no row.

        Raises:
            OSError: the store does not answer.
        """
        origin = self._id()
        self._objects.delete(key_of(FOLDER, pack, origin) for pack in packs)

    def write_unlabelled(self, job: str, hashes: Sequence[str], images: Images) -> None:
        """Write the unlabelled images of a job.

        Raises:
            OSError: they cannot be written; nothing is left behind.
        """
        self._write(key_of(UNLABELLED, job, self._id()), hashes, images)

    def read_unlabelled(self, job: str) -> Content | None:
        """Return the unlabelled images of a job; None if they are not there, or damaged.

        Raises:
            OSError: the store does not answer.
        """
        keys = self._unlabelled_keys(job, self._id())
        found = self._objects.read(keys)
        return next((_unpacked(key, found[key]) for key in keys if key in found), None)

    def delete_unlabelled(self, jobs: Iterable[str], *, are_new: bool = False) -> None:
        """Delete the unlabelled images of jobs.

        Args:
            jobs: that are done, or have no row.
            are_new: they were written a moment ago, so no copy of the registry can know them.

        Raises:
            OSError: the store does not answer, or the registry may not delete from it.
        """
        owner = read_owner(self._database)
        if not are_new:
            owner.check()
        for job in jobs:
            named, unnamed = self._unlabelled_keys(job, owner.id)
            self._objects.delete([named, unnamed] if owner.owns_unnamed else [named])

    @staticmethod
    def _unlabelled_keys(job: str, registry: str) -> tuple[str, str]:
        """Return where the images of a job are: jobs that were queued by an earlier version have theirs without id."""
        return key_of(UNLABELLED, job, registry), key_of(UNLABELLED, job, None)

    def clean(self, *, owner: str | None = None) -> None:
        """Delete from the store what rows no longer refer to.

        Args:
            owner: uid of the deployment whose packs are looked at; None for all.

        Raises:
            OSError: the store does not answer; the next call goes on.
        """
        stale = select(Pack).where(Pack.is_stale)
        with self._database.read() as session:
            packs = list(session.scalars(stale if owner is None else stale.where(Pack.owner == owner)))
        if not packs:
            return
        registry = read_owner(self._database)
        registry.check()
        while packs:
            pack = packs.pop()
            fresh = self._replace(pack, registry.id)
            if registry.owns(pack.origin):
                self._objects.delete([key_of(FOLDER, pack.id, pack.origin)])
            self._forget(pack)
            if fresh is not None and fresh.is_stale:  # at once: who deleted an image from it was told that it is gone
                packs.append(fresh)

    def _replace(self, pack: Pack, origin: str) -> Pack | None:
        """Write what is left of a pack to a new one, and return that; None if nothing is left."""
        with self._database.read() as session:
            left = session.scalars(select(Sample.hash).where(Sample.pack == pack.id)).all()
        images = self.read([pack.id]).get(pack.id, {}) if left else {}
        kept = [digest for digest in left if digest in images]
        lost = set(left) - images.keys()
        if not kept:
            return None
        fresh = new_id()
        self.write(fresh, kept, np.stack([images[digest] for digest in kept]))
        with self._database.write() as session:
            _lock_owner(session, pack)
            copy = Pack(id=fresh, origin=origin, owner=pack.owner, height=pack.height, width=pack.width)
            session.add(copy)
            session.flush()
            session.execute(update(Sample).where(Sample.pack == pack.id, Sample.hash.not_in(lost)).values(pack=fresh))
            moved = session.scalar(select(func.count()).where(Sample.pack == fresh))
            copy.is_stale = moved != len(kept)  # some went meanwhile
        return copy

    def _forget(self, pack: Pack) -> None:
        """Delete the rows of a pack whose object is gone."""
        with self._database.write() as session:
            _lock_owner(session, pack)
            lost = session.execute(delete(Sample).where(Sample.pack == pack.id).returning(Sample.hash)).all()
            session.execute(delete(Pack).where(Pack.id == pack.id))
        if lost:
            logger.error("%d labelled images are lost: their pack %s was missing or damaged", len(lost), pack.id)

    def sweep(self) -> None:
        """Delete objects of this registry that no row knows and that are not new.

        After an older backup of the registry was restored, a row may name a pack that has been rewritten since.
        Then the pack that now holds its images takes its place.

        Raises:
            OSError: the store does not answer.
        """
        registry = read_owner(self._database)
        registry.check()
        limit = self._objects.now() - ORPHAN_SECONDS  # by the clock that dated them
        packs, unlabelled = (
            {_id(key): written for key, written in self._objects.list(f"{registry.id}/{folder}").items()}
            for folder in (FOLDER, UNLABELLED)
        )
        with self._database.read() as session:  # after looking, so that none is deleted that is made meanwhile
            known = set(session.scalars(select(Pack.id).where(Pack.origin == registry.id)))
            needed = select(func.coalesce(Job.follows, Job.id)).where(Job.state.in_(ACTIVE_STATES))
            active = set(session.scalars(needed))
        strays = {pack for pack, written in packs.items() if pack not in known}
        if strays and (missing := known - packs.keys()):
            strays -= self._adopt(strays, missing - self.read(missing).keys(), registry.id)
        gone = [key_of(FOLDER, pack, registry.id) for pack in strays if packs[pack] < limit]
        done = [job for job, written in unlabelled.items() if written < limit and job not in active]
        self._objects.delete([*gone, *(key_of(UNLABELLED, job, registry.id) for job in done)])

    def _adopt(self, strays: Iterable[str], missing: Collection[str], origin: str) -> set[str]:
        """Give those objects without a row one that have images of packs whose objects are missing; return them."""
        adopted = set()
        for stray in strays:
            content = self._read([key_of(FOLDER, stray, origin)]).get(stray, {})
            lost = (Sample.pack.in_(missing), Sample.hash.in_(list(content)))
            with self._database.write() as session:
                found = session.scalar(select(Pack).join(Sample, Sample.pack == Pack.id).where(*lost).limit(1))
                if found is None:
                    continue
                row = {"owner": found.owner, "height": found.height, "width": found.width}
                session.add(Pack(id=stray, origin=origin, is_stale=True, **row))  # it may have more than is named
                session.flush()
                same = select(Pack.id).where(Pack.id.in_(missing), Pack.owner == found.owner)
                session.execute(update(Sample).where(Sample.pack.in_(same), lost[1]).values(pack=stray))
            adopted.add(stray)
            logger.warning("pack %s takes the place of one that the registry names and that is gone", stray)
        return adopted


def _unpacked(key: str, data: bytes) -> Content | None:
    """Return what an object holds; None, and a line in the log, if it is damaged."""
    try:
        arrays = from_bytes(data)
        content = Content(tuple(arrays["hashes"].tolist()), arrays["images"])
        if len(content.hashes) != len(content.images):
            raise ValueError(f"damaged: {len(content.hashes)} hashes of {len(content.images)} images")
    except (ValueError, KeyError) as error:
        logger.error("%s: %s", key, error)
        return None
    return content


def _lock_owner(session: Session, pack: Pack) -> None:
    """Lock the deployment of a pack, as all do who change rows of its images; if it is gone, so are the rows."""
    session.execute(select(Deployment.uid).where(Deployment.uid == pack.owner).with_for_update())


def drop_samples(session: Session, *conditions: ColumnElement[bool]) -> int:
    """Delete the rows of images and mark their packs as stale; return how many. Their deployment is locked."""
    packs = select(Sample.pack).where(*conditions)
    unseen = {"synchronize_session": False}  # no row of theirs is held in memory
    session.execute(update(Pack).where(Pack.id.in_(packs)).values(is_stale=True), execution_options=unseen)
    gone = session.execute(delete(Sample).where(*conditions).returning(Sample.hash), execution_options=unseen)
    return len(gone.all())
