"""A lean HTTP/1.1 client for load: on two cores a convenient one would measure itself."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

LIMIT = 2**20
CONNECT_SECONDS = 0.005  # between two connections: opened at once, one worker would often accept them all


@dataclass
class Load:
    """What the clients saw."""

    latencies: list[float] = field(default_factory=list)  # seconds, of answers with status 200
    failed: list[str] = field(default_factory=list)  # first lines of other answers, or what broke
    failed_at: list[float] = field(default_factory=list)  # when, by `time.perf_counter`
    seconds: float = 0.0

    def fail(self, what: str) -> None:
        """Note that a request was not answered with status 200."""
        self.failed.append(what)
        self.failed_at.append(time.perf_counter())

    @property
    def per_second(self) -> float:
        """Answers with status 200 per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile_ms(self, percentile: float) -> float:
        """Return a percentile of the latencies in milliseconds."""
        return float(np.percentile(self.latencies, percentile)) * 1e3 if self.latencies else float("nan")


def post_request(path: str, body: bytes, media_type: str, port: int) -> bytes:
    """Return the bytes of a keep-alive POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {media_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def multipart(files: list[bytes], *, name: str = "images", media_type: str = "image/jpeg") -> tuple[bytes, str]:
    """Return a multipart/form-data body with one part per file, and its media type."""
    boundary = b"saucier-benchmark-boundary"
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="%d"\r\nContent-Type: %b\r\n\r\n%b\r\n'
        % (boundary, name.encode(), index, media_type.encode(), file)
        for index, file in enumerate(files)
    ]
    return b"".join(parts) + b"--" + boundary + b"--\r\n", f"multipart/form-data; boundary={boundary.decode()}"


async def hammer(
    port: int | Callable[[], int],
    requests: list[bytes],
    *,
    concurrency: int,
    seconds: float,
    pause: float = 0.0,
    stop: asyncio.Event | None = None,
    on_answer: Callable[[float, float, bytes, int], None] | None = None,
    stays: Callable[[int], bool] | None = None,
) -> Load:
    """Send requests over `concurrency` kept-alive connections, one after the other on each.

    The workers of a server share one listening socket, and the kernel wakes any of them: connections opened in the same
    instant tend to land on one worker, and stay there.

    Args:
        port: on loopback; or what is asked for the port of each new connection.
        requests: whole HTTP requests, sent in turn.
        concurrency: connections.
        seconds: how long.
        pause: seconds that each connection waits between an answer and its next request.
        stop: ends the load early.
        on_answer: called with (sent, received, body, position of the request) for each answer with status 200; times of
            `time.perf_counter`.
        stays: asked before each request whether connections to a port are still wanted; else another is opened.
    """
    load = Load()
    start = time.perf_counter()

    def is_over() -> bool:
        return time.perf_counter() - start >= seconds or (stop is not None and stop.is_set())

    async def connection(number: int) -> None:
        turn = number
        await asyncio.sleep(number * CONNECT_SECONDS)
        while not is_over():
            here = port if isinstance(port, int) else port()
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", here, limit=LIMIT)
            except OSError as error:
                load.fail(f"connect: {error}")
                await asyncio.sleep(0.05)
                continue
            try:
                while not is_over() and (stays is None or stays(here)):
                    if pause:
                        await asyncio.sleep(pause)
                    sent, position = time.perf_counter(), turn % len(requests)
                    writer.write(requests[position])
                    turn += 1
                    head = await reader.readuntil(b"\r\n\r\n")
                    body = await reader.readexactly(_content_length(head))
                    received = time.perf_counter()
                    if not head.startswith(b"HTTP/1.1 200"):
                        load.fail(f"{head[:40]!r} {body[:100]!r}")
                        continue
                    load.latencies.append(received - sent)
                    if on_answer is not None:
                        on_answer(sent, received, body, position)
            except (OSError, asyncio.IncompleteReadError) as error:
                load.fail(f"{type(error).__name__}: {error}")
            finally:
                writer.close()

    await asyncio.gather(*(connection(number) for number in range(concurrency)))
    load.seconds = time.perf_counter() - start
    return load


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise OSError(f"an answer without content-length: {head[:80]!r}")
