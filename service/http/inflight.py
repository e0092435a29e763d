"""Budgets that the requests to one process share: bytes of their bodies, and pixels that are to be decoded."""

import asyncio
import threading
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from starlette.requests import Request

from service.http.problems import Problem
from service.settings import Settings

Result = TypeVar("Result")


def busy(what: str, headers: Mapping[str, str] | None = None) -> Problem:
    """Return the 503 that asks a client to come back when others are done."""
    return Problem(503, f"{what}; try again in a moment", headers=headers, reason="busy")


class Inflight:
    """A budget that the requests of one kind share. Threads may use it.

    A request that holds more than the budget is taken if no other holds anything, so a budget never makes a request
    impossible that the limits of one request allow.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_bytes, self._max_pixels = settings.max_inflight_bytes, settings.max_inflight_pixels
        self._num_bytes = self._num_pixels = 0
        self._lock = threading.Lock()

    def spend(self, share: "Share", *, num_bytes: int = 0, num_pixels: int = 0) -> None:
        """Let a request hold more.

        Raises:
            Problem: 503, others hold too much.
        """
        with self._lock:
            all_bytes, all_pixels = self._num_bytes + num_bytes, self._num_pixels + num_pixels
            if num_bytes and all_bytes > self._max_bytes and self._num_bytes > share.num_bytes:
                raise busy("the bodies of other requests fill SAUCIER_MAX_INFLIGHT_MB", {"Connection": "close"})
            if num_pixels and all_pixels > self._max_pixels and self._num_pixels > share.num_pixels:
                raise busy("the images of other requests fill SAUCIER_MAX_INFLIGHT_PIXELS")
            self._num_bytes, self._num_pixels = all_bytes, all_pixels
            share.num_bytes += num_bytes
            share.num_pixels += num_pixels

    def give_back(self, share: "Share") -> None:
        """Take back all that a request holds."""
        with self._lock:
            self._num_bytes -= share.num_bytes
            self._num_pixels -= share.num_pixels
            share.num_bytes = share.num_pixels = 0


class Share:
    """The share of one request in a budget."""

    __slots__ = ("_inflight", "num_bytes", "num_pixels")

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight
        self.num_bytes = self.num_pixels = 0

    def add_bytes(self, count: int) -> None:
        """Hold more bytes. Raises Problem: 503, others hold too many."""
        self._inflight.spend(self, num_bytes=count)

    def add_pixels(self, count: int) -> None:
        """Have more pixels decoded. Raises Problem: 503, others have too many."""
        self._inflight.spend(self, num_pixels=count)

    def release(self) -> None:
        """Give everything back; again is nothing."""
        if self.num_bytes or self.num_pixels:
            self._inflight.give_back(self)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Return what `work` returns, and cancel it when the client goes away. The body must have been read.

    Raises:
        Problem: 400, which nobody reads.
    """
    worker = asyncio.current_task()
    assert worker is not None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        worker.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and worker.uncancel() == 0:  # else somebody else wants this to end, too
            raise Problem(400, "the client went away", reason="gone") from None
        raise
    finally:
        watching.cancel()
