"""Frames over a socket: eight bytes that say how many follow, and those."""

import socket
import struct
from contextlib import suppress
from threading import Lock

_LENGTH = struct.Struct("<Q")


class Channel:
    """One end of it. Any thread may send or close, and one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._incoming = connection.makefile("rb", buffering=2**20)
        self._sending = Lock()

    def send(self, frame: bytes) -> None:
        """Raises OSError where nobody receives any more."""
        with self._sending:
            self._socket.sendall(_LENGTH.pack(len(frame)))
            self._socket.sendall(frame)

    def receive(self) -> bytes | None:
        """The next frame; None at the end, also where that cuts a frame off."""
        with suppress(OSError):
            head = self._incoming.read(_LENGTH.size)
            if len(head) == _LENGTH.size:
                length: int = _LENGTH.unpack(head)[0]
                frame: bytes = self._incoming.read(length)
                if len(frame) == length:
                    return frame
        return None

    def end(self) -> None:
        """Whoever sends or receives, here or at the other end, is told at once."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """By who receives, once nobody sends."""
        self._incoming.close()
        self._socket.close()
