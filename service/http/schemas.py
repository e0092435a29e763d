"""JSON over HTTP: request bodies are checked against these models, answers are built from them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from adapt.documents.frequencies import ClassFrequency
from adapt.documents.patch import PatchSummary
from adapt.documents.soup import AccuracySummary, BnMode, FloorCheck, SearchSummary, SupportSummary
from adapt.evidence.draws import Draw
from service.store.confidence import MIN_IMAGES
from service.store.keeping import SampleChanges
from service.store.keys import Role
from service.store.tables import COMMAND_LINE, WATCH, Balance, Effort
from training.documents import Frozen
from training.manifest import Ingredient, InputSpec

DEPLOYMENT_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
DEPLOYMENT_NAME_RULE = "1 to 63 small letters, digits and hyphens, the first one no hyphen"
MAX_COEFFICIENT = 2.0  # of the dial, either sign
MAX_RETENTION_HOURS = 24 * 31
MAX_WATCH_IMAGES = 1_000_000
PAGES = {"deployments": (1000, 1000), "soups": (100, 1000), "events": (100, 1000), "jobs": (20, 100)}  # default, most
NEXT = "`before` of the next page; null at the end of the list"

EVENT_KINDS = (
    "created",
    "promoted",
    "rollback",
    "dial",
    "rebased",
    "reservoir_on",
    "reservoir_off",
    "watch_on",
    "watch_off",
    "reference_on",
    "reference_off",
    "samples_deleted",
    "deleted",
)
SOURCES = ("default", "adapt", "dial")
ADDED = "a newer version of the service may add others"  # while both versions run, the older one lists them, too
JobState = Literal["queued", "running", "promoted", "kept", "failed"]


class FieldAtFault(Frozen):
    """The fault of one part of a request."""

    field: str
    message: str


class ProblemDetails(Frozen):
    """An answer other than success (RFC 9457)."""

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldAtFault]


class Score(Frozen):
    """One class of one image."""

    label: str
    index: int
    confidence: float = Field(ge=0, le=1, description="softmax of the logits at the soup's temperature")


class Prediction(Score):
    """The most probable class of one image."""

    top_k: list[Score] = Field(description="the most probable classes, best first")


class Predictions(Frozen):
    """Answer of `/predict`, in request order."""

    deployment: str
    version: int = Field(description="soup version that all images were served with")
    predictions: list[Prediction]


class JobView(Frozen):
    """A job; fields that are not known yet are null."""

    job: str
    deployment: str
    state: JobState
    base_version: int = Field(description="version served when the job was accepted, which it is compared with")
    version: int | None = Field(description="promoted: the new version; kept or failed: the one still served")
    previous_version: int | None = Field(description="the version served before a promotion")
    candidate_version: int | None = Field(description="the version that holds the candidate")
    coefficients: dict[str, float] | None = Field(description="of the candidate, by ingredient")
    patch: PatchSummary | None = Field(description="tensors of the candidate that replace mixed ones")
    support: SupportSummary | None
    balance: Balance = Field(description="none: every image has the same weight in the search; class: every class has")
    effort: Effort = Field(
        description="quick: without rungs that train weights; full: all rungs; auto: quick with a follow-up"
    )
    follows: str | None = Field(description="the quick job whose images this follow-up searches on in full")
    followed_by: str | None = Field(description="the follow-up that searches in full on this job's images")
    draw: Draw = Field(
        description="fair: classes are as frequent among the labelled images as among those to be served"
    )
    classes: list[ClassFrequency] | None = Field(
        description="estimated class frequencies; null if there are too few images, or the job is not done"
    )
    samples: SampleChanges | None = Field(description="changes of the request to the kept labelled images")
    accuracy: AccuracySummary | None
    attempt: int | None = Field(
        description="number of this comparison with the same current version; null for a job that makes none, or waits"
    )
    level: float | None = Field(description="p-value below which this attempt promotes")
    not_tried: dict[str, str] | None = Field(description="rungs that the search left out, and why")
    search: SearchSummary | None
    ingredients: dict[str, float] | None = Field(description="accuracy of each ingredient alone")
    reference: FloorCheck | None = Field(description="of the candidate on reference images; null without any")
    rolled_back_to: int | None = Field(
        description="the version that the watch rolled back to because of this job's images; null if it did not"
    )
    reason: str | None
    progress: float = Field(ge=0, le=1)
    message: str = Field(description="the present step of the adapter")
    created_at: datetime
    finished_at: datetime | None


class Jobs(Frozen):
    """The newest jobs of a deployment, newest first."""

    deployment: str
    jobs: list[JobView]
    next: str | None = Field(description=NEXT)


class WorkerView(Frozen):
    """A worker process, and the version that it has loaded."""

    id: str
    pid: int
    host: str
    provider: str | None = Field(description="ONNX Runtime provider in use")
    version: int | None = Field(description="soup version it serves; null if it has none yet")
    heartbeat_at: datetime


class NewReservoir(Frozen):
    """Body of `PUT /deployments/{name}/reservoir`."""

    size: Annotated[int, Field(ge=1, strict=True)] = Field(description="most images kept, all workers together")
    retention_hours: Annotated[float, Field(gt=0, le=MAX_RETENTION_HOURS, strict=True)] = Field(
        default=24.0, description="age at which an image is deleted"
    )


class ReservoirView(NewReservoir):
    """A sample of the images that a deployment classified recently."""

    kept: int = Field(description="images kept now")


class NewWatch(Frozen):
    """Body of `PUT /deployments/{name}/watch`."""

    min_images: Annotated[int, Field(ge=MIN_IMAGES, le=MAX_WATCH_IMAGES, strict=True)] = Field(
        default=200, description="least number of images of a mean confidence"
    )
    confidence_drop: Annotated[float, Field(gt=0, lt=1, strict=True)] = Field(
        default=0.2, description="largest fall of the mean confidence with which a version stays"
    )


class ConfidenceView(Frozen):
    """Confidences of the predicted classes of images."""

    images: int
    mean: float | None = Field(description="null if there are no images yet")


class WatchView(NewWatch):
    """The watch of a deployment: it rolls back a version that turns out worse than the one before."""

    against: int | None = Field(description="version that the current one is compared with; null if it is not judged")
    before: ConfidenceView = Field(description="the last answers of that version")
    recent: ConfidenceView = Field(description="recent answers of the current version")


class ReferenceView(Frozen):
    """The reference images of a deployment, and the least accuracy that a promoted soup has on them."""

    n: int
    per_class: dict[str, int]
    floor: float


class DeploymentView(Frozen):
    """A deployment and its current soup."""

    deployment: str
    base_set: str
    version: int
    coefficients: dict[str, float]
    bn_mode: BnMode
    temperature: float
    patch: PatchSummary | None = Field(description="tensors that replace mixed ones; null for a plain soup")
    reservoir: ReservoirView | None = Field(description="null if it is off, the default")
    watch: WatchView | None = Field(description="null if it is off, the default")
    reference: ReferenceView | None = Field(description="null without a floor, the default")
    created_at: datetime
    is_rolled_out: bool = Field(description="every live worker serves the current version")
    workers: list[WorkerView]


class DeploymentEntry(Frozen):
    """A deployment in the list of all."""

    deployment: str
    base_set: str
    version: int


class Deployments(Frozen):
    """The deployments, by name."""

    deployments: list[DeploymentEntry]
    next: str | None = Field(description=NEXT)


class SoupView(Frozen):
    """One soup version with its evidence."""

    version: int
    is_current: bool
    source: str = Field(description=f"{', '.join(SOURCES)}; {ADDED}")
    job: str | None
    coefficients: dict[str, float]
    bn_mode: BnMode
    temperature: float
    patch: PatchSummary | None
    base_digest: str
    evidence: dict[str, Any] | None
    created_at: datetime


class Soups(Frozen):
    """The soup versions of a deployment, newest first."""

    deployment: str
    soups: list[SoupView]
    next: int | None = Field(description=NEXT)


class SamplesView(Frozen):
    """The labelled images that a deployment keeps."""

    deployment: str
    images: int
    unused: int = Field(description="images that no search has used")
    per_class: dict[str, int]
    bytes: int = Field(description="of their pixels, at the network's input size")
    max_bytes: int = Field(description="most bytes; the images that were not sent for longest make room")
    oldest: datetime | None = Field(description="when the image that was not sent for longest was last sent")
    newest: datetime | None


class DeletedSamples(Frozen):
    """How many labelled images were deleted."""

    deployment: str
    deleted: int


class EventView(Frozen):
    """A change of a deployment."""

    seq: int = Field(description="number of the event; later ones have higher numbers")
    at: datetime
    kind: str = Field(description=f"{', '.join(EVENT_KINDS)}; {ADDED}")
    from_version: int | None
    to_version: int | None
    job: str | None = Field(description="the job whose evidence it was; null without one")
    who: str | None = Field(
        description=f"name of the API key that asked for it; null without a key; {WATCH} for the watch; "
        f"{COMMAND_LINE} for a command on the machine"
    )
    reason: str | None = Field(
        description="why the watch rolled back, or the numbers that were set; null for other events"
    )
    unproven: bool = Field(description="no test on held-out images supports the change")


class Events(Frozen):
    """The changes of the deployments of a name, newest first."""

    deployment: str
    events: list[EventView]
    next: int | None = Field(description=NEXT)


class Caller(Frozen):
    """Answer of `/whoami`."""

    name: str | None = Field(description="name of the API key; null where the service asks for none")
    role: Role = Field(description="of the key; admin where the service asks for none")


class BaseView(Frozen):
    """A base set that deployments can be made of."""

    name: str
    digest: str
    architecture: str
    input: InputSpec
    class_names: list[str]
    ingredients: list[Ingredient]
    default_coefficients: dict[str, float]
    default_temperature: float


class Bases(Frozen):
    """All base sets."""

    bases: list[BaseView]


class NewDeployment(Frozen):
    """Body of `PUT /deployments/{name}`."""

    base_set: str


def _exactly_one(schema: dict[str, Any]) -> None:
    """Say in the schema of `NewSoup` that its endpoint needs one of the two, not both."""
    schema["oneOf"] = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}, other: {"type": "null"}}}
        for name, other in (("version", "coefficients"), ("coefficients", "version"))
    ]


class NewSoup(Frozen):
    """Body of `PUT /deployments/{name}/soup`: a version to serve again, or coefficients."""

    model_config = ConfigDict(json_schema_extra=_exactly_one)

    version: Annotated[int, Field(ge=1, strict=True)] | None = None
    coefficients: dict[str, Annotated[float, Field(strict=True)]] | None = Field(
        default=None, description=f"all ingredients; each within [-{MAX_COEFFICIENT:g}, {MAX_COEFFICIENT:g}]; sum 1"
    )
    expected_version: Annotated[int, Field(ge=1, strict=True)] | None = Field(
        default=None, description="answer 409 unless this is the current version"
    )
