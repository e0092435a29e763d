"""The steps after SIGTERM: readiness fails first, connections are taken for a while, then refused."""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

MARGIN_SECONDS = 0.5  # for workers to close their sides of the socket


def on_stop(action: Callable[[], None], *, drain_seconds: float = 0) -> None:
    """Call `action` when this process is asked to stop, and let uvicorn stop after that.

    Must be called on the event loop, after uvicorn has put its signal handlers in place.

    Args:
        action: must not block.
        drain_seconds: that uvicorn goes on after SIGTERM. After SIGINT it stops at once: somebody waits at a terminal.
    """
    loop = asyncio.get_running_loop()
    is_draining = False
    for number in (signal.SIGTERM, signal.SIGINT):
        earlier: Any = signal.getsignal(number)

        def handler(received: int, frame: FrameType | None, earlier: Any = earlier) -> None:
            nonlocal is_draining
            action()
            if received == signal.SIGINT or drain_seconds == 0:
                earlier(received, frame)
            elif not is_draining:  # systemd tells every process, and then the supervisor tells its workers once more
                is_draining = True
                loop.call_soon_threadsafe(loop.call_later, drain_seconds, earlier, received, None)

        signal.signal(number, handler)


def refuse_connections_when_stopping(drain_seconds: float) -> None:
    """Let the supervisor refuse connections once its workers take none; called in its process before it starts them.

    It holds the listening socket open until the last worker has gone. Until then the kernel would accept connections
    that nobody answers.
    """
    from bentoml._internal.utils.circus import Arbiter  # predictors need neither it nor its memory

    stop = Arbiter.stop

    def stop_and_refuse(arbiter: Any) -> Any:
        for listener in arbiter.sockets.values():
            if not listener.is_unix:
                arbiter.loop.call_later(drain_seconds + MARGIN_SECONDS, _refuse, listener)
        return stop(arbiter)

    Arbiter.stop = stop_and_refuse  # type: ignore[assignment, method-assign]


def _refuse(listener: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        listener.shutdown(socket.SHUT_RDWR)  # in all processes that have it
