"""Request ids on answers and log lines; log lines as JSON."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterator

import httpx
import pytest

from service.http.problems import as_problem
from service.http.request_ids import request_id
from service.logs import REQUEST_ID, JsonFormatter, set_up_logging
from tests.service.conftest import Server
from tests.service.test_security import call


@pytest.fixture
def named() -> Iterator[str]:
    """A request's id, while that request is being answered."""
    token = REQUEST_ID.set("abc-1")
    yield "abc-1"
    REQUEST_ID.reset(token)


@pytest.fixture
def loggers() -> Iterator[None]:
    """The loggers as they are, before and after."""
    found = [logging.getLogger(name) for name in ("", "bentoml", "uvicorn.error", "circus", "service")]
    kept = [(logger, logger.level, logger.propagate, logger.handlers) for logger in found]
    yield
    for logger, level, propagate, handlers in kept:
        logger.level, logger.propagate, logger.handlers = level, propagate, handlers


def scope(*values: bytes) -> dict[str, object]:
    return {"headers": [(b"host", b"x"), *((b"x-request-id", value) for value in values)]}


@pytest.mark.parametrize("usable", ["a", "7d0c4e1e-9f4a-4f0e-8d9c-0f8e5b1c2d3e", "Root=1-67891233-abcdef0123"])
def test_usable_id_of_a_client_is_kept(usable: str) -> None:
    assert request_id(scope(usable.encode())) == usable


@pytest.mark.parametrize("forged", [b"", b"a b", b"a\nlevel=ERROR", b"\xff", b'"', b"x" * 129, b"<script>"])
def test_id_that_could_forge_a_line_is_replaced(forged: bytes) -> None:
    made = request_id(scope(forged))
    assert made.encode() != forged
    assert made.isalnum()
    assert request_id(scope(forged)) != made


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/predict", {}, 200),
        ("GET", "/livez", {}, 200),
        ("GET", "/nowhere", {}, 404),
        ("PATCH", "/adapt", {}, 405),
        ("POST", "/predict?status=503", {}, 503),
        ("GET", "/deployments/x", {"host": "evil.example"}, 403),
    ],
)
def test_every_answer_carries_one_id(method: str, path: str, headers: dict[str, str], status: int) -> None:
    kept = call(method, path, **headers, **{"X-Request-ID": "mine"})
    made = [call(method, path, **headers).headers["x-request-id"] for _ in range(2)]
    assert kept.status_code == status
    assert kept.headers.get_list("x-request-id") == ["mine"]
    assert len({*made, "mine"}) == 3


def test_answers_of_concurrent_requests_keep_their_ids() -> None:
    seen: dict[str, str | None] = {}

    async def one(name: str) -> None:
        REQUEST_ID.set(name)
        await asyncio.sleep(0.01)
        seen[name] = await asyncio.to_thread(REQUEST_ID.get)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(str(number)) for number in range(5)))

    asyncio.run(all_of_them())
    assert seen == {str(number): str(number) for number in range(5)}


def line(message: str, *args: object, **parts: object) -> dict[str, object]:
    record = logging.LogRecord("service.x", logging.ERROR, "x.py", 1, message, args, parts.get("exc_info"))  # type: ignore[arg-type]
    text = JsonFormatter().format(record)
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def test_json_line_holds_what_happened(named: str) -> None:
    found = line("job %s:\n%s", 7, "naïve")
    assert {key: found[key] for key in ("level", "logger", "message", "request_id")} == {
        "level": "ERROR",
        "logger": "service.x",
        "message": "job 7:\nnaïve",
        "request_id": named,
    }
    assert str(found["time"]).endswith("+00:00")
    assert "exception" not in found


def test_json_line_holds_the_stack_and_no_id_outside_of_requests() -> None:
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        found = line("it went wrong", exc_info=sys.exc_info())
    assert "ZeroDivisionError" in str(found["exception"])
    assert "request_id" not in found


def test_json_line_holds_what_a_library_attached_even_if_json_has_no_such_type() -> None:
    record = logging.makeLogRecord({"msg": "sent", "levelname": "INFO", "name": "x", "peer": {1}, "size": 3})
    found = json.loads(JsonFormatter().format(record))
    assert (found["message"], found["size"]) == ("sent", 3)
    assert "1" in str(found["peer"])


@pytest.mark.usefixtures("loggers")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_unexpected_error_is_found_by_the_id_that_its_sender_got(
    log_format: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s%(trace_msg)s", defaults={"trace_msg": ""}))
    logging.getLogger().handlers = [handler]
    logging.getLogger("uvicorn.error").handlers = [handler]
    for _ in range(2):  # as in a process that imports the service twice: lines stay single
        set_up_logging(log_format)  # type: ignore[arg-type]
    problem = as_problem(RuntimeError("inside"))
    logging.getLogger("uvicorn.error").error("once")
    printed = capsys.readouterr().out
    assert named in problem.detail
    assert "inside" not in problem.detail
    assert printed.count(named) == 2
    assert "RuntimeError: inside" in printed
    assert printed.count("once") == 1


@pytest.mark.e2e
def test_server_answers_with_ids_everywhere(server: Server) -> None:
    for path, status in (("/", 200), ("/livez", 200), ("/metrics", 200), ("/nothing", 404), ("/predict", 405)):
        answer = httpx.get(f"{server.url}{path}", headers={"X-Request-ID": "mine-1"})
        assert (answer.status_code, answer.headers.get_list("x-request-id")) == (status, ["mine-1"])
