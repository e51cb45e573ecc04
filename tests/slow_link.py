"""A link to a server that is slow, or dead at first: a proxy of TCP connections, each with so many bytes a second."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_PIECE = 16 * 1024


@contextmanager
def slow_link(url: str, bytes_a_second: float, *, dead: int = 0) -> Iterator[str]:
    """The URL of the link to `url`. The first `dead` connections bring nothing, and are not closed either."""
    there = urlsplit(url)
    assert there.hostname is not None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        link = _Link((there.hostname, there.port or 80), bytes_a_second, dead)
        threading.Thread(target=link.accept, args=(listening,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            link.close()


class _Link:
    def __init__(self, there: tuple[str, int], bytes_a_second: float, dead: int) -> None:
        self._there = there
        self._seconds = _PIECE / bytes_a_second
        self._dead = dead
        self._open: list[socket.socket] = []

    def accept(self, listening: socket.socket) -> None:
        while True:
            try:
                here, _ = listening.accept()
            except OSError:
                return
            self._open.append(here)
            if self._dead:
                self._dead -= 1
                continue
            there = socket.create_connection(self._there, timeout=60)
            self._open.append(there)
            for ends in ((here, there), (there, here)):
                threading.Thread(target=self._bring, args=ends, daemon=True).start()

    def close(self) -> None:
        for one in self._open:
            one.close()

    def _bring(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while piece := source.recv(_PIECE):
                time.sleep(self._seconds * len(piece) / _PIECE)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return
