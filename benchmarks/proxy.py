"""A TCP relay on loopback whose connections can fall silent, as behind a firewall that has forgotten them."""

import contextlib
import select
import socket
import threading
from typing import Self

CHUNK = 65_536
LOOK_SECONDS = 0.1
SILENT = -1  # no generation of connections


class Proxy:
    """Relays connections to a port, until it is told to fall silent."""

    def __init__(self, target: int) -> None:
        """Listen.

        Args:
            target: port on loopback to relay to.
        """
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._is_over = False
        self._generation = 0
        self._is_new_silent = False
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        """Begin to relay."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; open connections are closed soon after."""
        self._is_over = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def silence(self, *, new_ones: bool = False) -> None:
        """Relay nothing more over the connections that are open; they stay open on both sides.

        Args:
            new_ones: nor over those that are opened from now on, until `recover`.
        """
        self._generation, self._is_new_silent = self._generation + 1, new_ones

    def recover(self) -> None:
        """Relay over connections that are opened from now on; those that fell silent stay so."""
        self.silence()

    def _accept(self) -> None:
        while not self._is_over:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            generation = SILENT if self._is_new_silent else self._generation
            threading.Thread(target=self._relay, args=(client, generation), daemon=True).start()

    def _relay(self, client: socket.socket, generation: int) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with server:
                other = {client: server, server: client}
                while not self._is_over:
                    if generation != self._generation:  # silent: nothing is read, and nothing is closed
                        threading.Event().wait(LOOK_SECONDS)
                        continue
                    for side in select.select([client, server], [], [], LOOK_SECONDS)[0]:
                        if generation != self._generation:  # it fell silent while this thread waited
                            break
                        try:
                            data = side.recv(CHUNK)
                            other[side].sendall(data)
                        except OSError:
                            return
                        if not data:
                            return
