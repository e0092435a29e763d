"""Tables of the registry."""

import uuid
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    JSON,
    Connection,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    func,
    select,
)
from sqlalchemy.event import listens_for
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.store.clock import Now

ACTIVE_STATES = ("queued", "running")
Balance = Literal["none", "class"]  # what counts alike in a search: images, or classes
Effort = Literal["auto", "quick", "full"]  # of a search: a quick one that a full one follows, or one of them alone
MAX_WHO = 100  # characters of an API key's name
EVENT_LOCK = 0x5A_0C_1F  # of PostgreSQL's advisory locks, held by who appends an event until it is committed
ROLLED_BACK_TO = "rolled_back_to"  # beside the fields of the outcome in a job's row
WATCH = "(watch)"  # who did it, if nobody asked: no API key can have that name
COMMAND_LINE = "(command line)"  # who did it, if a command on the machine did


class Table(DeclarativeBase):
    """Base of all tables.

    Times are the database's, in seconds since 1970, UTC; names of constraints are fixed for later migrations.
    """

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON}  # noqa: RUF012 - read by SQLAlchemy


def new_id() -> str:
    """Return a random identifier that is safe in a URL and a file name."""
    return uuid.uuid4().hex


class ReservoirPlan(NamedTuple):
    """A reservoir of recent images that is switched on."""

    id: str  # a new one each time that it is switched on or changed, and the name of its folder
    size: int  # most images, all workers together
    retention_hours: float

    def oldest(self, now: float) -> float:
        """The time before which images are not kept."""
        return now - self.retention_hours * 3600


class WatchPlan(NamedTuple):
    """A deployment that goes back by itself when a promotion turns out badly."""

    id: str  # a new one each time that it is switched on or changed
    min_images: int  # that a mean confidence is taken over, at least
    confidence_drop: float  # of the mean confidence: what is less than that is no collapse


class Identity(Table):
    """The identity of a registry, in one row."""

    __tablename__ = "registry"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)  # begins the names of the objects that it writes
    place: Mapped[str | None]  # where its database was at the last start
    owns_unnamed: Mapped[bool]  # objects from before there were ids are its own; false in a copy
    works_from: Mapped[str] = mapped_column(String(16))  # the oldest schema revision whose code works with this schema


class Deployment(Table):
    """A name that clients call; it points at one soup version."""

    __tablename__ = "deployments"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    uid: Mapped[str] = mapped_column(String(32), default=new_id)  # a name made again is another deployment
    base_set: Mapped[str] = mapped_column(String(63))
    version: Mapped[int]
    reservoir: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # a ReservoirPlan
    watch: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # a WatchPlan
    watch_state: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # a WatchState
    reference: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # a ReferenceInfo
    created_at: Mapped[float] = mapped_column(default=Now())


class SoupVersion(Table):
    """An immutable soup version of a deployment, numbered from 1."""

    __tablename__ = "soups"
    __table_args__ = (ForeignKeyConstraint(["deployment"], ["deployments.name"]),)

    deployment: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    soup: Mapped[dict[str, Any]]  # adapt.documents.soup.Soup, evidence included
    patch: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)  # its tensors; not read for a list
    held_out: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)  # answers; read for a search alone
    attempts: Mapped[int] = mapped_column(default=0)  # searches that were compared with it
    source: Mapped[str] = mapped_column(String(16))  # default, adapt, dial
    job: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[float] = mapped_column(default=Now())


class Pack(Table):
    """An object in the store with labelled images that came together."""

    __tablename__ = "packs"
    __table_args__ = (Index(None, "owner"), Index(None, "is_stale"))

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    owner: Mapped[str] = mapped_column(String(32))  # uid of a deployment, which may be gone already
    height: Mapped[int]
    width: Mapped[int]
    is_stale: Mapped[bool] = mapped_column(default=False)  # it holds images without a sample, so its rest must move
    created_at: Mapped[float] = mapped_column(default=Now())
    origin: Mapped[str | None] = mapped_column(String(32))  # id of the registry that wrote it; earlier ones: null


class Sample(Table):
    """A labelled image that a deployment keeps."""

    __tablename__ = "samples"
    __table_args__ = (
        ForeignKeyConstraint(["deployment"], ["deployments.name"]),
        ForeignKeyConstraint(["pack"], ["packs.id"]),
        Index(None, "pack"),
        Index(None, "given_at"),
    )

    deployment: Mapped[str] = mapped_column(String(63), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of the original's pixels
    label: Mapped[str]  # the last one that it was given
    pack: Mapped[str] = mapped_column(String(32))
    added_at: Mapped[float]
    given_at: Mapped[float]  # the last time that somebody sent it
    used_at: Mapped[float | None]  # the last time that a search on it ended


class Job(Table):
    """An adaptation: what was asked, who works on it, what came out."""

    __tablename__ = "jobs"
    __table_args__ = (
        ForeignKeyConstraint(["deployment"], ["deployments.name"]),
        Index(None, "deployment", "samples_digest"),
        Index(None, "state"),
    )

    seq: Mapped[int] = mapped_column(primary_key=True)  # order of arrival
    id: Mapped[str] = mapped_column(String(32), unique=True, default=new_id)
    deployment: Mapped[str] = mapped_column(String(63))
    base_version: Mapped[int]  # what was served when the job was accepted, and what it is compared with
    strategy: Mapped[str] = mapped_column(String(16))
    promote: Mapped[str] = mapped_column(String(16))
    balance: Mapped[str] = mapped_column(String(16), default="none")
    effort: Mapped[str] = mapped_column(String(16), default="full")  # an Effort
    follows: Mapped[str | None] = mapped_column(String(32))  # the quick job whose images this one searches on in full
    followed_by: Mapped[str | None] = mapped_column(String(32))  # the job that searches in full on this one's images
    draw: Mapped[str] = mapped_column(String(16), default="any")  # a Draw: what its labels may be asked about
    samples_digest: Mapped[str] = mapped_column(String(64))
    who: Mapped[str | None] = mapped_column(String(MAX_WHO))  # name of the API key that asked, if there are keys
    support: Mapped[dict[str, Any]]  # adapt.documents.soup.SupportSummary
    samples: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # SampleChanges of intake
    selection: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)  # while active: what it searches on
    state: Mapped[str] = mapped_column(String(16), default="queued")
    attempts: Mapped[int] = mapped_column(default=0)  # adapters that began it
    attempt: Mapped[int | None]  # number of its comparison with the base version; null if it makes none
    claimed_by: Mapped[str | None] = mapped_column(String(32))
    heartbeat_at: Mapped[float | None]
    progress: Mapped[float] = mapped_column(default=0.0)
    message: Mapped[str] = mapped_column(default="")
    version: Mapped[int | None]
    previous_version: Mapped[int | None]
    candidate_version: Mapped[int | None]
    # adapt.documents.soup.Outcome, the landscape of its search, and the version that was put back.
    outcome: Mapped[dict[str, Any] | None]
    reason: Mapped[str | None]
    created_at: Mapped[float] = mapped_column(default=Now())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]

    @property
    def is_finished(self) -> bool:
        """Nothing about the job changes any more."""
        return self.state not in ACTIVE_STATES

    @property
    def rolled_back_to(self) -> int | None:
        """The version that the job's images put the deployment back to; None if they did not."""
        return (self.outcome or {}).get(ROLLED_BACK_TO)


class Event(Table):
    """An event of a deployment: appended in the transaction that made the change, never changed."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "deployment", "seq"),)

    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float] = mapped_column(default=Now())
    deployment: Mapped[str] = mapped_column(String(63))  # no foreign key: events outlive their deployment
    kind: Mapped[str] = mapped_column(String(16))  # one of EVENT_KINDS of service.http.schemas
    from_version: Mapped[int | None]
    to_version: Mapped[int | None]
    job: Mapped[str | None] = mapped_column(String(32))
    who: Mapped[str | None] = mapped_column(String(MAX_WHO))
    reason: Mapped[str | None]  # of a rollback that nobody asked for; the numbers of a switch that was set
    unproven: Mapped[bool] = mapped_column(default=False)  # no test on held-out images stands behind it


@listens_for(Event, "before_insert")
def _one_after_the_other(_: object, connection: Connection, __: object) -> None:
    """Have PostgreSQL commit events in the order of their numbers: who has seen one has seen all that are lower."""
    if connection.dialect.name == "postgresql":  # on SQLite there is one writer
        connection.execute(select(func.pg_advisory_xact_lock(EVENT_LOCK)))


class ConfidenceSum(Table):
    """Confidences of a watched deployment's version that workers reported, until the adapter takes them."""

    __tablename__ = "confidence_sums"

    watch: Mapped[str] = mapped_column(String(32), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int]
    total: Mapped[float]
    squares: Mapped[float]


class Worker(Table):
    """A predictor process and the soup versions it serves."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    pid: Mapped[int]
    host: Mapped[str] = mapped_column(String(255))
    provider: Mapped[str | None] = mapped_column(String(64))
    loaded: Mapped[dict[str, Any]]  # version by deployment
    moves: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # its event, by uid of the deployment
    batch: Mapped[int | None]  # the last batch of confidences that was added up
    digests: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # of its base sets; earlier: null
    started_at: Mapped[float] = mapped_column(default=Now())
    heartbeat_at: Mapped[float] = mapped_column(default=Now())
