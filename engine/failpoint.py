"""Named places where a test can make the process die, fail or hang. Off unless `FAILPOINT` is set."""

import ctypes
import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable

_hits: Counter[str] = Counter()
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Acts at the n-th hit when the environment says `FAILPOINT=name:n:action`.

    Each setting counts its own hits; the name `*` counts those of every failpoint. Actions: `kill` (SIGKILL, behind a
    line that says where), `crash` (SIGSEGV), `stop` (SIGSTOP, until somebody sends SIGCONT), `error` (an I/O error),
    `hang`, and `seize`, which hangs with the interpreter's lock held.
    """
    setting = os.environ.get("FAILPOINT")
    if setting:
        _act(name, setting)


def _act(name: str, setting: str) -> None:
    wanted, count, action = setting.split(":")
    if wanted not in (name, "*"):
        return
    with _lock:
        _hits[setting] += 1
        reached = _hits[setting] == int(count)
    if reached:
        _ACTIONS[action](name)


def _kill(name: str) -> None:
    os.write(2, f"killed at {name}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def _crash(_: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _stop(_: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _error(name: str) -> None:
    raise OSError(errno.EIO, f"failpoint {name}")


def _hang(_: str) -> None:
    threading.Event().wait()


def _seize(_: str) -> None:
    """A library's call that never ends and, unlike most, does not let other threads run meanwhile."""
    empty, _open = os.pipe()
    ctypes.PyDLL(None).read(empty, ctypes.create_string_buffer(1), 1)


_ACTIONS: dict[str, Callable[[str], None]] = {
    "kill": _kill,
    "crash": _crash,
    "stop": _stop,
    "error": _error,
    "hang": _hang,
    "seize": _seize,
}
