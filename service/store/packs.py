"""The pixels of kept images, in packs: objects that hold the images of one request, written once and never changed.

A pack is written before the rows that refer to it. Whatever deletes such rows marks the pack as stale in the same
transaction; cleaning writes what is left of a stale pack to a new one and deletes the old object. So a crash at any
moment loses nothing that was acknowledged, and what should be gone is found and deleted later.
"""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from service.store.database import Database
from service.store.material import Images, from_bytes, to_bytes
from service.store.objects import ObjectStore
from service.store.tables import ACTIVE_STATES, Job, Pack, Sample, new_id

logger = logging.getLogger(__name__)

ORPHAN_SECONDS = 3600  # older objects that no row knows are left from a crash between the two writes
FOLDER = "packs"
UNLABELLED = "unlabelled"


def pack_key(pack: str) -> str:
    """Return the key of a pack's object."""
    return f"{FOLDER}/{pack}.npz"


def unlabelled_key(job: str) -> str:
    """Return the key of the unlabelled images of a job."""
    return f"{UNLABELLED}/{job}.npz"


def _id(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".npz")


class Packs:
    """The objects of an object store that hold images, and the rows about them."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database, self._objects = database, objects

    def write(self, pack: str, hashes: Sequence[str], images: Images) -> None:
        """Write the object of a pack that has no row yet.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        self._objects.write(pack_key(pack), to_bytes(hashes=np.asarray(hashes), images=images))

    def read(self, packs: Iterable[str]) -> dict[str, dict[str, Images]]:
        """Return the images of those packs that are there and whole, each by its hash.

        Raises:
            OSError: the store does not answer.
        """
        found: dict[str, dict[str, Images]] = {}
        for key, data in self._objects.read(map(pack_key, packs)).items():
            try:
                arrays = from_bytes(data)
                found[_id(key)] = dict(zip(arrays["hashes"].tolist(), arrays["images"], strict=True))
            except (ValueError, KeyError) as error:
                logger.error("%s: %s", key, error)
        return found

    def delete(self, packs: Iterable[str]) -> None:
        """Delete the objects of packs that have no row.

        Raises:
            OSError: the store does not answer.
        """
        self._objects.delete(map(pack_key, packs))

    def clean(self, *, owner: str | None = None) -> None:
        """Delete from the store what rows no longer refer to.

        Args:
            owner: uid of the deployment whose packs are looked at; None for all.

        Raises:
            OSError: the store does not answer; the next call goes on.
        """
        stale = select(Pack).where(Pack.is_stale)
        with self._database.read() as session:
            packs = session.scalars(stale if owner is None else stale.where(Pack.owner == owner)).all()
        for pack in packs:
            self._replace(pack)
            self._objects.delete([pack_key(pack.id)])
            self._forget(pack.id)

    def _replace(self, pack: Pack) -> None:
        """Write what is left of a pack to a new one."""
        with self._database.read() as session:
            left = session.scalars(select(Sample.hash).where(Sample.pack == pack.id)).all()
        images = self.read([pack.id]).get(pack.id, {}) if left else {}
        kept = [digest for digest in left if digest in images]
        lost = set(left) - images.keys()
        if not kept:
            return
        fresh = new_id()
        self.write(fresh, kept, np.stack([images[digest] for digest in kept]))
        with self._database.write() as session:
            session.add(Pack(id=fresh, owner=pack.owner, height=pack.height, width=pack.width))
            session.flush()
            session.execute(update(Sample).where(Sample.pack == pack.id, Sample.hash.not_in(lost)).values(pack=fresh))
            if session.scalar(select(func.count()).where(Sample.pack == fresh)) != len(kept):  # some went meanwhile
                session.execute(update(Pack).where(Pack.id == fresh).values(is_stale=True))

    def _forget(self, pack: str) -> None:
        """Delete the rows of a pack whose object is gone."""
        with self._database.write() as session:
            lost = session.execute(delete(Sample).where(Sample.pack == pack).returning(Sample.hash)).all()
            session.execute(delete(Pack).where(Pack.id == pack))
        if lost:
            logger.error("%d labelled images are lost: their pack %s was missing or damaged", len(lost), pack)

    def sweep(self) -> None:
        """Delete objects that no row knows and that are not new.

        Raises:
            OSError: the store does not answer.
        """
        limit = self._objects.now() - ORPHAN_SECONDS  # by the clock that dated them
        packs, unlabelled = (
            {_id(key): key for key, written in self._objects.list(folder).items() if written < limit}
            for folder in (FOLDER, UNLABELLED)
        )
        with self._database.read() as session:  # after looking, so that none is deleted that is made meanwhile
            known = set(session.scalars(select(Pack.id)))
            active = set(session.scalars(select(Job.id).where(Job.state.in_(ACTIVE_STATES))))
        self._objects.delete(key for pack, key in packs.items() if pack not in known)
        self._objects.delete(key for job, key in unlabelled.items() if job not in active)


def drop_samples(session: Session, *conditions: ColumnElement[bool]) -> int:
    """Delete the rows of images and mark their packs as stale; return how many."""
    packs = select(Sample.pack).where(*conditions)
    unseen = {"synchronize_session": False}  # no row of theirs is held in memory
    session.execute(update(Pack).where(Pack.id.in_(packs)).values(is_stale=True), execution_options=unseen)
    gone = session.execute(delete(Sample).where(*conditions).returning(Sample.hash), execution_options=unseen)
    return len(gone.all())
