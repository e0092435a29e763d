"""`POST /adapt`, from its parts to checked images, and the wait for the end of its job and the rollout."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from adapt.documents.soup import Strategy
from adapt.evidence.draws import Draw
from adapt.evidence.policies import Promote
from adapt.images.archive import Limits
from adapt.images.support import Support, SupportError, from_archive, from_images
from service.http.decoding import PixelBudget, Threads, load_in_order, reserve_pixels
from service.http.forms import Part, too_many_images
from service.http.inflight import Share, busy
from service.http.problems import FieldError, Problem, invalid, unavailable
from service.http.uploads import parse_json
from service.prediction.predictor import Predictor
from service.settings import Settings
from service.store.intake import Intake, Submission, Wanted
from service.store.jobs import JobQueue
from service.store.keeping import Choice
from service.store.material import Material
from service.store.moves import Move
from service.store.registry import Registry
from service.store.tables import Balance, Effort, Job
from service.store.transactions import UnknownDeployment
from training.images import Pixels
from training.manifest import Manifest

STRATEGIES: tuple[str, ...] = get_args(Strategy)
PROMOTES: tuple[str, ...] = get_args(Promote)
CHOICES: tuple[Choice, ...] = get_args(Choice)
BALANCES: tuple[Balance, ...] = get_args(Balance)
EFFORTS: tuple[Effort, ...] = get_args(Effort)
DRAWS: tuple[Draw, ...] = get_args(Draw)
MAX_WAIT_SECONDS = 50
MAX_UPLOADS = 8  # of one process, whose images are decoded or wait for that
POLL_SECONDS = 0.05
_REASONS = {"too_large": "pixels", "undecodable": "undecodable"}  # of an image that is refused


class Upload(NamedTuple):
    """The images of a request, not decoded yet: files and labels, or an archive; and files without a label; or none."""

    images: list[bytes]
    labels: list[Any]
    archive: bytes | None
    unlabelled: list[bytes]

    @property
    def is_labelled(self) -> bool:
        """There are images with labels."""
        return bool(self.images) or self.archive is not None


def read_upload(parts: Sequence[Part], settings: Settings, *, may_be_empty: bool = False) -> Upload:
    """Sort the parts of a request.

    Args:
        parts: of the body.
        settings: the limits.
        may_be_empty: no part at all is an upload, too.

    Raises:
        Problem: 422 parts are missing, too many or unknown; 413 too many images; 400 labels that are not JSON.
    """
    images: list[bytes] = []
    labels: list[bytes] = []
    archives: list[bytes] = []
    unlabelled: list[bytes] = []
    by_name = {"images": images, "labels": labels, "archive": archives, "unlabelled": unlabelled}
    for part in parts:
        if part.name not in by_name:
            raise invalid(part.name, "expected only parts named images, labels, archive or unlabelled")
        by_name[part.name].append(part.data)
    if len(images) + len(unlabelled) > settings.max_images:
        raise too_many_images(settings)
    for name, found in (("labels", labels), ("archive", archives)):
        if len(found) > 1:
            raise invalid(name, f"expected one part, got {len(found)}")
    if archives:
        if images or labels:
            raise invalid("archive", "expected either an archive or images and labels, got both")
        return Upload([], [], archives[0], unlabelled)
    if not images and not labels and (unlabelled or may_be_empty):
        return Upload([], [], None, unlabelled)
    if not images:
        raise invalid("images", "expected at least one image, or an archive")
    if not labels:
        raise invalid("labels", "expected a JSON array with one label for each image")
    parsed = parse_json(labels[0], "labels")
    if not isinstance(parsed, list):
        raise invalid("labels", "expected a JSON array with one label for each image")
    return Upload(images, parsed, None, unlabelled)


def check_upload(
    upload: Upload, manifest: Manifest, settings: Settings, on_image: Callable[[int], None] | None = None
) -> Material:
    """Decode and check the images; takes a while, runs in a thread.

    Args:
        upload: the files.
        manifest: of the base set.
        settings: the limits.
        on_image: told the pixels of each image once it is decoded; ends it all by raising.

    Raises:
        Problem: 422 or 413 naming the item.
    """
    budget = PixelBudget(settings)

    def spend(pixels: int) -> None:
        budget.spend(pixels)
        if on_image is not None:
            on_image(pixels)

    support = _support(upload, manifest, settings, spend) if upload.is_labelled else None
    seen = set() if support is None else set(support.hashes)
    kept: dict[str, Pixels] = {}
    for loaded in load_in_order(upload.unlabelled, manifest.input, settings, field="unlabelled", spend=spend):
        if (digest := loaded.hash) not in seen:
            seen.add(digest)
            kept[digest] = loaded.pixels
    return Material(support, np.stack(list(kept.values())) if kept else None, tuple(kept))


def _support(upload: Upload, manifest: Manifest, settings: Settings, spend: Callable[[int], None]) -> Support:
    max_pixels = settings.max_image_pixels
    try:
        if upload.archive is not None:
            limits = Limits(max_files=settings.max_images - len(upload.unlabelled))
            return from_archive(upload.archive, manifest, limits=limits, max_pixels=max_pixels, on_image=spend)
        return from_images(upload.images, upload.labels, manifest, max_pixels=max_pixels, on_image=spend)
    except SupportError as error:
        raise _problem(error) from error


def _problem(error: SupportError) -> Problem:
    field = error.field if error.index is None else f"{error.field}[{error.index}]"
    message = str(error)
    return Problem(
        413 if error.kind == "too_large" else 422,
        message,
        [FieldError(field, message.removeprefix(f"{field}: "))],
        reason=_REASONS.get(error.kind) if error.field == "images" else None,
    )


class Adaptation:
    """Takes adaptations in and waits for them."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        jobs: JobQueue,
        intake: Intake,
        predictor: Predictor,
        threads: Threads,
    ) -> None:
        self._settings, self._registry, self._jobs, self._predictor = settings, registry, jobs, predictor
        self._intake, self._threads = intake, threads
        self._num_uploads = 0
        self.is_stopping = False

    def stop_waiting(self) -> None:
        """End all waits, event streams and the decoding of uploads soon: the process stops."""
        self.is_stopping = True

    async def check_room(self) -> None:
        """Refuse an adaptation that could not be queued, before anything is done for it.

        Raises:
            QueueFull: too many jobs wait already.
            Problem: 503, too many uploads are being decoded already.
        """
        if self._num_uploads >= MAX_UPLOADS:
            raise busy(f"{MAX_UPLOADS} uploads are being decoded already")
        await asyncio.to_thread(self._jobs.check_room, self._settings.max_queued_jobs)

    async def decode(self, upload: Upload, manifest: Manifest, share: Share) -> Material:
        """Decode and check the images of a request. If it is cancelled, no further image is decoded.

        Args:
            upload: the files.
            manifest: of the base set.
            share: of the request, which will hold the images' pixels.

        Raises:
            Problem: see `check_upload`; 503, the process has too much to decode, or stops.
        """
        if self._num_uploads >= MAX_UPLOADS:  # others may have come since `check_room`
            raise busy(f"{MAX_UPLOADS} uploads are being decoded already")
        loop, given_up = asyncio.get_running_loop(), threading.Event()

        def look_up(pixels: int) -> None:
            if given_up.is_set() or self.is_stopping:
                raise unavailable("the service is stopping; send the images again")
            if upload.archive is not None:  # its images were not counted before
                share.add_pixels(pixels)

        self._num_uploads += 1
        try:
            files = [*upload.images, *([] if upload.archive else upload.unlabelled)]
            await loop.run_in_executor(self._threads.ordinary, reserve_pixels, files, self._settings, share)
            return await loop.run_in_executor(
                self._threads.uploads, check_upload, upload, manifest, self._settings, look_up
            )
        finally:
            given_up.set()
            self._num_uploads -= 1

    async def submit(self, wanted: Wanted, manifest: Manifest) -> Submission:
        """Queue an adaptation: see `Intake.submit`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads.intake, self._intake.submit, wanted, manifest)

    async def wait(self, job: Job, seconds: float) -> tuple[Job, bool]:
        """Wait until a job is finished and every live worker serves what it promoted, or went back to.

        Returns:
            The job as it is then, and whether there is nothing left to wait for.
        """
        deadline = time.monotonic() + seconds
        move: Move | None = None
        while True:
            if not job.is_finished:
                found = await asyncio.to_thread(self._jobs.get, job.id)
                job = found or job  # a deleted deployment takes its jobs along
            stays = job.version in (None, job.base_version)  # neither promoted nor put back
            if job.is_finished and not stays and move is None:
                try:  # what the job did, or what was done since
                    move = await asyncio.to_thread(self._registry.move, job.deployment)
                except UnknownDeployment:
                    return job, True
            if job.is_finished and (move is None or await self.is_rolled_out(move)):
                return job, True
            if time.monotonic() >= deadline or self.is_stopping:
                return job, False
            await asyncio.sleep(POLL_SECONDS)

    async def is_rolled_out(self, move: Move) -> bool:
        """Say if every live worker follows a move of a deployment, or a later one."""
        await self._predictor.refresh()
        stale_seconds = self._settings.stale_seconds
        return await asyncio.to_thread(self._registry.is_followed, move, stale_seconds=stale_seconds)
