"""What the server itself refuses, before any route: as problem details, too."""

import json
import socket
from contextlib import suppress

import pytest

from tests.service.conftest import Server

pytestmark = pytest.mark.e2e


def answer_to(server: Server, data: bytes) -> tuple[str, dict[str, str], bytes]:
    """Send bytes and return status line, headers and body of what comes back before the connection is closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}, body


@pytest.mark.parametrize(
    ("sent", "status", "detail"),
    [
        (b"nonsense\r\n\r\n", "HTTP/1.1 400 Bad Request", "HTTP/1.1 request"),
        (b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n", "HTTP/1.1 400 Bad Request", "HTTP/1.1 request"),
        (
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n",
            "HTTP/1.1 431 Request Header Fields Too Large",
            "65536 bytes",
        ),
    ],
    ids=["no request", "no header", "too many bytes of headers"],
)
def test_refusals_of_the_server_are_problem_details(server: Server, sent: bytes, status: str, detail: str) -> None:
    for _ in range(5):
        with suppress(ConnectionResetError):  # a reset can overtake the answer, as not all was read
            found, headers, body = answer_to(server, sent)
            break
    assert found == status
    assert headers["content-type"] == "application/problem+json"
    assert int(headers["content-length"]) == len(body)
    problem = json.loads(body)
    assert set(problem) == {"type", "title", "status", "detail", "errors"}
    assert problem["status"] == int(status.split()[1])
    assert detail in problem["detail"]
