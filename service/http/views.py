"""Answers built from what the registry keeps: rows become the models of `service.http.schemas`."""

from datetime import UTC, datetime

from adapt.documents.soup import SupportSummary
from service.http.schemas import (
    BaseView,
    ConfidenceView,
    DeploymentView,
    EventView,
    JobView,
    ReferenceView,
    ReservoirView,
    SamplesView,
    SoupView,
    WatchView,
    WorkerView,
)
from service.store.confidence import Tally
from service.store.moves import WorkerStatus, follows
from service.store.references import info_of
from service.store.samples import SampleCounts
from service.store.tables import Deployment, Event, Job, SoupVersion
from service.store.watches import WatchStatus
from training.manifest import Manifest


def moment(seconds: float) -> datetime:
    """Return a time of the registry."""
    return datetime.fromtimestamp(seconds, UTC)


def job_view(job: Job) -> JobView:
    """Return a job as clients see it."""
    outcome = job.outcome or {}
    return JobView(
        job=job.id,
        deployment=job.deployment,
        state=job.state,
        base_version=job.base_version,
        version=job.version,
        previous_version=job.previous_version,
        candidate_version=job.candidate_version,
        coefficients=outcome.get("coefficients"),
        patch=outcome.get("patch"),
        balance=job.balance,
        effort=job.effort,
        follows=job.follows,
        followed_by=job.followed_by,
        draw=job.draw,
        classes=outcome.get("classes"),
        samples=job.samples,
        support=SupportSummary.model_validate(outcome.get("support") or job.support),
        accuracy=outcome.get("accuracy"),
        attempt=job.attempt,
        level=outcome.get("level"),
        not_tried=outcome.get("not_tried"),
        search=outcome.get("search"),
        ingredients=outcome.get("ingredients"),
        reference=outcome.get("reference"),
        rolled_back_to=job.rolled_back_to,
        reason=job.reason,
        progress=job.progress,
        message=job.message,
        created_at=moment(job.created_at),
        finished_at=None if job.finished_at is None else moment(job.finished_at),
    )


def deployment_view(
    found: Deployment,
    moved: int,
    row: SoupVersion,
    workers: list[WorkerStatus],
    reservoir: ReservoirView | None,
    watch: WatchView | None,
) -> DeploymentView:
    """Return a deployment as clients see it.

    Args:
        found: the deployment.
        moved: number of the event that made its version current.
        row: of that version.
        workers: that live.
        reservoir: None if it is off.
        watch: None if it is off.
    """
    info, soup = info_of(found), row.soup
    return DeploymentView(
        deployment=found.name,
        base_set=found.base_set,
        version=found.version,
        coefficients=soup["coefficients"],
        bn_mode=soup["bn_mode"],
        temperature=soup["temperature"],
        patch=soup.get("patch"),
        reservoir=reservoir,
        watch=watch,
        reference=None if info is None else ReferenceView(n=info.n, per_class=info.per_class, floor=info.floor),
        created_at=moment(found.created_at),
        is_rolled_out=bool(workers) and all(follows(worker, moved) for worker in workers),
        workers=[_worker_view(worker) for worker in workers],
    )


def watch_view(status: WatchStatus) -> WatchView:
    """Return a watch as clients see it."""
    return WatchView(
        min_images=status.plan.min_images,
        confidence_drop=status.plan.confidence_drop,
        against=status.against,
        before=_confidence_view(status.before),
        recent=_confidence_view(status.recent),
    )


def _confidence_view(tally: Tally) -> ConfidenceView:
    return ConfidenceView(images=tally.n, mean=tally.mean if tally.n else None)


def _worker_view(worker: WorkerStatus) -> WorkerView:
    return WorkerView(
        id=worker.id,
        pid=worker.pid,
        host=worker.host,
        provider=worker.provider,
        version=worker.version,
        heartbeat_at=moment(worker.heartbeat_at),
    )


def soup_view(row: SoupVersion, current: int) -> SoupView:
    """Return a soup version as clients see it."""
    soup = row.soup
    return SoupView(
        version=row.version,
        is_current=row.version == current,
        source=row.source,
        job=row.job,
        coefficients=soup["coefficients"],
        bn_mode=soup["bn_mode"],
        temperature=soup["temperature"],
        patch=soup.get("patch"),
        base_digest=soup["base_digest"],
        evidence=soup["evidence"],
        created_at=moment(row.created_at),
    )


def samples_view(deployment: str, counts: SampleCounts, max_bytes: int) -> SamplesView:
    """Return what a deployment keeps as clients see it."""
    return SamplesView(
        deployment=deployment,
        images=sum(counts.per_class.values()),
        unused=counts.unused,
        per_class=counts.per_class,
        bytes=counts.num_bytes,
        max_bytes=max_bytes,
        oldest=None if counts.oldest is None else moment(counts.oldest),
        newest=None if counts.newest is None else moment(counts.newest),
    )


def event_view(row: Event) -> EventView:
    """Return an event as clients see it."""
    return EventView(
        seq=row.seq,
        at=moment(row.at),
        kind=row.kind,
        from_version=row.from_version,
        to_version=row.to_version,
        job=row.job,
        who=row.who,
        reason=row.reason,
        unproven=row.unproven,
    )


def base_view(manifest: Manifest) -> BaseView:
    """Return a base set as clients see it."""
    return BaseView(
        name=manifest.name,
        digest=manifest.digest,
        architecture=manifest.architecture.name,
        input=manifest.input,
        class_names=list(manifest.class_names),
        ingredients=list(manifest.ingredients),
        default_coefficients=manifest.default_coefficients,
        default_temperature=manifest.default_temperature,
    )
