"""Named places where a test can make the process die, fail or hang. Off unless `FAILPOINT` is set."""

import ctypes
import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Container

_TOKEN = "engine.token."
_hits: Counter[str] = Counter()
_lock = threading.Lock()


class Abandoned(BaseException):
    """Ends a run as far as exceptions can, in a process that goes on.

    Seen as: nothing; tests alone raise it.
    """


def forget_hits() -> None:
    """Every setting counts from one again."""
    with _lock:
        _hits.clear()


def failpoint(name: str) -> None:
    """Acts at the n-th hit when the environment says `FAILPOINT=name:n:action`.

    Each setting counts its own hits; the name `*` counts those of every failpoint. Actions: `kill` (SIGKILL, behind a
    line that says where), `crash` (SIGSEGV), `stop` (SIGSTOP, until somebody sends SIGCONT), `error` (an I/O error),
    `hang`, `seize`, which hangs with the interpreter's lock held, and `abandon`, which raises Abandoned at every later
    hit too, so that nothing more is committed, as behind a kill.
    """
    setting = os.environ.get("FAILPOINT")
    if setting:
        _act(name, setting)


def token_failpoint(step: Container[int]) -> None:
    """The failpoint `engine.token.<id>` of a step that holds the token. `*` is not this one."""
    setting = os.environ.get("FAILPOINT", "")
    name, _, _ = setting.partition(":")
    if name.startswith(_TOKEN) and int(name.removeprefix(_TOKEN)) in step:
        _act(name, setting)


def _act(name: str, setting: str) -> None:
    wanted, count, action = setting.split(":")
    if wanted not in (name, "*"):
        return
    with _lock:
        _hits[setting] += 1
        reached = _hits[setting] == int(count) or (action == "abandon" and _hits[setting] > int(count))
    if reached:
        _ACTIONS[action](name)


def _kill(name: str) -> None:
    os.write(2, f"killed at {name}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def _crash(_: str) -> None:
    # A fault is its own thread's; a signal sent to the process may reach any of them.
    signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)


def _stop(_: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _error(name: str) -> None:
    raise OSError(errno.EIO, f"failpoint {name}")


def _abandon(name: str) -> None:
    raise Abandoned(name)


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
    "abandon": _abandon,
    "hang": _hang,
    "seize": _seize,
}
