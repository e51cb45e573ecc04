"""A lock file that one process holds; the kernel frees it when its holder dies, however it dies."""

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

# Whoever asks for the holder has the lock for a moment, shared with others who ask: a lock is refused after some tries.
TRIES = 20
SECONDS_BETWEEN_TRIES = 0.005


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a lock. `token` is of this holding alone: process ids are used again."""

    pid: int
    host: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class HeldError(Exception):
    """Somebody else has the lock; the message names them.

    Seen as: a UserError where a run has the output folder, and a wait for one's turn on a device.
    """


@contextmanager
def hold(path: Path, pid: int | None = None) -> Iterator[Holder]:
    """Has the lock while the context is open; the file's content names the holder. Raises HeldError, at once.

    `pid` is of the process that a person knows as the holder, where this one only works for it.
    """
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="utf-8") as file:
        if not _locked(file.fileno(), fcntl.LOCK_EX):
            raise HeldError(str(_parse(file.read()) or "another process"))
        holder = Holder(pid or os.getpid(), socket.gethostname(), secrets.token_hex(8))
        content = json.dumps(asdict(holder)).encode() + b"\n"
        # Never empty for a reader who is on the way: written over first, then cut.
        os.pwrite(file.fileno(), content, 0)
        os.ftruncate(file.fileno(), len(content))
        yield holder


def holder_of(path: Path) -> Holder | None:
    """Who has the lock now; None where nobody has. Whatever the file says, the kernel decides."""
    try:
        with path.open("r", encoding="utf-8") as file:
            for _ in range(TRIES):
                if _locked(file.fileno(), fcntl.LOCK_SH, tries=1):
                    return None
                file.seek(0)
                holder = _parse(file.read())
                if holder is not None:
                    return holder
                time.sleep(SECONDS_BETWEEN_TRIES)
    except FileNotFoundError:
        return None
    return Holder(0, "an unknown host", "")


def last_holder(path: Path) -> Holder | None:
    """Who had the lock last, or has it; None where nobody did, or the file does not say."""
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _locked(descriptor: int, kind: int, tries: int = TRIES) -> bool:
    for left in reversed(range(tries)):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if left:
                time.sleep(SECONDS_BETWEEN_TRIES)
    return False


def _parse(content: str) -> Holder | None:
    """What the file says of its holder, who may be in the middle of writing it, or of an earlier version."""
    try:
        said = json.loads(content)
        return Holder(said["pid"], said["host"], said.get("token", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
