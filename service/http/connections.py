"""Connections that send nothing, or a head that never ends, are cut. Bodies have their own limits in `uploads`.

uvicorn lets a client take as long as it likes over the head of a request, and make it as long as it likes; only the
pause between two requests is limited. And where a request offers another protocol (`Upgrade: h2c`, as Java's HttpClient
sends), it drops the body, or takes it for the next request. BentoML, which starts uvicorn, offers no way to change
that, so the protocol that uvicorn picks by default is extended here.
"""

from asyncio import TimerHandle, Transport
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.problems import MEDIA_TYPE, Problem
from service.http.uploads import BODY, IS_WHOLE

MAX_HEAD_BYTES = 65_536


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 on one connection and no other protocol, with a limit on the time and the bytes that a head takes.

    Time runs from the connection, or the first byte after an answer, to the end of the head; and from an answer that
    was given before its request's body was over, so that nobody feeds us bytes for ever that are thrown away. It costs
    one timer per connection, not per request.
    """

    head_seconds: ClassVar[float] = 10.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting_since: float | None = self.loop.time()  # None: for nothing that this class limits
        self._is_answering = False
        self._is_body_over = True
        self._head_bytes: int | None = None  # None outside of a head
        self._piece_bytes = 0  # of what arrived last
        self._is_head_too_large = False
        self._timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.head_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def data_received(self, data: bytes) -> None:
        """Take what arrived."""
        self._unset_keepalive_if_required()
        self._piece_bytes = len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning("a connection sent what is no HTTP request")
            self.send_400_response("Invalid HTTP request received.")
        if not self._is_answering and self._waiting_since is None:
            self._waiting_since = self.loop.time()
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """A head ends, and its request begins; unless it came whole, and too long, in one piece."""
        if (self._head_bytes or 0) + self._piece_bytes > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES:
            self._is_head_too_large = True
            raise ValueError("the head of the request is too long")  # which ends the parser, and asks for a 400
        if self.parser.get_method() == b"CONNECT":  # what follows would be a tunnel
            raise ValueError("this is no proxy")
        if self.parser.should_upgrade():
            return  # the head comes again without its offer
        self._head_bytes = self._waiting_since = None
        self._is_answering, self._is_body_over = True, False
        self.scope["extensions"] = {BODY: {IS_WHOLE: self._has_whole_bodies}}
        super().on_headers_complete()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)

    def on_message_complete(self) -> None:
        """The body of a request ends."""
        if self.parser.should_upgrade():
            return
        self._is_body_over = True
        super().on_message_complete()

    def _has_whole_bodies(self) -> bool:
        """Say if the bodies of all requests so far have arrived."""
        return self._is_body_over

    def on_response_complete(self) -> None:
        """The answer to a request is written; another request may wait already."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._is_answering = False
            self._waiting_since = None if self._is_body_over else self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser gave up on."""
        self._refuse(_TOO_LARGE if self._is_head_too_large else _MALFORMED)

    def _parse(self, data: bytes) -> None:
        """Parse what arrived as plain HTTP, also if a request offers another protocol (RFC 9110 section 7.8).

        httptools takes all that follows the head of such a request for the other protocol. So the head is parsed again
        without its offer, and then what follows it. The parser is a new one: after `Connection: close` it would take
        no more.
        """
        rest = memoryview(data)
        while True:
            try:
                return self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self.parser.feed_data(head)

    def _head_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([method + b" " + self.url + b" HTTP/" + version, *lines, b"", b""])

    def _refuse(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        left = self.head_seconds
        if self._waiting_since is not None:
            left -= self.loop.time() - self._waiting_since
        if left <= 0:
            self.transport.close()
        else:
            self._timer = self.loop.call_later(left, self._look)


def _answer(problem: Problem) -> bytes:
    """Return the answer to what is no request that could be routed."""
    body = problem.body().model_dump_json().encode()
    status = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}"
    lines = [status, f"content-type: {MEDIA_TYPE}", f"content-length: {len(body)}", "connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


_MALFORMED = _answer(Problem(400, "expected an HTTP/1.1 request, got something else"))
_TOO_LARGE = _answer(Problem(431, f"expected a request line and headers of at most {MAX_HEAD_BYTES} bytes together"))


def guard_connections(head_seconds: float) -> None:
    """Let the servers that this process starts from now on limit the heads of requests."""
    GuardedProtocol.head_seconds = head_seconds
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{GuardedProtocol.__name__}"
