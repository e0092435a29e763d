"""Errors as RFC 9457 problem details: one exception, one rendering, one place where domain errors get their status."""

import errno
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.http.inference.models import ProtocolError
from service.http.schemas import FieldAtFault, ProblemDetails
from service.logs import REQUEST_ID
from service.prediction.batcher import Busy
from service.prediction.loading import NotReady, Outdated
from service.store.database import UNAVAILABLE, cause_of
from service.store.intake import TooManySamples
from service.store.jobs import QueueFull
from service.store.keeping import NothingKept
from service.store.transactions import Conflict, UnknownDeployment, UnknownVersion

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
PROTOCOL_MEDIA_TYPE = "application/json"  # of an error below /v2
RETRY_AFTER_SECONDS = 1
MAX_TEXT = 1000  # characters of a message, which may repeat what was sent
MAX_ERRORS = 100  # fields that are named
_REASONS = {
    400: "malformed",
    401: "key",
    403: "forbidden",
    404: "not_found",
    405: "method",
    408: "slow",
    409: "conflict",
    413: "too_large",
    415: "media_type",
    422: "invalid",
    429: "too_many",
    500: "error",
    503: "unavailable",
}
_STORAGE_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FieldError(NamedTuple):
    """The fault of one part of a request."""

    field: str
    message: str


class Problem(Exception):
    """An answer other than success.

    Args:
        status: HTTP status code.
        detail: one sentence for the caller; names the field, never a path or a stack.
        errors: the fields at fault.
        headers: extra headers.
        reason: value of the label of `saucier_rejected_total`.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        *,
        reason: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = _shortened(detail)
        self.errors = tuple(FieldError(*map(_shortened, error)) for error in errors[:MAX_ERRORS])
        self.headers = dict(headers or {})
        self.reason = reason or _REASONS.get(status, "other")

    def body(self) -> ProblemDetails:
        """Return the JSON object of the answer."""
        errors = [FieldAtFault(field=field, message=message) for field, message in self.errors]
        title = HTTPStatus(self.status).phrase
        return ProblemDetails(title=title, status=self.status, detail=self.detail, errors=errors)


def _shortened(text: str) -> str:
    text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
    return text.encode(errors="backslashreplace").decode()  # half a letter cannot be sent


def invalid(field: str, message: str, *, status: int = 422) -> Problem:
    """Return the problem of one field at fault."""
    return Problem(status, f"{field}: {message}", [FieldError(field, message)])


def unavailable(detail: str) -> Problem:
    """Return a 503 that asks the client to come back soon."""
    return Problem(503, detail)


def error_media_type(path: str) -> str:
    """Return what errors of a path are written as: the Open Inference Protocol has a form of its own."""
    return PROTOCOL_MEDIA_TYPE if path == "/v2" or path.startswith("/v2/") else MEDIA_TYPE


def render(problem: Problem, path: str) -> Response:
    """Return the response of a problem to a request for this path."""
    headers = dict(problem.headers)
    if problem.status in (429, 503):
        headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    media_type = error_media_type(path)
    body = ProtocolError(error=problem.detail) if media_type == PROTOCOL_MEDIA_TYPE else problem.body()
    return Response(body.model_dump_json(), problem.status, headers, media_type=media_type)


def as_problem(error: Exception) -> Problem:
    """Return the problem that stands for any exception; unexpected ones are logged, and their text stays inside."""
    match error:
        case Problem():
            return error
        case HTTPException():
            detail = error.detail if isinstance(error.detail, str) else HTTPStatus(error.status_code).phrase
            return Problem(error.status_code, detail, headers=error.headers)
        case UnknownDeployment():
            return Problem(404, f"there is no deployment {str(error.args[0])[:80]!r}", reason="unknown_deployment")
        case UnknownVersion():
            return Problem(404, f"the deployment has no version {error.args[0]}")
        case Busy():
            return Problem(503, str(error), reason="busy")
        case NotReady():
            return unavailable(str(error))
        case Outdated():
            return Problem(409, "that version was made for other weights than those of the base set now")
        case Conflict():
            return Problem(409, str(error))
        case NothingKept():
            return invalid("images", str(error))
        case TooManySamples():
            return Problem(413, f"{error} (SAUCIER_MAX_SAMPLES_MB)", reason="samples")
        case QueueFull():
            return Problem(429, "too many adaptations wait already", reason="queue_full")
        case _ if isinstance(error, UNAVAILABLE):
            logger.error("the registry cannot be used: %s", cause_of(error))
            return unavailable("the registry cannot be used at the moment")
        case OSError() if error.errno in _STORAGE_FULL:
            logger.error("storage is full: %s", error)
            return Problem(507, "the storage of the service is full; nothing was stored", reason="storage")
        case OSError():
            logger.error("storage cannot be used: %s", error)
            return Problem(503, "the storage of the service cannot be used; nothing was stored", reason="storage")
        case _:
            logger.error("unexpected error", exc_info=error)
            return Problem(500, f"an unexpected error; the log of the service has more, request {REQUEST_ID.get()}")
