"""A TCP proxy that can fall silent: it keeps connections, answers nothing on them, and may take new ones that work."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

CHUNK = 65_536


class SilentProxy:
    """Passes bytes between clients on a free loopback port and a server, until it is told to fall silent."""

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._silence = threading.Event()  # of the connections there are; each has its own for life
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self, *, new_ones: bool = False) -> None:
        """Pass nothing on any more on the connections there are; the kernel still acknowledges what comes.

        Args:
            new_ones: nor on those that are made from now on.
        """
        self._silence.set()
        self._silence = threading.Event()
        if new_ones:
            self._silence.set()

    def recover(self) -> None:
        """Pass on what comes on new connections."""
        self.silence()

    def close(self) -> None:
        """Close every connection."""
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                is_silent = self._silence.is_set
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=_pass_on, args=(source, target, is_silent), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, is_silent: Callable[[], bool]) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK):
            if not is_silent():
                target.sendall(data)
        if not is_silent():
            target.shutdown(socket.SHUT_WR)
