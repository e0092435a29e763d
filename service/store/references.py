"""Reference images: labelled images that an operator vouches for, and the floor a promoted soup must keep on them.

One set per deployment, an object in the store; the deployment's row says which. The object is written before the row
and the older one deleted after it.
"""

import logging
import time
from typing import NamedTuple

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from adapt.images.support import Reference, Support
from service.store.database import Database
from service.store.identity import read_owner, registry_id
from service.store.objects import ObjectStore, from_bytes, to_bytes
from service.store.packs import ORPHAN_SECONDS, key_of
from service.store.tables import Deployment, new_id
from service.store.transactions import get_deployment

logger = logging.getLogger(__name__)

FOLDER = "references"


class ReferenceGone(ValueError):
    """The stored images are missing or damaged. One line."""


class ReferenceInfo(NamedTuple):
    """The reference images in a deployment's row."""

    id: str
    n: int
    per_class: dict[str, int]
    floor: float
    added_at: float
    origin: str | None = None  # id of the registry that wrote them; earlier ones: None

    @property
    def key(self) -> str:
        """The key of their object."""
        return key_of(FOLDER, self.id, self.origin)


class References:
    """The reference images of all deployments."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database, self._objects = database, objects

    def put(self, deployment: str, images: Support, floor: float) -> ReferenceInfo:
        """Store reference images in the place of those there are.

        Raises:
            UnknownDeployment: there is none of that name.
            OSError: the store does not answer; what was there stays.
        """
        with self._database.read() as session:
            get_deployment(session, deployment)
            origin = registry_id(session)
        info = ReferenceInfo(new_id(), len(images), images.per_class, floor, time.time(), origin)
        data = to_bytes(
            images=images.images,
            labels=images.labels,
            hashes=np.asarray(images.hashes),
            class_names=np.asarray(images.class_names),
        )
        self._objects.write(info.key, data)
        try:
            with self._database.write() as session:
                before = _exchange(session, deployment, info)
        except BaseException:
            self._objects.delete([info.key])
            raise
        self._delete(before)
        return info

    def info(self, deployment: str) -> ReferenceInfo | None:
        """Return what there is, None if there is nothing.

        Raises:
            UnknownDeployment: there is none of that name.
        """
        with self._database.read() as session:
            return info_of(get_deployment(session, deployment))

    def load(self, deployment: str) -> Reference | None:
        """Return the reference images, None if there are none.

        Raises:
            UnknownDeployment: there is none of that name.
            ReferenceGone: they are missing or damaged: nothing may be promoted as if there were no floor.
            OSError: the store does not answer.
        """
        info = self.info(deployment)
        if info is None:
            return None
        data = self._objects.read([info.key]).get(info.key)
        if data is None:
            raise ReferenceGone("the reference images of this deployment are missing: add them again or remove them")
        try:
            arrays = from_bytes(data)
            images = Support(
                images=arrays["images"],
                labels=arrays["labels"],
                hashes=tuple(arrays["hashes"].tolist()),
                class_names=tuple(arrays["class_names"].tolist()),
            )
        except (ValueError, KeyError):
            raise ReferenceGone(
                "the reference images of this deployment are damaged: add them again or remove them"
            ) from None
        return Reference(images, info.floor)

    def remove(self, deployment: str) -> bool:
        """Delete the reference images; False if there were none.

        Raises:
            UnknownDeployment: there is none of that name.
            OSError: the store does not answer; the deployment has none any more.
        """
        with self._database.write() as session:
            before = _exchange(session, deployment, None)
        self._delete(before)
        return before is not None

    def forget(self, info: ReferenceInfo | None) -> None:
        """Delete the images of a deployment that is gone; `sweep` repeats deletions that fail now."""
        try:
            self._delete(info)
        except OSError as error:
            logger.warning("the store cannot be used: %s", error)

    def sweep(self) -> None:
        """Delete objects of this registry that no deployment refers to and that are not new.

        Raises:
            OSError: the store does not answer.
        """
        registry = read_owner(self._database)
        registry.check()
        limit = self._objects.now() - ORPHAN_SECONDS  # by the clock that dated them
        listed = self._objects.list(f"{registry.id}/{FOLDER}")
        found = [key for key, written in listed.items() if written < limit]
        with self._database.read() as session:  # after looking, so that none is deleted that is made meanwhile
            infos = [info_of(deployment) for deployment in session.scalars(select(Deployment))]
        known = {info.key for info in infos if info is not None}
        self._objects.delete(key for key in found if key not in known)

    def _delete(self, info: ReferenceInfo | None) -> None:
        if info is None:
            return
        registry = read_owner(self._database)
        registry.check()
        if registry.owns(info.origin):
            self._objects.delete([info.key])


def info_of(deployment: Deployment) -> ReferenceInfo | None:
    """Return what a row says of its deployment's reference images."""
    return None if deployment.reference is None else ReferenceInfo(**deployment.reference)


def _exchange(session: Session, deployment: str, info: ReferenceInfo | None) -> ReferenceInfo | None:
    found = get_deployment(session, deployment, lock=True)
    before, found.reference = info_of(found), None if info is None else info._asdict()
    return before
