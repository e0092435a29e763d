"""A TCP relay on loopback whose connections can fall silent, as behind a firewall that has forgotten them."""

import contextlib
import select
import socket
import threading
from typing import Self

CHUNK = 65_536
LOOK_SECONDS = 0.1


class Proxy:
    """Relays connections to a port; `silence` stops those that are open, and new ones work."""

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

    def silence(self) -> None:
        """Relay nothing more over the connections that are open; they stay open on both sides."""
        self._generation += 1

    def _accept(self) -> None:
        while not self._is_over:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client, self._generation), daemon=True).start()

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
                        try:
                            data = side.recv(CHUNK)
                            other[side].sendall(data)
                        except OSError:
                            return
                        if not data:
                            return
