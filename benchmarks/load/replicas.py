"""Several services side by side on one machine, and who of them is sent requests."""

import contextlib
import itertools
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from service.demo.server import Server, serve

LOOK_SECONDS = 0.1
PROBE_SECONDS = 2.0


class Replicas:
    """Services on one registry. Requests go to those whose readiness probe says yes, as a load balancer does it."""

    def __init__(
        self, folder: Path, base: Path, *, bundles: Path, count: int, workers: int, settings: Mapping[str, str]
    ) -> None:
        """Say what to start; entering starts it.

        Args:
            folder: gets a folder for each start.
            base: base set.
            bundles: folder with its serving bundle.
            count: services.
            workers: predictor processes of each.
            settings: environment variables of all of them.
        """
        self._folder, self._base, self._bundles = folder, base, bundles
        self._count, self._workers, self._settings = count, workers, settings
        self._running: dict[int, tuple[Server, contextlib.ExitStack]] = {}
        self._ready: tuple[int, ...] = ()  # ports
        self._starts = itertools.count()
        self._turns = itertools.count()
        self._is_over = threading.Event()
        self._prober = threading.Thread(target=self._probe, daemon=True)
        self.lock = threading.Lock()  # held by what stops or starts processes

    def __enter__(self) -> Self:
        """Start them all."""
        try:
            for index in range(self._count):
                self._start(index)
        except BaseException:
            self._stop_all()
            raise
        self._ready = tuple(server.port for server in self.servers)
        self._prober.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop them all."""
        self._is_over.set()
        self._prober.join()
        self._stop_all()

    @property
    def servers(self) -> list[Server]:
        """Those that run."""
        return [server for server, _ in list(self._running.values())]

    def port(self) -> int:
        """Return the port for a new connection: those that are ready, in turn."""
        ready = self._ready or tuple(server.port for server in self.servers)
        return ready[next(self._turns) % len(ready)]

    def is_ready(self, port: int) -> bool:
        """Say if connections to a port are wanted."""
        return port in self._ready

    def server(self) -> Server:
        """Return one that is ready, in turn."""
        port = self.port()
        return next((server for server in self.servers if server.port == port), self.servers[0])

    def restart(self, index: int) -> tuple[float, float]:
        """End one as a rolling restart does, with SIGTERM, and start another in its place.

        Returns:
            Seconds until it had ended, and until the new one was ready.
        """
        with self.lock:
            started = time.perf_counter()
            _, stack = self._running[index]
            stack.close()
            del self._running[index]
            ended = time.perf_counter()
            self._start(index)
            return ended - started, time.perf_counter() - ended

    def _start(self, index: int) -> None:
        folder = self._folder / f"replica-{next(self._starts)}"
        folder.mkdir()
        stack = contextlib.ExitStack()
        running = serve(folder, self._base, workers=self._workers, settings=self._settings, bundles=self._bundles)
        self._running[index] = stack.enter_context(running), stack

    def _stop_all(self) -> None:
        for _, stack in self._running.values():
            stack.close()
        self._running.clear()

    def _probe(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            self._ready = tuple(server.port for server in self.servers if _is_ready(server))


def _is_ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/readyz", timeout=PROBE_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
