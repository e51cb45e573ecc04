"""A lock file that one process holds; the kernel frees it when its holder dies, however it dies."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class HeldError(Exception):
    """Somebody else has the lock; the message names them."""


@contextmanager
def hold(path: Path, pid: int | None = None) -> Iterator[None]:
    """Has the lock while the context is open; the file's content names the holder. Raises HeldError, at once.

    `pid` is of the process that a person knows as the holder, where this one only works for it.
    """
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HeldError(_name(file.read())) from None
        content = json.dumps({"pid": pid or os.getpid(), "host": socket.gethostname()}).encode() + b"\n"
        os.ftruncate(file.fileno(), 0)
        os.pwrite(file.fileno(), content, 0)
        yield


def _name(content: str) -> str:
    """What the file says of its holder, who may be in the middle of writing it."""
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
