"""The changes of a request for an adaptation to the rows of kept images, within the transaction that queues its job."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from pydantic import Field
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from service.store.clock import read_clock
from service.store.identity import registry_id
from service.store.material import Material, Selected
from service.store.packs import drop_samples
from service.store.tables import Deployment, Pack, Sample
from training.documents import Frozen
from training.manifest import InputSpec, Manifest

CHUNK = 1000  # hashes in one statement
MAX_NAMED = 100  # relabelled images that a job names

Choice = Literal["new", "all"]


class NothingKept(ValueError):
    """The request has no images, and none is kept that could be searched on."""


class Moved(Exception):
    """An image that was kept when the packs of a request were written is gone."""


class Relabel(Frozen):
    """An image that was kept with another label."""

    hash: str = Field(description="SHA-256 of its pixels")
    before: str
    after: str


class SampleChanges(Frozen):
    """The changes that a request made to the labelled images of its deployment."""

    choice: Choice = Field(description="which images the job searches on")
    added: int = Field(description="images that were not kept before")
    relabelled: int = Field(description="images whose label was replaced")
    relabels: list[Relabel] = Field(description=f"which, at most {MAX_NAMED}")


class Written(NamedTuple):
    """A pack whose object is there, and whose row is not."""

    id: str
    hashes: tuple[str, ...]


def samples_of(session: Session, deployment: str, hashes: Iterable[str]) -> Iterator[Sample]:
    """Yield the rows of those images that a deployment keeps."""
    wanted = list(hashes)
    for start in range(0, len(wanted), CHUNK):
        condition = Sample.hash.in_(wanted[start : start + CHUNK])
        yield from session.scalars(select(Sample).where(Sample.deployment == deployment, condition))


def packs_of(session: Session, deployment: str, hashes: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield hash and pack of those images that a deployment keeps."""
    query = select(Sample.hash, Sample.pack).where(Sample.deployment == deployment)
    if len(hashes) <= CHUNK:
        query = query.where(Sample.hash.in_(hashes))
    for digest, pack in session.execute(query):
        if digest in hashes:
            yield digest, pack


def fitting(session: Session, rows: Iterable[Sample], spec: InputSpec) -> set[str]:
    """Return the hashes of those rows whose images have the network's input size, which may have changed since."""
    by_pack: dict[str, set[str]] = {}
    for row in rows:
        by_pack.setdefault(row.pack, set()).add(row.hash)
    found: set[str] = set()
    packs = list(by_pack)
    for start in range(0, len(packs), CHUNK):
        wanted = Pack.id.in_(packs[start : start + CHUNK])
        query = select(Pack.id).where(wanted, Pack.height == spec.height, Pack.width == spec.width)
        found |= {digest for pack in session.scalars(query) for digest in by_pack[pack]}
    return found


def keep(
    session: Session,
    deployment: Deployment,
    material: Material,
    manifest: Manifest,
    packs: Sequence[Written],
    *,
    choice: Choice,
) -> SampleChanges:
    """Keep the labelled images of a request: new ones get a row, known ones their new label.

    Args:
        session: holds the lock of the deployment.
        deployment: whose images.
        material: of the request.
        manifest: of the base set.
        packs: with those images that were not kept when we looked, before the lock.
        choice: as it came with the request.

    Raises:
        Moved: one was kept then and is not any more.
    """
    spec, now = manifest.input, read_clock(session)
    rows = {row.hash: row for row in samples_of(session, deployment.name, [item.hash for item in material.selected])}
    fit = fitting(session, rows.values(), spec)
    placed = {digest: pack.id for pack in packs for digest in pack.hashes}
    shared = {"origin": registry_id(session), "owner": deployment.uid, "height": spec.height, "width": spec.width}
    session.add_all(Pack(id=pack.id, **shared) for pack in packs)
    session.flush()
    new: list[dict[str, object]] = []
    relabels: list[Relabel] = []
    stale: set[str] = set()
    for digest, index in material.selected:
        label, row = manifest.class_names[index], rows.get(digest)
        if digest not in fit and digest not in placed:
            raise Moved
        if row is None:
            new.append({"deployment": deployment.name, "hash": digest, "label": label, "pack": placed[digest]})
            continue
        if digest not in fit:
            stale.add(row.pack)
            row.pack = placed[digest]
        elif digest in placed:  # another request was faster
            stale.add(placed[digest])
        if row.label != label:
            relabels.append(Relabel(hash=digest, before=row.label, after=label))
            row.label = label
    session.flush()
    if new:
        session.execute(insert(Sample).values(added_at=now, given_at=now), new)
    _note(session, deployment.name, rows, given_at=now)
    session.execute(update(Pack).where(Pack.id.in_(stale)).values(is_stale=True))
    return SampleChanges(choice=choice, added=len(new), relabelled=len(relabels), relabels=relabels[:MAX_NAMED])


def make_room(session: Session, deployment: str, max_bytes: int) -> None:
    """Delete the images that nobody gave for longest, as many as are too many; the deployment is locked."""
    ours, size = Sample.deployment == deployment, Pack.height * Pack.width * 3
    total = session.scalar(select(func.sum(size)).join_from(Sample, Pack, Pack.id == Sample.pack).where(ours))
    excess = int(total or 0) - max_bytes
    oldest = (
        select(Sample.hash, size.label("size"))
        .join(Pack, Pack.id == Sample.pack)
        .where(ours)
        .order_by(Sample.given_at, Sample.hash)
        .limit(CHUNK)
    )
    while excess > 0 and (rows := session.execute(oldest).all()):
        gone = []
        for digest, num_bytes in rows:
            if excess > 0:
                gone.append(digest)
                excess -= num_bytes
        drop_samples(session, ours, Sample.hash.in_(gone))


def select_images(
    session: Session, deployment: str, material: Material, manifest: Manifest, *, choice: Choice
) -> list[Selected]:
    """Return the labelled images that a job searches on: those of the request first.

    Raises:
        NothingKept: there are none at all, and no others in the request.
    """
    selected, spec = material.selected, manifest.input
    is_empty = material.support is None and material.unlabelled is None
    if choice == "new" and not is_empty:
        return selected
    kept = (
        select(Sample.hash, Sample.label)
        .join(Pack, Pack.id == Sample.pack)
        .where(Sample.deployment == deployment, Pack.height == spec.height, Pack.width == spec.width)
        .order_by(Sample.added_at, Sample.hash)
    )
    if choice == "new":
        kept = kept.where(Sample.used_at.is_(None))
    given = {digest for digest, _ in selected}
    indices = {name: index for index, name in enumerate(manifest.class_names)}
    for digest, label in session.execute(kept):
        if digest not in given and label in indices:
            selected.append(Selected(digest, indices[label]))
    if is_empty and not selected:
        which = "no labelled image is kept" if choice == "all" else "every image that is kept was searched on"
        raise NothingKept(f"expected images: {which}")
    return selected


def mark_used(session: Session, deployment: str, selected: Iterable[Selected]) -> None:
    """Note that a search on these images has ended."""
    _note(session, deployment, (digest for digest, _ in selected), used_at=read_clock(session))


def _note(session: Session, deployment: str, hashes: Iterable[str], **moment: float) -> None:
    """Set a time of those images that a deployment keeps."""
    wanted = list(hashes)
    for start in range(0, len(wanted), CHUNK):
        ours = (Sample.deployment == deployment) & Sample.hash.in_(wanted[start : start + CHUNK])
        session.execute(update(Sample).where(ours).values(**moment), execution_options={"synchronize_session": False})
