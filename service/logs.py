"""Log lines of the service: as text or as JSON, each with the id of the request that it is about."""

import json
import logging
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

REQUEST_ID: ContextVar[str | None] = ContextVar("saucier_request_id", default=None)
_LOGGERS = ("", "bentoml", "uvicorn.error", "circus")  # those that BentoML gives handlers


def set_up_logging(log_format: LogFormat) -> None:
    """Let our messages through at INFO, once each, in this format.

    BentoML has set the handlers up before, and keeps the root at WARNING. There is no line for every request: that
    would cost more than some requests take.
    """
    for name in ("service", "deploy"):
        logging.getLogger(name).setLevel(logging.INFO)
    root = logging.getLogger()
    if not root.handlers:  # in the process that starts the others
        root.addHandler(logging.StreamHandler())
    for name in _LOGGERS[1:]:
        if logging.getLogger(name).handlers:
            logging.getLogger(name).propagate = False  # some would write the same line again at the root
    for handler in {handler for name in _LOGGERS for handler in logging.getLogger(name).handlers}:
        if log_format == "json":
            handler.setFormatter(JsonFormatter())
        elif _note_request not in handler.filters:
            handler.addFilter(_note_request)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `process`, `message`; `request_id`, `exception` if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def _note_request(record: logging.LogRecord) -> bool:
    """Put the request's id where BentoML's text format has room for it."""
    if (request_id := REQUEST_ID.get()) is not None:
        record.trace_msg = f"{getattr(record, 'trace_msg', '')} (request={request_id})"
    return True
