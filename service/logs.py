"""Log lines of the service: as text or as JSON, each with the id of the request that it is about."""

import logging
from contextvars import ContextVar
from typing import Any, Literal

from pythonjsonlogger import json

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


class JsonFormatter(json.JsonFormatter):
    """One JSON object per line: `level`, `logger`, `process`, `message`, `time`; `request_id`, `exception` if any.

    The line also has the fields that a library attached to its record.
    """

    def __init__(self) -> None:
        """Take the usual names of these fields for those of Python's records."""
        super().__init__(
            ["levelname", "name", "process", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
            timestamp="time",
            json_ensure_ascii=False,
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Add the id of the request that is being answered."""
        return log_data if (request_id := REQUEST_ID.get()) is None else {**log_data, "request_id": request_id}


def _note_request(record: logging.LogRecord) -> bool:
    """Put the request's id where BentoML's text format has room for it."""
    if (request_id := REQUEST_ID.get()) is not None:
        record.trace_msg = f"{getattr(record, 'trace_msg', '')} (request={request_id})"
    return True
